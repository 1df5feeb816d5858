"""Random changes of training images: scale, crop and colors.

A plan is first drawn from the seed of the image and then applied to image and boxes, so a seed reproduces the changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.data.transforms import Boxes
from dcn_det.images import Image

_AUGMENT = 0x5EED
_CROP_TRIES = 20
_CHANGES = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class RandomCrop:
    """Crops of random size and position.

    Attributes:
        probability: probability of cropping an image.
        min_side: minimum height and width of a crop, relative to the image.
        min_visible: minimum visible share of a box; other boxes are dropped. Every crop keeps at least one box.
    """

    probability: float = 0.0
    min_side: float = 0.5
    min_visible: float = 0.3


@dataclass(frozen=True)
class ColorJitter:
    """Photometric distortion, in random order (after Liu et al., SSD, ECCV 2016).

    Attributes:
        probability: probability of distorting an image.
        brightness: maximum change of pixel values, relative to 255.
        contrast, saturation: factors are in [1 - x, 1 + x].
        hue: maximum rotation of the hue, as a share of the full circle.
    """

    probability: float = 0.0
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05


@dataclass(frozen=True)
class Plan:
    """Changes of one image.

    Attributes:
        short_side: short side in pixels; None uses that of the data set.
        crop: half-open x1, y1, x2, y2 in pixels of the original image; None for no crop.
        kept: (N,), whether each box is kept after the crop.
        colors: names and amounts of the color changes, in order.
    """

    short_side: int | None = None
    crop: tuple[int, int, int, int] | None = None
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    colors: tuple[tuple[str, float], ...] = ()


_NOTHING = Plan()


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training split; none by default.

    Attributes:
        short_sides: short sides in pixels, one of which is drawn for each image; empty uses that of the data set.
        crop, jitter: see ``RandomCrop`` and ``ColorJitter``.
    """

    short_sides: tuple[int, ...] = ()
    crop: RandomCrop = RandomCrop()
    jitter: ColorJitter = ColorJitter()

    def plan(self, seed: int, height: int, width: int, boxes: Boxes) -> Plan:
        """Draws the changes of an image.

        Args:
            seed: seed of the image in this epoch.
            height, width: size of the original image in pixels.
            boxes: (N, 4), half-open, in pixels of the original image.
        """
        if not (self.short_sides or self.crop.probability or self.jitter.probability):
            return _NOTHING
        rng = np.random.default_rng([seed, _AUGMENT])
        short_side = int(rng.choice(self.short_sides)) if self.short_sides else None
        crop, kept = None, np.ones(len(boxes), dtype=np.bool_)
        if rng.random() < self.crop.probability:
            crop, kept = self._crop(rng, height, width, boxes)
        colors: tuple[tuple[str, float], ...] = ()
        if rng.random() < self.jitter.probability:
            order = rng.permutation(len(_CHANGES))
            colors = tuple((_CHANGES[i], float(rng.uniform(-1, 1)) * getattr(self.jitter, _CHANGES[i])) for i in order)
        return Plan(short_side, crop, kept, colors)

    def _crop(
        self, rng: np.random.Generator, height: int, width: int, boxes: Boxes
    ) -> tuple[tuple[int, int, int, int] | None, NDArray[np.bool_]]:
        """Returns a crop that keeps a box, or None if none is found, and which boxes it keeps; (N,)."""
        every = np.ones(len(boxes), dtype=np.bool_)
        for _ in range(_CROP_TRIES):
            h = max(1, round(height * rng.uniform(self.crop.min_side, 1)))
            w = max(1, round(width * rng.uniform(self.crop.min_side, 1)))
            y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            crop = (x, y, x + w, y + h)
            inside = crop_boxes(boxes, crop)
            sides = inside[:, 2:] - inside[:, :2]
            visible = sides.prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            kept = (visible >= self.crop.min_visible) & (sides > 0).all(axis=1)
            if kept.any() or not len(boxes):
                return crop, kept
        return None, every

    @staticmethod
    def distort(image: Image, plan: Plan) -> Image:
        """Changes the colors of a uint8 (H, W, 3) RGB image as planned.

        The image may be read-only: it is returned as it is if the plan has no color changes, and copied otherwise.
        """
        for name, amount in plan.colors:
            image = _DISTORTIONS[name](image, amount)
        return image


def crop_boxes(boxes: Boxes, crop: tuple[int, int, int, int]) -> Boxes:
    """Returns boxes (N, 4) in pixels of the crop, clipped to it; boxes outside the crop get no area."""
    x1, y1, x2, y2 = crop
    moved = boxes - np.array((x1, y1, x1, y1), dtype=np.float32)
    return np.clip(moved, 0, np.array((x2 - x1, y2 - y1, x2 - x1, y2 - y1), dtype=np.float32))


def _table(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _brightness(image: Image, amount: float) -> Image:
    return np.asarray(cv2.LUT(image, _table(np.arange(256) + 255 * amount)), dtype=np.uint8)


def _contrast(image: Image, amount: float) -> Image:
    return np.asarray(cv2.LUT(image, _table(np.arange(256) * (1 + amount))), dtype=np.uint8)


def _saturation(image: Image, amount: float) -> Image:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(image, 1 + amount, grey, -amount, 0), dtype=np.uint8)


def _hue(image: Image, amount: float) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    turned = ((np.arange(256) + round(180 * amount)) % 180).astype(np.uint8)  # OpenCV's hue is in [0, 180)
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), turned)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


_DISTORTIONS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
