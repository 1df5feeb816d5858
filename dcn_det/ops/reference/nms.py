"""Non-maximum suppression in plain PyTorch operations, a block of boxes at a time.

In order of decreasing score, a box is kept unless its overlap with a kept box exceeds the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256


def areas_of(boxes: Tensor) -> Tensor:
    """Areas, (N,), of half-open boxes, (N, 4)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps_of(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersections over unions, (N, M), of (N, 4) and (M, 4) boxes; NaN for two empty boxes."""
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    common = width * height
    return common / (areas_of(boxes)[:, None] + areas_of(others) - common)


def threshold_as(dtype: torch.dtype, threshold: float) -> float:
    """The largest value of a dtype that does not exceed the threshold.

    PyTorch rounds a number to the dtype of the tensor it is compared with, up or down: the float32 overlap 0.3
    exceeds the float64 number 0.3, but not the float32 number 0.3.
    """
    nearest = torch.tensor(threshold, dtype=dtype)
    if nearest.double() > threshold:
        nearest = torch.nextafter(nearest, torch.zeros_like(nearest))
    return nearest.item()


def unsuppressed(suppresses: Tensor) -> Tensor:
    """Which of N boxes are kept, (N,), given whether each box (row) suppresses each later one (column).

    Every pass settles at least one more box, from the left, so that the loop ends.
    """
    kept = torch.ones_like(suppresses[0])
    while True:
        settled = ~(suppresses & kept[:, None]).any(0)
        if torch.equal(settled, kept):
            return kept
        kept = settled


def nms(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_keep: int | None) -> Tensor:
    """Implements both public functions; without labels, all boxes form one class."""
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    boxes, threshold = boxes.to(dtype), threshold_as(dtype, iou_threshold)

    def suppresses(some: Tensor, others: Tensor) -> Tensor:
        exceeds = overlaps_of(boxes[some], boxes[others]) > threshold
        return exceeds if labels is None else exceeds & (labels[some][:, None] == labels[others])

    rest = scores.to(dtype).argsort(descending=True, stable=True)
    rest = rest[~scores[rest].isnan()]
    kept = rest[:0]
    while len(rest) > 0 and (max_keep is None or len(kept) < max_keep):
        block, rest = rest[:BLOCK], rest[BLOCK:]
        block = block[unsuppressed(suppresses(block, block).triu(1))]
        rest = rest[~suppresses(block, rest).any(0)]
        kept = torch.cat([kept, block])
    return kept[:max_keep].clone()
