"""Handling of signals that request a stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from dcn_det.data.loader import stop_waiting

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, ``kill``, and the warning that job schedulers send before the time limit."""


class Interrupted(Exception):
    """The run was stopped by a signal. Commands exit with 128 + ``signum``: 130, 143 or 138.

    Args:
        signum: the signal.
        saved: the checkpoint to resume from, or None if there is none.
    """

    def __init__(self, signum: int, saved: Path | None) -> None:
        where = f"saved '{saved}', continue with --resume" if saved else "no checkpoint was saved"
        super().__init__(f"stopped by {signal.Signals(signum).name}; {where}")
        self.signum = signum


class StopRequests:
    """Context in which a signal of :data:`STOPPING` only sets ``signum``; the loop stops after its current step.

    Only waiting for a batch is ended after a few seconds, see :data:`dcn_det.data.loader.stop_waiting`.

    Args:
        say: receives a line when a signal arrives.
        insist: whether a second signal takes effect immediately. Launchers forward signals that the process has
            already received; with them, a second signal must be ignored.
    """

    def __init__(self, say: Callable[[str], None], insist: bool) -> None:
        self.signum: int | None = None
        self._say = say
        self._insist = insist
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        stop_waiting.clear()
        try:
            for signum in STOPPING:
                self._previous[signum] = signal.signal(signum, self._request)
        except ValueError:  # not the main thread: the caller handles signals
            self._previous.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
        stop_waiting.clear()

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            return
        self.signum = signum
        stop_waiting.set()
        again = ""
        if self._insist:
            signal.signal(signum, self._previous[signum])
            again = "; send it again to stop immediately"
        self._say(f"{signal.Signals(signum).name}: finishing this step and saving{again}")
