"""From a file to the network's input, and boxes along with it.

Images are uint8 (H, W, 3) RGB arrays. Boxes are half-open xyxy pixels, float32 (N, 4), arrays too until their batch: on
a handful of numbers NumPy is several times as quick as torch.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.images import Image

Boxes = NDArray[np.float32]


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Returns height and width after resizing by the authors' rule.

    The short side becomes ``short_side``; if the long one, rounded, would then exceed ``max_side``, that one
    becomes ``max_side`` instead. Halves round to even, as in NumPy and OpenCV.

    Args:
        height, width: original size, pixels.
        short_side, max_side: targets, pixels.
    """
    short, long = min(height, width), max(height, width)
    scale = short_side / short
    if round(scale * long) > max_side:
        scale = max_side / long
    return max(round(scale * height), 1), max(round(scale * width), 1)


def resize_short_side(image: Image, short_side: int, max_side: int) -> Image:
    """Resizes by the rule of ``resized_size``, bilinearly and without smoothing, as the authors' code does.

    Args:
        image: uint8 (H, W, 3).
        short_side, max_side: pixels.

    Returns:
        uint8 (H', W', 3). Pixels map by H' / H and W' / W exactly, which is how boxes are to be scaled.
    """
    height, width = resized_size(image.shape[0], image.shape[1], short_side, max_side)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def scale_boxes(boxes: Boxes, scale_x: float, scale_y: float) -> Boxes:
    """Multiplies x by ``scale_x`` and y by ``scale_y``; returns a new (N, 4) array."""
    return boxes * np.array((scale_x, scale_y, scale_x, scale_y), dtype=np.float32)


def flip_image(image: Image) -> Image:
    """Mirrors left to right, in place: fresh memory would cost many times what the mirroring does."""
    cv2.flip(image, 1, dst=image)
    return image


def flip_boxes(boxes: Boxes, width: int) -> Boxes:
    """Mirrors boxes with their image of ``width`` pixels; returns a new (N, 4) array."""
    flipped = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2]
    flipped[:, 2] = width - boxes[:, 0]
    return flipped
