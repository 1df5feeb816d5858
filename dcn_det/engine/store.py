"""The checkpoints of a run on disk."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcn_det.errors import UserError
from dcn_det.weights import checkpoint


class CheckpointStore:
    """The checkpoints of one run: the newest few by iteration, and the best by a metric.

    Args:
        folder: the run's folder.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def best_path(self) -> Path:
        return self.folder / "best.pth"

    def path(self, iteration: int) -> Path:
        return self.folder / f"iteration_{iteration:08d}.pth"

    def saved(self) -> list[Path]:
        """Checkpoints by iteration, oldest first."""
        found = [path for path in self.folder.glob("iteration_*.pth") if re.fullmatch(r"iteration_\d{8}", path.stem)]
        return sorted(found)

    def save(self, iteration: int, state: Mapping[str, Any]) -> Path:
        path = self.path(iteration)
        checkpoint.save(path, state)
        for old in self.saved()[: -self.keep]:
            old.unlink()
        return path

    def save_best(self, state: Mapping[str, Any]) -> None:
        checkpoint.save(self.best_path, state)

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read; warns about each newer one that cannot."""
        for path in reversed(self.saved()):
            try:
                return path, checkpoint.load(path)
            except UserError as error:
                warnings.warn(f"{error}; going back to the one before", stacklevel=2)
        return None
