"""Folders of images and of masks, and the embedded sample set in that form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dcn_det.categories import Category
from dcn_det.config.segmentation_data import MaskFoldersConfig
from dcn_det.data.findings import Findings
from dcn_det.data.masks.base import MaskFormat, Pair
from dcn_det.data.sample import holds_sample_masks, make_sample_masks
from dcn_det.errors import UserError
from dcn_det.images import SUFFIXES
from dcn_det.progress import Count

if TYPE_CHECKING:
    from dcn_det.config.segmentation_data import MaskSplitConfig


class MaskFiles(MaskFormat):
    """Images at any depth below a folder, and PNG files at the same paths below another."""

    data: MaskFoldersConfig
    paths: MaskSplitConfig

    @property
    def source(self) -> str | Path:
        return self.root / self.paths.images

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(Category(label, name) for label, name in enumerate(self.data.classes))

    @property
    def ignored(self) -> tuple[int, ...]:
        return self.data.ignored

    def pairs(self, findings: Findings) -> list[Pair]:
        images, masks = self.paths.images, self.paths.masks
        pairs = []
        for path in _below(self.root, images, f"data.{self.split}.images", SUFFIXES):
            name = str(PurePosixPath(path).with_suffix(""))
            pairs.append(Pair(name, f"{images}/{path}", None if masks is None else f"{masks}/{name}.png"))
        if masks is not None:
            known = {pair.mask for pair in pairs}
            for path in _below(self.root, masks, f"data.{self.split}.masks", {".png"}):
                if f"{masks}/{path}" not in known:
                    findings.note("mask without an image", f"{masks}/{path}")
        return pairs


class SampleMasks(MaskFiles):
    """Embedded sample data set, written to ``data.root`` on first use."""

    def prepare(self, progress: Count | None = None) -> None:
        if not holds_sample_masks(self.root):
            make_sample_masks(self.root, progress=progress)


def _below(root: Path, folder: str, setting: str, suffixes: set[str]) -> Iterator[str]:
    """Yields the paths of files below a folder, relative to it, in order."""
    top = root / folder
    if not top.is_dir():
        raise UserError(f"{setting}: no folder {top} (data.root is {root}); see datasets/README.md for the layout")

    def refuse(error: OSError) -> None:
        raise UserError(f"{setting}: cannot read folder {error.filename}: {error.strerror}")

    for parent, folders, files in os.walk(top, onerror=refuse, followlinks=True):
        folders.sort()
        for file in sorted(files):
            if Path(file).suffix.lower() in suffixes and not file.startswith("."):
                yield Path(parent, file).relative_to(top).as_posix()
