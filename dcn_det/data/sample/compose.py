"""Composes the images of the sample data set: stretched, sheared and rotated digits over crops of photographs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError

IMAGE_SIZE = 256
DIGIT_SIZE = 96
CLASSES = tuple("0123456789")

_LONE_LONG_SIDE = (56.0, 88.0)
_MAX_ROTATION = math.radians(22)
_MAX_SHEAR = 0.25
_MAX_LOG_STRETCH = 0.4
_MAX_COVER = 0.1
_MIN_CONTRAST = 100.0
_PLACEMENT_TRIES = 30
_CROP_SIDE = (150, 256)
_PHOTO_SPLIT = 384
_DIGIT_SPLIT = 1437
_GLYPH_SCALE = 12
_GLYPH_MARGIN = 2
_INK_EDGE = (0.42, 0.72)
_VISIBLE = 0.3
_LUMINANCE = np.array([0.299, 0.587, 0.114])

Box = tuple[int, int, int, int]
"""Half-open integer corners x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True)
class Layout:
    """How many digits an image contains, and how large they are.

    Attributes:
        objects: smallest and largest number of digits, drawn uniformly; those that find no place are left out.
        long_side: smallest and largest longer side, in pixels, drawn log-uniformly.
    """

    objects: tuple[int, int] = (1, 5)
    long_side: tuple[float, float] = (24.0, 140.0)


BOXES = Layout()
"""That of the data set for detection."""


@dataclass(frozen=True)
class Material:
    """Source material of one split: 8x8 digits (0-16) by class, and photographs (uint8 RGB)."""

    digits: list[NDArray[np.float64]]
    photos: list[NDArray[np.uint8]]


def load_material() -> tuple[Material, Material]:
    """Returns the material of training and of validation, which share neither digits nor pixels."""
    try:
        from sklearn.datasets import load_digits, load_sample_images

        photos = load_sample_images().images
    except ImportError as error:
        raise UserError('the sample data set needs scikit-learn: pip install "dcn_det[sample]"') from error
    digits = load_digits()

    def by_class(part: slice) -> list[NDArray[np.float64]]:
        images, labels = digits.images[part], digits.target[part]
        return [images[labels == label] for label in range(len(CLASSES))]

    train = Material(by_class(slice(None, _DIGIT_SPLIT)), [photo[:, :_PHOTO_SPLIT] for photo in photos])
    val = Material(by_class(slice(_DIGIT_SPLIT, None)), [photo[:, _PHOTO_SPLIT:] for photo in photos])
    return train, val


def _glyph(digit: NDArray[np.float64]) -> NDArray[np.float32]:
    """Enlarges an 8x8 digit (0-16), adds a margin and sharpens it, which opens holes and connects faint strokes."""
    padded = np.pad(digit, _GLYPH_MARGIN).astype(np.float32) / np.float32(digit.max())
    size = padded.shape[0] * _GLYPH_SCALE
    smooth = cv2.resize(padded, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(3 * smooth - 2 * cv2.GaussianBlur(smooth, (0, 0), 1.5 * _GLYPH_SCALE), dtype=np.float32)


@dataclass(frozen=True)
class Scene:
    """A composed image and its digits.

    Attributes:
        image: uint8 RGB.
        boxes: half-open, around the visible ink.
        labels: of the digits, from 0.
        mask: uint8, 0 for the background and label + 1 for the visible ink of a digit.
    """

    image: NDArray[np.uint8]
    boxes: list[Box]
    labels: list[int]
    mask: NDArray[np.uint8]


def compose(material: Material, rng: np.random.Generator, layout: Layout = BOXES) -> Scene:
    """Returns an image of several digits."""
    canvas = _background(material.photos, rng)
    count = int(rng.integers(layout.objects[0], layout.objects[1] + 1))
    low, high = np.log(layout.long_side)
    boxes: list[Box] = []
    labels: list[int] = []
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    # Large digits first: placed last, they would often not fit, and sizes would no longer be log-uniform.
    for long_side in sorted(np.exp(rng.uniform(low, high, count)).tolist(), reverse=True):
        label = int(rng.integers(len(CLASSES)))
        choices = material.digits[label]
        ink = draw_ink(choices[int(rng.integers(len(choices)))], long_side, rng)
        height, width = ink.shape
        for _ in range(_PLACEMENT_TRIES):
            x = int(rng.integers(IMAGE_SIZE - width + 1))
            y = int(rng.integers(IMAGE_SIZE - height + 1))
            box = (x, y, x + width, y + height)
            if all(_cover(box, other) <= _MAX_COVER for other in boxes):
                _paint(canvas[y : y + height, x : x + width], ink, rng)
                mask[y : y + height, x : x + width][ink > _VISIBLE] = label + 1
                boxes.append(box)
                labels.append(label)
                break
    return Scene(np.rint(canvas).astype(np.uint8), boxes, labels, mask)


def compose_digit(material: Material, label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns a single digit over a part of a photograph: uint8 RGB, ``DIGIT_SIZE`` pixels wide and high."""
    canvas = _background(material.photos, rng)
    top, left = rng.integers(IMAGE_SIZE - DIGIT_SIZE + 1, size=2).tolist()
    canvas = canvas[top : top + DIGIT_SIZE, left : left + DIGIT_SIZE]
    choices = material.digits[label]
    low, high = np.log(_LONE_LONG_SIDE)
    ink = draw_ink(choices[int(rng.integers(len(choices)))], float(np.exp(rng.uniform(low, high))), rng)
    height, width = ink.shape
    x, y = int(rng.integers(DIGIT_SIZE - width + 1)), int(rng.integers(DIGIT_SIZE - height + 1))
    _paint(canvas[y : y + height, x : x + width], ink, rng)
    return np.rint(canvas).astype(np.uint8)


def _background(photos: list[NDArray[np.uint8]], rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns a random square of a random photograph, mirrored with probability 0.5, at the size of the canvas."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(_CROP_SIDE[0], _CROP_SIDE[1] + 1))
    top = int(rng.integers(photo.shape[0] - side + 1))
    left = int(rng.integers(photo.shape[1] - side + 1))
    crop = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    enlarged = cv2.resize(np.ascontiguousarray(crop), (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_CUBIC)
    gain = rng.uniform(0.75, 1.1)
    return np.clip(enlarged.astype(np.float32) * np.float32(gain), 0, 255)


def draw_ink(digit: NDArray[np.float64], long_side: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Enlarges, stretches, shears and rotates a digit; returns its opacity (0-1), cropped to the ink."""
    glyph = _glyph(digit)
    angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
    stretch = math.exp(rng.uniform(-_MAX_LOG_STRETCH, _MAX_LOG_STRETCH) / 2)
    shear = rng.uniform(-_MAX_SHEAR, _MAX_SHEAR)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch])
    rows, columns = np.nonzero(glyph > _INK_EDGE[0])
    points = linear @ np.stack([columns, rows])
    extent = np.ptp(points, axis=1)
    scale = long_side / float(extent.max())
    border = 2
    shift = border - scale * points.min(axis=1)
    width, height = (np.ceil(scale * extent) + 2 * border).astype(int).tolist()
    warped = cv2.warpAffine(glyph, np.column_stack([scale * linear, shift]), (width, height), flags=cv2.INTER_LINEAR)
    t = np.clip((warped - _INK_EDGE[0]) / (_INK_EDGE[1] - _INK_EDGE[0]), 0, 1)
    opacity = t * t * (3 - 2 * t)
    visible_rows = np.flatnonzero((opacity > _VISIBLE).any(axis=1))
    visible_columns = np.flatnonzero((opacity > _VISIBLE).any(axis=0))
    return opacity[visible_rows[0] : visible_rows[-1] + 1, visible_columns[0] : visible_columns[-1] + 1]


def _paint(patch: NDArray[np.float32], ink: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Blends a random color into ``patch`` in place; its luminance differs from the mean of the patch."""
    here = float((patch @ _LUMINANCE).mean())
    darker, lighter = max(here - _MIN_CONTRAST, 0), max(255 - here - _MIN_CONTRAST, 0)
    draw = rng.uniform(0, darker + lighter)
    luminance = draw if draw < darker else 255 - (draw - darker)
    # A direction of chroma that keeps the luminance, scaled to stay within the range of RGB.
    chroma = rng.uniform(-1, 1, 3)
    chroma -= chroma @ _LUMINANCE
    room = np.where(chroma > 0, 255 - luminance, luminance) / np.maximum(np.abs(chroma), 1e-6)
    colour = luminance + rng.uniform(0.2, 1) * room.min() * chroma
    alpha = ink[:, :, None] * np.float32(rng.uniform(0.9, 1))
    patch += alpha * (colour.astype(np.float32) - patch)


def _cover(a: Box, b: Box) -> float:
    """Returns the area of the intersection divided by the smaller area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller
