"""Pictures of semantic segmentation: classes over images with a legend, confusion matrices, IoU by class."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.categories import Category
from dcn_det.config.segmentation_data import IGNORED
from dcn_det.evaluation.segmentation import MaskMetrics
from dcn_det.images import Image, voc_palette
from dcn_det.visualize.plots import RIGHT, SHOWN_CLASSES, confusion_png, new_axes, png_bytes

_FONT, _SCALE, _ROW, _BOX = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 20, 12
_INK = (40, 40, 40)


def overlay(
    image: Image, labels: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None, opacity: float = 0.55
) -> Image:
    """Paints classes over an image, each region with a border in its full color.

    Args:
        image: uint8 (H, W, 3) RGB; not modified.
        labels: uint8 (H, W). Pixels with label 255 and those of a black class, such as Pascal VOC's background, are
            left as they are.
        palette: colors by label, uint8 (256, 3) RGB; None for those of Pascal VOC.
        opacity: of the color inside a region, from 0 to 1.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    colors = voc_palette() if palette is None else palette
    painted = colors.max(axis=1) > 0
    painted[IGNORED] = False
    inside = painted[labels]
    paint = colors[labels]
    blended = cv2.addWeighted(image, 1 - opacity, paint, opacity, 0)
    result = np.where(inside[..., None], blended, image)
    border = np.zeros(labels.shape, dtype=np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    for part, different in ((np.s_[:, 1:], across), (np.s_[:, :-1], across), (np.s_[1:], down), (np.s_[:-1], down)):
        border[part] |= different
    border &= inside
    result[border] = paint[border]
    return np.asarray(result, dtype=np.uint8)


def legend(entries: Sequence[tuple[str, Sequence[int]]], height: int) -> Image:
    """Draws names next to their colors, in as many columns as the height requires.

    Args:
        entries: names and RGB colors.
        height: of the result in pixels.

    Returns:
        uint8 (height, W, 3) RGB, black on white.
    """
    rows = max((height - 8) // _ROW, 1)
    columns = [entries[start : start + rows] for start in range(0, len(entries), rows)] or [[]]
    drawn = []
    for column in columns:
        texts = [cv2.getTextSize(name, _FONT, _SCALE, 1)[0][0] for name, _ in column]
        canvas = np.full((height, max(texts, default=0) + _BOX + 24, 3), 255, dtype=np.uint8)
        for row, (name, color) in enumerate(column):
            top = 6 + row * _ROW
            corners = (8, top), (8 + _BOX, top + _BOX)
            cv2.rectangle(canvas, *corners, tuple(map(int, color)), -1)
            cv2.rectangle(canvas, *corners, _INK, 1)
            cv2.putText(canvas, name, (16 + _BOX, top + _BOX - 2), _FONT, _SCALE, _INK, 1, cv2.LINE_AA)
        drawn.append(canvas)
    return np.hstack(drawn)


def draw_masks(
    image: Image,
    labels: NDArray[np.uint8],
    categories: Sequence[Category],
    palette: NDArray[np.uint8] | None = None,
    opacity: float = 0.55,
) -> Image:
    """Paints classes over an image and adds a legend on its right, largest class first.

    Args:
        image, labels, palette, opacity: see :func:`overlay`.
        categories: by label. Only those that occur are in the legend, with their share of the labelled pixels.

    Returns:
        uint8 (H, W', 3) RGB, wider than the image.
    """
    colors = voc_palette() if palette is None else palette
    counts = np.bincount(labels.ravel(), minlength=256)[: len(categories)]
    total = max(int(counts.sum()), 1)
    order = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label]]
    entries = [
        (f"{categories[label].name}: {_percent(counts[label] / total)}", colors[label].tolist()) for label in order
    ]
    return np.hstack([overlay(image, labels, colors, opacity), legend(entries, image.shape[0])])


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"


def confusion_picture(metrics: MaskMetrics) -> bytes:
    """Draws the confusion matrix as shares of the pixels of each true class; returns a PNG file.

    With more than 20 classes, those that are confused most are shown.
    """
    counts = metrics.confusion
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    shown = sorted(np.argsort(-wrong, kind="stable")[:SHOWN_CLASSES].tolist())
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = shares[np.ix_(shown, shown)]
    texts = [[f"{100 * share:.0f}" if share >= 0.005 else "" for share in row] for row in shares.tolist()]
    names = list(metrics.per_class)
    return confusion_png(shares, texts, [names[i] for i in shown], "predicted class", "true class, % of its pixels")


def iou_picture(metrics: MaskMetrics) -> bytes:
    """Draws the IoU of each class, best first; returns a PNG file. Classes that do not occur are left out."""
    found = sorted(((value, name) for name, value in metrics.per_class.items() if value == value), reverse=True)
    figure, axes = new_axes(5.0, 1.0 + 0.22 * max(len(found), 1))
    values = [value for value, _ in found]
    bars = axes.barh(range(len(found)), values, color=RIGHT)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, fontsize=8)
    # A "$" in a class name does not start a formula.
    axes.set_yticks(range(len(found)), [name for _, name in found], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="IoU", xlim=(0, 1.1))
    return png_bytes(figure)
