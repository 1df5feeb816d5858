"""Input size and anchors that fit the boxes of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcn_det.config.data import ResizeConfig
from dcn_det.config.model import AnchorsConfig
from dcn_det.data.anchor_check import AnchorCheck
from dcn_det.data.records import Records
from dcn_det.models.anchors import cell_anchors

LARGER = 4 / 3
"""By which the input may exceed that of the base for the sake of small objects."""
LONGEST = 5 / 3
"""Maximum ratio of the sides of the input."""
MARGIN = 0.015
"""Mean IoU that a larger number of anchors must gain."""
_BOXES, _CHECKED = 4000, 400
"""Boxes for the search, and for the comparison on the grid of the feature map."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """Boxes to fit: corners (M, 4) in pixels inside their image, and the height and width (M, 2) of the image."""

    corners: Floats
    images: Floats

    @staticmethod
    def of(records: Records, images: NDArray[np.bool_]) -> Boxes:
        """Returns the boxes of some images (N,) that are trained on, a random part of very many."""
        limits = records.sizes[records.owners][:, [1, 0, 1, 0]]
        corners = np.clip(records.boxes, 0, limits)
        good = ((corners[:, 2:] - corners[:, :2]) >= 1).all(axis=1) & ~records.crowd & images[records.owners]
        rows = np.flatnonzero(good)
        if len(rows) > _BOXES:
            rows = np.sort(np.random.default_rng(0).choice(rows, _BOXES, replace=False))
        return Boxes(corners[rows], records.sizes[records.owners[rows]].astype(np.float64))

    def sides(self, resize: ResizeConfig) -> Floats:
        """Returns widths and heights (M, 2) after resizing."""
        short, long = self.images.min(axis=1), self.images.max(axis=1)
        scale = resize.short_side / short
        scale = np.where(np.round(scale * long) > resize.max_side, resize.max_side / long, scale)
        return (self.corners[:, 2:] - self.corners[:, :2]) * scale[:, None]


def fit_size(boxes: Boxes, base: ResizeConfig, stride: int) -> tuple[ResizeConfig, str]:
    """Returns an input size in which small boxes cover two cells of the feature map, and the reason.

    Args:
        boxes: at least one.
        base: size to start from; the result is up to a third larger.
        stride: of the finest feature map, in pixels.
    """
    short, long = np.median(boxes.images.min(axis=1)), np.median(boxes.images.max(axis=1))
    aspect = float(np.quantile(boxes.images.max(axis=1) / boxes.images.min(axis=1), 0.95))
    sides = boxes.sides(ResizeConfig(short_side=base.short_side, max_side=base.short_side * 10))
    small = float(np.quantile(np.sqrt(sides.prod(axis=1)), 0.1))
    factor = min(max(2 * stride / small, 1.0), LARGER)
    side = base.short_side if factor == 1 else int(-(-base.short_side * factor // 32) * 32)
    size = ResizeConfig(short_side=side, max_side=int(np.ceil(side * min(aspect, LONGEST))))
    why = f"images are {short:g}x{long:g}, a tenth of the boxes is smaller than {small * side / base.short_side:.0f}"
    return size, f"{why} pixels after resizing" + (f" (base: {small:.0f})" if side != base.short_side else "")


@dataclass(frozen=True)
class AnchorFit:
    """Anchors for boxes.

    Attributes:
        scales, ratios: see ``AnchorsConfig``; those of the base if nothing fits better by ``MARGIN``.
        changed: whether they differ from those of the base.
        before, after: mean IoU of boxes with the best anchor on the feature maps, for the base and the result.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    changed: bool
    before: float
    after: float


def fit_anchors(boxes: Boxes, resize: ResizeConfig, base: AnchorsConfig, strides: Sequence[int]) -> AnchorFit:
    """Chooses scales and ratios by the mean IoU with the best anchor of the same center.

    Of the anchors within ``MARGIN`` of the best, the fewest are chosen; those of the base if they are among them.

    Args:
        boxes: at least one.
        resize: size of the input.
        base: anchors to start from.
        strides: of the feature maps in pixels; on a pyramid, each level has anchors of one scale.
    """
    sides = boxes.sides(resize)
    sizes, shapes = np.sqrt(sides.prod(axis=1)), sides[:, 1] / sides[:, 0]
    unit = strides[0] if base.base_size == "stride" else base.base_size
    scales: list[tuple[float, ...]] = [(float(each),) for each in (2, 3, 4, 5, 6, 8, 10, 12, 16)]
    if len(strides) == 1:
        scales = [_centers(sizes / unit, count) for count in (1, 2, 3, 4, 5)]
    ratios = [tuple(base.ratios), *(_centers(shapes, count) for count in (1, 2, 3))]
    candidates = list(dict.fromkeys((scale, ratio) for scale in scales for ratio in ratios))
    own = (tuple(map(float, base.scales)), tuple(base.ratios))
    ious = {each: _mean_iou(sides, _sides(*each, base, strides)) for each in (*candidates, own)}
    enough = [each for each in ious if ious[each] >= max(ious.values()) - MARGIN]
    chosen = own if own in enough else min(enough, key=lambda each: (len(each[0]) * len(each[1]), -ious[each]))
    before, after = (_on_grid(boxes, resize, each, base, strides) for each in (own, chosen))
    return AnchorFit(*chosen, chosen != own, before, after)


def _centers(values: Floats, count: int) -> tuple[float, ...]:
    """Returns cluster centers (k-means of the logarithms) with two digits, ascending; at most ``count``."""
    logs = np.log(values)
    centers = np.quantile(logs, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(logs[:, None] - centers).argmin(axis=1)
        centers = np.array([logs[nearest == i].mean() if (nearest == i).any() else c for i, c in enumerate(centers)])
    return tuple(sorted({float(f"{value:.2g}") for value in np.exp(centers).tolist()}))


def _cells(
    scales: Sequence[float], ratios: Sequence[float], base: AnchorsConfig, strides: Sequence[int]
) -> list[Floats]:
    units = [stride if base.base_size == "stride" else base.base_size for stride in strides]
    return [cell_anchors(unit, ratios, scales).double().numpy() for unit in units]


def _sides(scales: Sequence[float], ratios: Sequence[float], base: AnchorsConfig, strides: Sequence[int]) -> Floats:
    cells = np.concatenate(_cells(scales, ratios, base, strides))
    return np.asarray(cells[:, 2:] - cells[:, :2])


def _mean_iou(sides: Floats, anchors: Floats) -> float:
    overlap = np.minimum(sides[:, None], anchors).prod(axis=2)
    union = sides.prod(axis=1)[:, None] + anchors.prod(axis=1) - overlap
    return float((overlap / union).max(axis=1).mean())


def _on_grid(
    boxes: Boxes,
    resize: ResizeConfig,
    shape: tuple[tuple[float, ...], tuple[float, ...]],
    base: AnchorsConfig,
    strides: Sequence[int],
) -> float:
    cells = np.stack(_cells(*shape, base, strides))
    check = AnchorCheck(cells, tuple(strides), resize.short_side, resize.max_side)
    rows = range(0, len(boxes.corners), max(1, len(boxes.corners) // _CHECKED))
    sizes = boxes.images.astype(int).tolist()
    return float(np.mean([check.best_iou(boxes.corners[row], *sizes[row]) for row in rows]))
