"""What a run says: a line on the console, a line of JSON, TensorBoard."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter


def duration(seconds: float) -> str:
    """``h:mm:ss``, with days in front when there are any."""
    return str(datetime.timedelta(seconds=max(0, round(seconds))))


class RunLog:
    """Writes to the console, ``log.txt``, ``metrics.jsonl`` and TensorBoard files in the run's folder.

    Args:
        folder: exists; files in it are appended to, so that a resumed run continues them.
        quiet: nothing on the console.
    """

    def __init__(self, folder: Path, quiet: bool = False) -> None:
        self._quiet = quiet
        self._text: IO[str] = (folder / "log.txt").open("a", buffering=1)
        self._json: IO[str] = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def say(self, text: str) -> None:
        """One or more lines for people."""
        stamp = time.strftime("%H:%M:%S")
        for line in text.splitlines():
            if not self._quiet:
                print(f"{stamp} {line}", flush=True)
            self._text.write(f"{stamp} {line}\n")

    def scalars(self, iteration: int, values: Mapping[str, float], kind: str) -> None:
        """Numbers of one iteration; what is not finite is null in JSON.

        Args:
            iteration: completed optimizer steps.
            values: name -> number; a name with a slash keeps its own TensorBoard group, others go under ``kind``.
            kind: ``train`` or ``test``, written into the JSON line.
        """
        defined = {name: value for name, value in values.items() if math.isfinite(value)}
        record: dict[str, Any] = {"kind": kind, "iteration": iteration, "time": round(time.time(), 3)}
        self._json.write(json.dumps(record | dict.fromkeys(values) | defined) + "\n")
        for name, value in defined.items():
            self._board.add_scalar(name if "/" in name else f"{kind}/{name}", value, iteration)

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 (H, W, 3) RGB."""
        self._board.add_image(name, image, iteration, dataformats="HWC")

    def close(self) -> None:
        self._board.close()
        self._text.close()
        self._json.close()


def progress_line(done: int, total: int, started: float, what: str) -> str:
    """``what done/total, n/s, eta h:mm:ss`` for work that began at ``started`` (``time.monotonic``)."""
    elapsed = max(time.monotonic() - started, 1e-9)
    rate = done / elapsed
    eta = duration((total - done) / rate) if done else "?"
    return f"{what} {done}/{total}  {rate:.1f}/s  eta {eta}"
