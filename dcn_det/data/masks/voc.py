"""Pascal VOC 2012, with the masks of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dcn_det.categories import Category
from dcn_det.data.findings import Findings
from dcn_det.data.formats.voc import VOC_CLASSES
from dcn_det.data.formats.voc_files import list_images
from dcn_det.data.masks.base import MaskFormat, Pair
from dcn_det.data.records import named_together
from dcn_det.errors import UserError
from dcn_det.files import read_text

if TYPE_CHECKING:
    from dcn_det.config.segmentation_data import VocMaskSplitConfig


class VocMasks(MaskFormat):
    """Images of image sets, ``VOC2012/JPEGImages`` with the masks in ``SegmentationClass``, and of lists of the
    Semantic Boundaries Dataset, ``img`` with the masks in ``cls``.

    Objects in the masks of Pascal VOC have a border of ignored pixels; those in the other masks have none.
    """

    paths: VocMaskSplitConfig

    @property
    def source(self) -> str | Path:
        return named_together([self.root / each for each in (*self.paths.sets, *self.paths.sbd)])

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(Category(label, name) for label, name in enumerate(("background", *VOC_CLASSES)))

    def pairs(self, findings: Findings) -> list[Pair]:
        without = {name for _, name in list_images(self.root, self.paths.without)} if self.paths.without else set()
        found: dict[str, Pair] = {}
        for name in self.paths.sbd:
            folder = Path(name).parent
            for image in _names(self.root / name, "data.train.sbd" if self.split == "train" else "data.test.sbd"):
                found[image] = Pair(image, f"{folder}/img/{image}.jpg", f"{folder}/cls/{image}.mat")
        for base, image in list_images(self.root, self.paths.sets):
            folder = base.relative_to(self.root)
            found[image] = Pair(image, f"{folder}/JPEGImages/{image}.jpg", f"{folder}/SegmentationClass/{image}.png")
        return [pair for name, pair in found.items() if name not in without]


def _names(path: Path, setting: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"{setting}: no list {path}; see datasets/README.md for the layout")
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
