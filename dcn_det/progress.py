"""Progress lines with rate and remaining time."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Callable

from dcn_det.console import print_line

Say = Callable[[str], None]
"""Receives one line of text."""
Count = Callable[[int, int], None]
"""Receives the number of finished items and the total."""


def duration(seconds: float) -> str:
    """Formats seconds as ``h:mm:ss``, preceded by days if there are any."""
    return str(datetime.timedelta(seconds=max(0, round(seconds))))


def progress_line(done: int, total: int, started: float, what: str) -> str:
    """Formats ``what done/total  n/s  eta h:mm:ss`` for work that began at ``started`` (``time.monotonic``)."""
    elapsed = max(time.monotonic() - started, 1e-9)
    rate = done / elapsed
    eta = duration((total - done) / rate) if done else "?"
    return f"{what} {done}/{total}  {rate:.1f}/s  eta {eta}"


def say_on_stderr(text: str) -> None:
    """Prints a line to standard error and flushes it. If that is not possible, continues without."""
    print_line(text, sys.stderr)


class Progress:
    """Prints a progress line every few seconds and at the end; an instance is a :data:`Count`.

    Args:
        what: name of the items, such as ``image``.
        say: receives the lines.
        every: minimum number of seconds between two lines.
    """

    def __init__(self, what: str, say: Say = say_on_stderr, every: float = 2.0) -> None:
        self.what = what
        self.say = say
        self.every = every
        self._started = self._spoken = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._spoken >= self.every or done == total:
            self._spoken = now
            self.say(progress_line(done, total, self._started, self.what))
