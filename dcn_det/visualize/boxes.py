"""Boxes with labels drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from dcn_det.structures import Detections, Target


def color(label: int) -> tuple[int, int, int]:
    """Returns a vivid RGB color (0-255) per class; adjacent labels differ most (golden-ratio steps of the hue)."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """Draws boxes with captions.

    Args:
        image: uint8 (H, W, 3) RGB; not modified.
        boxes: (N, 4) half-open xyxy, in pixels of ``image``.
        labels: class index of each box.
        names: class names.
        scores: score of each box, appended to its caption.

    Returns:
        uint8 (H, W, 3) RGB copy of the image with the boxes.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    size = max(min(height, width), 1)
    thick = max(1, round(size / 300))
    font_scale = max(0.35, size / 1000)
    for index in range(len(labels) - 1, -1, -1):  # the best score comes first and is drawn on top
        x1, y1, x2, y2 = (round(float(v)) for v in boxes[index])
        paint = color(labels[index])
        cv2.rectangle(canvas, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), paint, thick)
        caption = names[labels[index]] + (f": {scores[index]:.2f}" if scores is not None else "")
        (text_width, text_height), base = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, font_scale, 1)
        left = min(max(x1, 0), max(width - text_width - 2, 0))
        bottom = y1 if y1 - text_height - base - 2 >= 0 else min(y1 + text_height + base + 2, height - 1)
        cv2.rectangle(canvas, (left, bottom - text_height - base - 2), (left + text_width + 2, bottom), paint, -1)
        luminance = 0.299 * paint[0] + 0.587 * paint[1] + 0.114 * paint[2]
        ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
        cv2.putText(
            canvas,
            caption,
            (left + 1, bottom - base),
            cv2.FONT_HERSHEY_SIMPLEX,
            font_scale,
            ink,
            1,
            cv2.LINE_AA,
        )
    return canvas


def draw_detections(
    image: np.ndarray, detections: Detections, names: Sequence[str], minimum_score: float
) -> np.ndarray:
    """Draws the detections with a score of at least ``minimum_score`` on a copy; boxes are in pixels of ``image``."""
    keep = detections.scores >= minimum_score
    return draw(
        image,
        detections.boxes[keep].cpu().numpy(),
        detections.labels[keep].tolist(),
        names,
        detections.scores[keep].tolist(),
    )


def draw_target(image: np.ndarray, target: Target, names: Sequence[str]) -> np.ndarray:
    """Draws ground truth on a copy; boxes are in pixels of ``image``."""
    return draw(image, target.boxes.cpu().numpy(), target.labels.tolist(), names)


def sheet(images: Sequence[np.ndarray], columns: int, margin: int = 4) -> np.ndarray:
    """Arranges images in a grid on a white background.

    Args:
        images: uint8 (H, W, 3) RGB, of any sizes; every cell fits the largest height and width.
        columns: number of columns.
        margin: pixels between cells and around the grid.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    height = max(image.shape[0] for image in images) + margin
    width = max(image.shape[1] for image in images) + margin
    rows = -(-len(images) // columns)
    canvas = np.full((rows * height + margin, columns * width + margin, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = margin + index // columns * height, margin + index % columns * width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
