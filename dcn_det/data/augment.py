"""Random changes of training images: scale, crop, colours. All are functions of the image's seed.

What is done is drawn first and applied afterwards, so that boxes follow and a seed can be replayed.
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
    """Crops of random size and place.

    Attributes:
        probability: share of the images that are cropped.
        min_side: shortest sides, as a share of the image's.
        min_visible: boxes of which less is left are dropped; at least one box stays.
    """

    probability: float = 0.0
    min_side: float = 0.5
    min_visible: float = 0.3


@dataclass(frozen=True)
class ColorJitter:
    """Photometric distortion, in random order (after Liu et al., SSD, ECCV 2016).

    Attributes:
        probability: share of the images that are distorted.
        brightness: pixel values move by up to this share of 255.
        contrast, saturation: factors lie in [1 - x, 1 + x].
        hue: turns by up to this share of the circle.
    """

    probability: float = 0.0
    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05


@dataclass(frozen=True)
class Plan:
    """What is done to one image.

    Attributes:
        short_side: pixels, None for the usual.
        crop: half-open x1, y1, x2, y2 in pixels of the original, None for none.
        kept: which boxes stay after the crop.
        colors: what is done to the colours and how much, in order.
    """

    short_side: int | None = None
    crop: tuple[int, int, int, int] | None = None
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    colors: tuple[tuple[str, float], ...] = ()


_NOTHING = Plan()


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a training split; by default none.

    Attributes:
        short_sides: one is taken for each image; empty for the usual.
        crop, jitter: see there.
    """

    short_sides: tuple[int, ...] = ()
    crop: RandomCrop = RandomCrop()
    jitter: ColorJitter = ColorJitter()

    def plan(self, seed: int, height: int, width: int, boxes: Boxes) -> Plan:
        """Draws what to do.

        Args:
            seed: of the image in this epoch.
            height, width: of the original, pixels.
            boxes: (N, 4), half-open pixels of the original.
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
        """A crop that keeps a box, if there was one, and which boxes it keeps; None when none is found."""
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
        """Changes the colours of a uint8 (H, W, 3) RGB image as planned; returns a new one if there is anything to do.

        The image may be read-only.
        """
        for name, amount in plan.colors:
            image = _DISTORTIONS[name](image, amount)
        return image


def crop_boxes(boxes: Boxes, crop: tuple[int, int, int, int]) -> Boxes:
    """Boxes (N, 4) in pixels of the crop, clipped to it; one that lies outside has no area."""
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
    turned = ((np.arange(256) + round(180 * amount)) % 180).astype(np.uint8)  # OpenCV's circle has 180 steps
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), turned)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


_DISTORTIONS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
