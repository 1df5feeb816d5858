"""Cityscapes, in the folders of its download (Cordts et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dcn_det.categories import Category
from dcn_det.config.segmentation_data import UNLABELLED
from dcn_det.data.findings import Findings
from dcn_det.data.masks.base import MaskFormat, Pair
from dcn_det.data.records import named_together
from dcn_det.errors import UserError

if TYPE_CHECKING:
    from dcn_det.config.segmentation_data import CityscapesSplitConfig

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""Ids of the classes that count, in the order of the labels (``labels.py`` of the data set's scripts)."""
LABEL_IDS = 34
"""Number of label ids; those that are not in ``CLASSES`` are ignored."""

_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


class Cityscapes(MaskFormat):
    """Images ``leftImg8bit/<set>/<city>/<name>_leftImg8bit.png`` and masks
    ``gtFine/<set>/<city>/<name>_gtFine_labelIds.png``, whose values are label ids.

    The set ``test`` has no masks: the files in its place have no labels.
    """

    paths: CityscapesSplitConfig

    @property
    def source(self) -> str | Path:
        return named_together([self.root / "leftImg8bit" / each for each in self.paths.sets])

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(Category(value, name) for name, value in CLASSES.items())

    @property
    def ignored(self) -> tuple[int, ...]:
        return (*(value for value in range(LABEL_IDS) if value not in CLASSES.values()), 255)

    def pairs(self, findings: Findings) -> list[Pair]:
        pairs = []
        for each in self.paths.sets:
            folder = self.root / "leftImg8bit" / each
            if not folder.is_dir():
                raise UserError(
                    f"data.{self.split}.sets: no folder {folder} (data.root is {self.root}); "
                    "see datasets/README.md for the layout"
                )
            for path in folder.glob(f"*/*{_IMAGE}"):
                city, name = path.parent.name, path.name.removesuffix(_IMAGE)
                mask = None if each == UNLABELLED else f"gtFine/{each}/{city}/{name}{_MASK}"
                pairs.append(Pair(name, f"leftImg8bit/{each}/{city}/{path.name}", mask))
        return pairs
