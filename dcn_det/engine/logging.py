"""What a run says: a line on the console, a line of JSON, TensorBoard."""

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
    """Where lines, numbers and pictures of a run go; this one drops them, as all processes but the main one do."""

    def say(self, text: str) -> None:
        """One or more lines for people."""

    def scalars(self, iteration: int, values: Mapping[str, float], kind: str) -> None:
        """Numbers of one iteration.

        Args:
            iteration: completed optimizer steps.
            values: name -> number; a name with a slash is a group of its own, others go under ``kind``.
            kind: ``train`` or ``test``.
        """

    def image(self, iteration: int, name: str, image: np.ndarray) -> None:
        """A picture, uint8 (H, W, 3) RGB."""

    def close(self) -> None:
        """Finishes the files."""


class RunLog(Log):
    """Writes to the console, ``log.txt``, ``metrics.jsonl`` and TensorBoard files in the run's folder.

    A disk that is full does not end a run: what cannot be written is dropped, with one warning.

    Args:
        folder: exists; files in it are appended to, so that a resumed run continues them.
        quiet: nothing on the console.
        iteration: of the checkpoint the run goes on from; numbers of later iterations, which will come again, are
            taken out.
        wandb: Weights & Biases project that numbers and pictures go to as well.
        config: plain containers, for Weights & Biases.
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
        # What is not finite is null: JSON has no NaN.
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
                print(f"warning: the run's log cannot be written: {error.strerror or error}", file=sys.stderr)


def _forget_after(path: Path, iteration: int) -> None:
    """Drops the records of later iterations, and a last line that a kill cut short."""
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
    # The same folder is the same run there, so that a resumption continues it.
    name = folder.resolve()
    key = hashlib.sha256(str(name).encode()).hexdigest()[:16]
    return wandb.init(
        project=project, name=name.name, id=key, resume="allow", dir=str(folder), config=dict(config or {})
    )
