"""Anchor boxes, with the layout of the authors' released code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(base_size: int, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """Returns the anchors of the top-left feature cell.

    A square of ``base_size`` pixels is reshaped to each ratio at constant area, its sides are rounded to whole
    pixels, and the result is enlarged by each scale: with base 16 and scale 8, the ratios 0.5, 1 and 2 result in
    184x96, 128x128 and 88x176 pixels.

    Args:
        base_size: side of the square in pixels, usually the stride of the feature map.
        ratios: height over width.
        scales: factors on the sides.

    Returns:
        float32 (len(ratios) * len(scales), 4) half-open pixels, the scale changing fastest. All are centered on
        the square: at ``base_size / 2``, which is ``(base_size - 1) / 2`` with inclusive corners.
    """
    centre = base_size / 2
    boxes = []
    for ratio in ratios:
        # Halves are rounded to even, as in the authors' NumPy code: ratio 0.5 results in 23 x 11.5, then 23 x 12.
        width = round(math.sqrt(base_size * base_size / ratio))
        height = round(width * ratio)
        for scale in scales:
            half_w, half_h = width * scale / 2, height * scale / 2
            boxes.append([centre - half_w, centre - half_h, centre + half_w, centre + half_h])
    return torch.tensor(boxes, dtype=torch.float32)


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Repeats the anchors of one cell over a feature map.

    Args:
        cell: (A, 4) anchors of the top-left cell, half-open pixels.
        height, width: of the feature map, in cells.
        stride: pixels per cell.

    Returns:
        (height * width * A, 4) half-open pixels, ordered by row, then column, then anchor.
    """
    y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride
    x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1)
    return (shifts[:, :, None] + cell).reshape(-1, 4)
