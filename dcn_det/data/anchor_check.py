"""Overlap of anchors with the boxes of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZES = (16, 32, 64, 96, 128, 256, 512)
"""Upper edges of the box-size histogram (square root of the area), in pixels of the original image."""


@dataclass(frozen=True)
class AnchorCheck:
    """Anchors of a detector, to compare with boxes of resized images.

    Attributes:
        anchors: (levels, A, 4), half-open, of the top-left cell of each feature map.
        strides: strides of the feature maps in pixels.
        short_side, max_side: sizes for resizing in pixels.
    """

    anchors: NDArray[np.float64]
    strides: tuple[int, ...]
    short_side: int
    max_side: int

    def best_iou(self, box: NDArray[np.float64], height: int, width: int) -> float:
        """Returns the highest IoU of all anchors with a half-open box of an image of ``height`` x ``width`` pixels."""
        scale = self.short_side / min(height, width)
        if round(scale * max(height, width)) > self.max_side:
            scale = self.max_side / max(height, width)
        levels = zip(self.anchors, self.strides, strict=True)
        return max(_best_iou(box * scale, each, stride, height * scale, width * scale) for each, stride in levels)


def _best_iou(
    box: NDArray[np.float64], anchors: NDArray[np.float64], stride: int, height: float, width: float
) -> float:
    sizes = anchors[:, 2:] - anchors[:, :2]
    best_overlap = np.ones(len(sizes))
    for axis, extent in ((0, width), (1, height)):
        cells = np.arange(max(int(extent // stride), 1)) * stride
        start = anchors[:, axis, None] + cells  # anchors x cells: the axes are independent
        end = anchors[:, axis + 2, None] + cells
        overlap = np.minimum(end, box[axis + 2]) - np.maximum(start, box[axis])
        best_overlap *= np.maximum(overlap, 0).max(axis=1)
    union = sizes.prod(axis=1) + (box[2:] - box[:2]).prod() - best_overlap
    return float((best_overlap / union).max())
