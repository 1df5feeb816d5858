"""Writes single digits over photographs, in one folder per class, to train classifiers on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dcn_det.data.sample.compose import CLASSES, Material, compose_digit, load_material
from dcn_det.data.sample.generate import Stamp, generate, holds, write_jpeg
from dcn_det.progress import Count

DIGITS_VERSION = 1
"""Version of the data set, increased when images of a seed change; other versions are rewritten."""
RECORD = "digits.json"
"""File with the arguments that a data set was made with."""

TRAIN_DIGITS = 4000
VAL_DIGITS = 600
DIGITS_ROOT = "datasets/digits"


def make_digits(
    root: str | Path = DIGITS_ROOT,
    train_images: int = TRAIN_DIGITS,
    val_images: int = VAL_DIGITS,
    seed: int = 0,
    progress: Count | None = None,
) -> Path:
    """Writes images of single digits unless ``root`` already contains them.

    Digits, photographs and colors are those of the embedded data set, and so is the split; see
    :func:`dcn_det.data.sample.make_sample`, also for arguments and errors. The classes take turns.

    Returns:
        ``root``, with the images in ``train/<digit>/`` and ``val/<digit>/``.
    """

    def write(folder: Path, count_one: Callable[[], None]) -> None:
        train, val = load_material()
        _write_split(folder / "train", train, train_images, (seed, 2), count_one)
        _write_split(folder / "val", val, val_images, (seed, 3), count_one)

    return generate(Path(root), RECORD, Stamp(DIGITS_VERSION, seed, train_images, val_images), write, progress)


def holds_digits(root: str | Path) -> bool:
    """Returns whether ``root`` contains digits of this version, of any number and seed."""
    return holds(root, RECORD, DIGITS_VERSION)


def _write_split(
    folder: Path, material: Material, count: int, seed: tuple[int, int], count_one: Callable[[], None]
) -> None:
    """Writes the images of one split; image ``n`` depends only on (seed, n)."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        label = number % len(CLASSES)
        image = compose_digit(material, label, np.random.default_rng([*seed, number]))
        write_jpeg(folder / CLASSES[label] / f"{number:06d}.jpg", image)
        count_one()
