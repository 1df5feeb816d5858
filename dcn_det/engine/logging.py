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

from dcn_det.errors import UserError
from dcn_det.files import write_text


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

    def close(self) -> None:
        """Flushes and closes the files."""


class RunLog(Log):
    """Writes to the console, ``log.txt``, ``metrics.jsonl`` and TensorBoard files in the run's folder.

    A full disk does not end the run: output that cannot be written is dropped, with one warning.

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
        self._quiet = quiet
        self._full = False
        numbers = folder / "metrics.jsonl"
        if iteration is not None and numbers.exists():
            _forget_after(numbers, iteration)
        self._text: IO[str] = (folder / "log.txt").open("a", buffering=1)
        self._json: IO[str] = numbers.open("a", buffering=1)
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if iteration is None else iteration + 1
        )
        self._wandb = _wandb_run(wandb, folder, config) if wandb else None

    def say(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        for line in text.splitlines():
            if not self._quiet:
                print(f"{stamp} {line}", flush=True)
            self._write(partial(self._text.write, f"{stamp} {line}\n"))

    def scalars(self, iteration: int, values: Mapping[str, float], kind: str) -> None:
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

    def close(self) -> None:
        for part in (self._board, self._text, self._json):
            self._write(part.close)
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            if not self._full:
                self._full = True
                print(f"warning: cannot write the log of the run: {error.strerror or error}", file=sys.stderr)


def _forget_after(path: Path, iteration: int) -> None:
    """Removes records of later iterations, and a last line that a kill truncated."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["iteration"] <= iteration:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


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
