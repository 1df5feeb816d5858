"""Writes images of digits with masks of their ink, for semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.config.segmentation_data import IGNORED
from dcn_det.data.sample.compose import Layout, Material, compose, load_material
from dcn_det.data.sample.generate import Stamp, generate, holds, write_jpeg
from dcn_det.data.sample.make import TRAIN_IMAGES, VAL_IMAGES
from dcn_det.images import write_indices
from dcn_det.progress import Count

MASKS_VERSION = 3
"""Version of the data set, increased when images or masks of a seed change; other versions are rewritten."""
RECORD = "sample_masks.json"
"""File with the arguments that a data set was made with."""
MASKS_ROOT = "datasets/sample_masks"
LAYOUT = Layout(objects=(3, 6), long_side=(64.0, 128.0))
"""Every digit covers several cells of a map at stride 16."""
BORDER = 2
"""Pixels on each side of the edge of a digit that have no label."""


def make_sample_masks(
    root: str | Path = MASKS_ROOT,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    seed: int = 0,
    progress: Count | None = None,
) -> Path:
    """Writes images of digits and their masks unless ``root`` already contains them.

    Digits, photographs and colors are those of :func:`dcn_det.data.sample.make.make_sample`, and so is the split; see
    there also for arguments and errors. Digits are larger and more numerous, see :data:`LAYOUT`.

    Returns:
        ``root``, with images in ``{train,val}/images`` and masks in ``{train,val}/masks``: PNG files whose values are 0
        for the background, the digit + 1 for its visible ink, and 255 at the edges of digits.
    """

    def write(folder: Path, count_one: Callable[[], None]) -> None:
        train, val = load_material()
        _write_split(folder / "train", train, train_images, (seed, 0), count_one)
        _write_split(folder / "val", val, val_images, (seed, 1), count_one)

    return generate(Path(root), RECORD, Stamp(MASKS_VERSION, seed, train_images, val_images), write, progress)


def holds_sample_masks(root: str | Path) -> bool:
    """Returns whether ``root`` contains masks of this version, of any number and seed."""
    return holds(root, RECORD, MASKS_VERSION)


def _write_split(
    folder: Path, material: Material, count: int, seed: tuple[int, int], count_one: Callable[[], None]
) -> None:
    """Writes images and masks of one split; those of number ``n`` depend only on (seed, n)."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for number in range(count):
        scene = compose(material, np.random.default_rng([*seed, number]), LAYOUT)
        write_jpeg(folder / "images" / f"{number:06d}.jpg", scene.image)
        write_indices(folder / "masks" / f"{number:06d}.png", with_border(scene.mask))
        count_one()


def with_border(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a mask in which pixels at most :data:`BORDER` from another class have no label, as in Pascal VOC."""
    window = np.ones((2 * BORDER + 1, 2 * BORDER + 1), dtype=np.uint8)
    near = cv2.dilate(mask, window) != cv2.erode(mask, window)
    return np.where(near, np.uint8(IGNORED), mask)
