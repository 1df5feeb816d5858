"""Resizing and mirroring of images and their boxes.

Images are uint8 (H, W, 3) RGB arrays. Boxes are float32 (N, 4) arrays, half-open xyxy in pixels: NumPy is several times
faster than torch for so few numbers.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.images import Image

Boxes = NDArray[np.float32]


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """Returns height and width after resizing by the rule of the authors' released code.

    The short side becomes ``short_side``. If the long side, rounded, would then exceed ``max_side``, the long side
    becomes ``max_side`` instead. Halves are rounded to even, as in NumPy and OpenCV.

    Args:
        height, width: original size in pixels.
        short_side, max_side: sizes in pixels.
    """
    short, long = min(height, width), max(height, width)
    scale = short_side / short
    if round(scale * long) > max_side:
        scale = max_side / long
    return max(round(scale * height), 1), max(round(scale * width), 1)


def resize_short_side(image: Image, short_side: int, max_side: int) -> Image:
    """Resizes by the rule of ``resized_size``, bilinearly and without antialiasing, as in the authors' released code.

    Args:
        image: uint8 (H, W, 3).
        short_side, max_side: sizes in pixels.

    Returns:
        uint8 (H', W', 3). Boxes must be scaled by exactly W' / W and H' / H.
    """
    height, width = resized_size(image.shape[0], image.shape[1], short_side, max_side)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def scale_boxes(boxes: Boxes, scale_x: float, scale_y: float) -> Boxes:
    """Returns boxes (N, 4) with x multiplied by ``scale_x`` and y by ``scale_y``."""
    return boxes * np.array((scale_x, scale_y, scale_x, scale_y), dtype=np.float32)


def flip_image(image: Image) -> Image:
    """Mirrors an image horizontally in place, since allocating memory takes much longer than mirroring."""
    cv2.flip(image, 1, dst=image)
    return image


def flip_boxes(boxes: Boxes, width: int) -> Boxes:
    """Returns boxes (N, 4) mirrored horizontally in an image of ``width`` pixels."""
    flipped = boxes.copy()
    flipped[:, 0] = width - boxes[:, 2]
    flipped[:, 2] = width - boxes[:, 0]
    return flipped
