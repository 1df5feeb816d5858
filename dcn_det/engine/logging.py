"""Logs of a run: console, text file, JSON lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from dcn_det.console import print_line
from dcn_det.errors import UserError, printable
from dcn_det.files import write_bytes

TEXT, NUMBERS = "log.txt", "metrics.jsonl"
"""Names of files in the folder of a run."""


class Log:
    """Receives the text, numbers and images of a run, and discards them: for all processes but the main one."""

    def say(self, text: str) -> None:
        """Logs one or more lines of text."""

    def scalars(self, iteration: int, values: Mapping[str, float], kind: str) -> None:
        """Logs the numbers of one iteration.

        Args:
            iteration: completed optimizer steps.
            values: name -> number; names without a slash are grouped under ``kind``.
            kind: ``train`` or ``test``.
        """

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        """Logs an image, uint8 (H, W, 3) RGB."""

    def histogram(self, iteration: int, name: str, values: np.ndarray) -> None:
        """Logs the distribution of finite numbers."""

    def close(self) -> None:
        """Flushes and closes the files."""


class RunLog(Log):
    """Writes to the console, ``log.txt``, ``metrics.jsonl`` and TensorBoard files in the run's folder.

    A full disk, a closed console or a removed folder does not end the run: what cannot be written is dropped, with one
    warning where output is still possible; the folder is created again.

    Args:
        folder: existing folder; its files are appended to, so that a resumed run continues them.
        quiet: print nothing to the console.
        iteration: iteration of the checkpoint that is resumed; records of later iterations are removed, since they
            will be logged again.
        wandb: Weights & Biases project that also receives numbers and images.
        config: config as plain containers, for Weights & Biases.
    """

    def __init__(
        self,
        folder: Path,
        quiet: bool = False,
        iteration: int | None = None,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder
        self._quiet = quiet
        self._full = False
        numbers = folder / NUMBERS
        unreadable = _forget_after(numbers, iteration) if iteration is not None and numbers.exists() else 0
        self._open(None if iteration is None else iteration + 1)
        self._wandb = _wandb_run(wandb, folder, config) if wandb else None
        if unreadable:
            self.say(f"warning: {unreadable} lines of '{numbers}' cannot be read and were removed")

    def _open(self, purge_step: int | None) -> None:
        self._text: IO[str] = (self._folder / TEXT).open("a", buffering=1, encoding="utf-8")
        self._json: IO[str] = (self._folder / NUMBERS).open("a", buffering=1, encoding="utf-8")
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=purge_step)

    def say(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._restore()
        for line in printable(text).splitlines():
            if not self._quiet and (problem := print_line(f"{stamp} {line}", sys.stdout)):
                self._quiet = True
                self._warn(f"the console is lost ({problem}); the output continues in '{self._folder / TEXT}'")
            self._write(partial(self._text.write, f"{stamp} {line}\n"))

    def scalars(self, iteration: int, values: Mapping[str, float], kind: str) -> None:
        self._restore()
        defined = {name: value for name, value in values.items() if math.isfinite(value)}
        record: dict[str, Any] = {"kind": kind, "iteration": iteration, "time": round(time.time(), 3)}
        # JSON has no NaN: non-finite values become null.
        line = json.dumps(record | dict.fromkeys(values) | defined) + "\n"
        self._write(partial(self._json.write, line))
        grouped = {name if "/" in name else f"{kind}/{name}": value for name, value in defined.items()}
        for name, value in grouped.items():
            self._write(partial(self._board.add_scalar, name, value, iteration))
        if self._wandb is not None:
            self._wandb.log(grouped, step=iteration)

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        self._write(partial(self._board.add_image, name, image, iteration, dataformats="HWC"))
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(image)}, step=iteration)

    def histogram(self, iteration: int, name: str, values: np.ndarray) -> None:
        self._write(partial(self._board.add_histogram, name, values, iteration))
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Histogram(values)}, step=iteration)

    def close(self) -> None:
        self._close()
        if self._wandb is not None:
            self._wandb.finish()

    def _close(self) -> None:
        for part in (self._board, self._text, self._json):
            self._write(part.close)

    def _restore(self) -> None:
        """Opens the files again if someone has removed them; what they contained is lost."""
        if (self._folder / TEXT).exists():
            return
        self._close()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open(None)
        except OSError as error:
            self._complain(error)
            return
        self._warn(f"the files in '{self._folder}' were removed; logs and checkpoints continue in new ones")

    def _warn(self, text: str) -> None:
        self._write(partial(self._text.write, f"{time.strftime('%H:%M:%S')} warning: {text}\n"))
        print_line(f"warning: {text}", sys.stderr)

    def _write(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the file is closed since it could not be opened again
            self._complain(error)

    def _complain(self, error: OSError | ValueError) -> None:
        if not self._full:
            self._full = True
            reason = getattr(error, "strerror", None) or error
            print_line(f"warning: cannot write the log of the run in '{self._folder}': {reason}", sys.stderr)


def _forget_after(path: Path, iteration: int) -> int:
    """Removes records of later iterations, and lines that are no records; returns the number of the latter.

    A last line that a kill truncated does not count.
    """
    kept, unreadable = [], 0
    *lines, _truncated = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            later = json.loads(line)["iteration"] > iteration
        except (ValueError, TypeError, KeyError, RecursionError):
            unreadable += 1
            continue
        if not later:
            kept.append(line + b"\n")
    write_bytes(path, b"".join(kept))
    return unreadable


def _wandb_run(project: str, folder: Path, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"train.wandb is '{project}', but wandb is not installed: pip install \"dcn_det[wandb]\""
        ) from error
    # The id depends only on the folder, so that a resumed run continues the same record.
    name = folder.resolve()
    key = hashlib.sha256(str(name).encode()).hexdigest()[:16]
    return wandb.init(
        project=project, name=name.name, id=key, resume="allow", dir=str(folder), config=dict(config or {})
    )
