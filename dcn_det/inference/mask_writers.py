"""Files of segmented images in the formats of other tools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from dcn_det.inference.segmenter import LabelMap
from dcn_det.inference.writers import Shape, ShapesWriter, TableWriter, Writer

_SMALLEST = 16
"""Area of the smallest region that becomes an annotation, in pixels."""


class ShareWriter(TableWriter):
    """``shares.csv``: the share of the pixels of each class that an image has."""

    file = "shares.csv"
    columns = ("class", "share")

    def rows(self, result: LabelMap) -> Iterator[Sequence[object]]:
        for name, share in result.shares().items():
            yield name, round(share, 6)


class PolygonWriter(ShapesWriter):
    """Outlines of connected regions for LabelMe, without holes; regions of a black class, such as Pascal VOC's
    background, and specks of a few pixels are left out."""

    default_score = 0.0

    def shapes(self, result: LabelMap) -> Iterator[Shape]:
        labels = result.above(self.score).labels
        for label, category in enumerate(result.categories):
            if not result.palette[label].any():
                continue
            mask = (labels == label).astype(np.uint8)
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            for outline in outlines:
                if cv2.contourArea(outline) >= _SMALLEST:
                    yield Shape(category.name, "polygon", [(float(x) + 0.5, float(y) + 0.5) for x, y in outline[:, 0]])


MASK_WRITERS: dict[str, type[Writer]] = {"csv": ShareWriter, "labelme": PolygonWriter}
"""Writers of segmented images by format."""
