"""Checkpoints of a run on disk."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcn_det.errors import UserError
from dcn_det.weights import checkpoint


class CheckpointStore:
    """Checkpoints of one run: the most recent ones, and the best by a metric.

    ``latest.pth`` links to the newest. It is replaced after its new target is complete and before an old target is
    removed, so it always points to a complete file.

    Args:
        folder: the run's folder.
        keep: number of most recent checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def best_path(self) -> Path:
        return self.folder / "best.pth"

    @property
    def latest_path(self) -> Path:
        return self.folder / "latest.pth"

    def path(self, iteration: int) -> Path:
        return self.folder / f"iteration_{iteration:08d}.pth"

    def saved(self) -> list[Path]:
        """Returns the checkpoints by iteration, oldest first."""
        found = [path for path in self.folder.glob("iteration_*.pth") if re.fullmatch(r"iteration_\d{8}", path.stem)]
        return sorted(found)

    def save(self, iteration: int, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, points ``latest.pth`` to it and removes the oldest ones beyond ``keep``.

        Raises:
            OSError: the file cannot be written; earlier checkpoints are unchanged.
        """
        path = self.path(iteration)
        checkpoint.save(path, state)
        self._point_at(path)
        for old in self.saved()[: -self.keep]:
            old.unlink()
        return path

    def save_best(self, state: Mapping[str, Any]) -> None:
        checkpoint.save(self.best_path, state)

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Returns path and content of the newest readable checkpoint, or None.

        Damaged checkpoints are renamed to ``*.damaged``, with a warning for each.
        """
        for path in reversed(self.saved()):
            try:
                state = checkpoint.load(path)
            except UserError as error:
                aside = path.with_suffix(".damaged")
                path.replace(aside)
                warnings.warn(
                    f"{error}; using the previous checkpoint (this one was renamed to '{aside}')", stacklevel=2
                )
                continue
            self._point_at(path)
            return path, state
        self.latest_path.unlink(missing_ok=True)
        return None

    def tidy(self) -> None:
        """Removes temporary files of interrupted saves."""
        for left in self.folder.glob(".*.pth.*.tmp"):
            left.unlink(missing_ok=True)

    def _point_at(self, path: Path) -> None:
        temporary = self.folder / f".latest.{os.getpid()}.tmp"
        with contextlib.suppress(OSError):  # some file systems have no links; resuming does not need them
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(path.name)
            temporary.replace(self.latest_path)
