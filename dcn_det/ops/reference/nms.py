"""Non-maximum suppression in plain PyTorch operations, one kept box after the other.

The box of the highest score is kept, those that overlap it by more than the threshold are dropped, and so on
with the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def areas_of(boxes: Tensor) -> Tensor:
    """(N, 4) half-open boxes -> (N,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlaps_of(box: Tensor, boxes: Tensor) -> Tensor:
    """The intersection over the union of a box (4,) with each of (N, 4); NaN for two empty ones."""
    low = torch.maximum(box[:2], boxes[:, :2])
    high = torch.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    return common / (areas_of(box[None]) + areas_of(boxes) - common)


def threshold_as(dtype: torch.dtype, threshold: float) -> float:
    """The largest value of a dtype that is not above the threshold.

    PyTorch rounds a number to the dtype of the tensor it is compared with, up as often as down. An overlap of
    0.3 in float32 exceeds the float64 0.3, but not the float32 0.3.
    """
    nearest = torch.tensor(threshold, dtype=dtype)
    if nearest.double() > threshold:
        nearest = torch.nextafter(nearest, torch.zeros_like(nearest))
    return nearest.item()


def nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_keep: int | None
) -> Tensor:
    """Both public functions; without labels, boxes suppress each other across classes."""
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    threshold = threshold_as(dtype, iou_threshold)
    order = scores.to(dtype).argsort(descending=True, stable=True)
    order = order[~scores[order].isnan()]
    boxes = boxes.to(dtype)[order]
    labels = None if labels is None else labels[order]
    limit = len(order) if max_keep is None else max_keep
    kept: list[Tensor] = []
    while len(order) > 0 and len(kept) < limit:
        kept.append(order[0])
        suppressed = overlaps_of(boxes[0], boxes[1:]) > threshold
        if labels is not None:
            suppressed &= labels[1:] == labels[0]
            labels = labels[1:][~suppressed]
        order, boxes = order[1:][~suppressed], boxes[1:][~suppressed]
    return torch.stack(kept) if kept else order.new_empty(0)
