"""Signals that ask a run to stop, and what a command answers to them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, a polite kill, and the warning that schedulers send before they take a machine away."""


class Interrupted(Exception):
    """A signal asked the run to stop. Commands exit with 128 + ``signum``: 130, 143 or 138.

    Args:
        signum: the signal.
        saved: the checkpoint to go on from; None when there is none.
    """

    def __init__(self, signum: int, saved: Path | None) -> None:
        where = f"saved '{saved}', continue with --resume" if saved else "nothing has been saved"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {where}")
        self.signum = signum


class StopRequests:
    """While entered, a stopping signal becomes a wish, ``signum``, which the loop grants after its step.

    Args:
        say: told that the wish was heard.
        insist: whether a second signal acts at once. Launchers pass a signal on that the process has
            already had, so that under them a second one means nothing.
    """

    def __init__(self, say: Callable[[str], None], insist: bool) -> None:
        self.signum: int | None = None
        self._say = say
        self._insist = insist
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        try:
            for signum in STOPPING:
                self._previous[signum] = signal.signal(signum, self._wish)
        except ValueError:  # not the main thread: the caller handles signals
            self._previous.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def _wish(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            return
        self.signum = signum
        again = ""
        if self._insist:
            signal.signal(signum, self._previous[signum])
            again = "; again to stop at once"
        self._say(f"{signal.Signals(signum).name}: finishing this step, then saving{again}")
