"""Greedy non-maximum suppression in plain PyTorch operations."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box (4,) with others (N, 4); NaN where there is no union."""
    corner, end = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (end - corner).clamp(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + areas - shared)


def nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_keep: int | None
) -> Tensor:
    """Keeps the best box, drops those of its class that overlap it, and so on."""
    order = (scores + 0.0).argsort(stable=True, descending=True)  # adding 0 makes -0 and 0 equal to any sort
    usable = ~(boxes.isnan().any(1) | scores.isnan())
    order = order[usable[order]]
    kept = [order[:0]]
    most = len(boxes) if max_keep is None else max_keep
    while len(order) and len(kept) <= most:
        first, rest = order[:1], order[1:]
        kept.append(first)
        suppressed = overlaps(boxes[first[0]], boxes[rest]).double() > iou_threshold
        if labels is not None:
            suppressed &= labels[rest] == labels[first]
        order = rest[~suppressed]
    return torch.cat(kept)
