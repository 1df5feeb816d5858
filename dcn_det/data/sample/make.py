"""Writes the embedded sample data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dcn_det.data.sample.compose import CLASSES, IMAGE_SIZE, Material, compose, load_material
from dcn_det.data.sample.generate import Stamp, generate, holds, write_jpeg
from dcn_det.progress import Count

VERSION = 1
"""Version of the data set, increased when images or annotations of a seed change; other versions are rewritten."""

TRAIN_IMAGES = 1500
VAL_IMAGES = 200
DEFAULT_ROOT = "datasets/sample"
RECORD = "sample.json"
"""File with the arguments that a data set was made with."""

_VAL_ID_OFFSET = 100_000


def make_sample(
    root: str | Path = DEFAULT_ROOT,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    seed: int = 0,
    progress: Count | None = None,
) -> Path:
    """Writes the sample data set unless ``root`` already contains it.

    Every image is a pure function of (seed, split, number): files are identical between runs with the same versions of
    NumPy and OpenCV. The data set is written to a folder next to ``root`` and then renamed, so ``root`` is never
    incomplete, and several processes can call this at the same time.

    Args:
        root: folder for ``train/``, ``val/``, ``annotations/{train,val}.json`` and ``sample.json``.
        train_images: number of training images.
        val_images: number of validation images.
        seed: seed of all random choices.
        progress: called after each image with the number of images written and their total number.

    Returns:
        ``root``.

    Raises:
        UserError: scikit-learn is not installed, or ``root`` contains other files.
        OSError: the files cannot be written.
    """
    stamp = Stamp(VERSION, seed, train_images, val_images)

    def write(folder: Path, count_one: Callable[[], None]) -> None:
        train, val = load_material()
        _write_split(folder, "train", train, train_images, (seed, 0), 0, count_one)
        _write_split(folder, "val", val, val_images, (seed, 1), _VAL_ID_OFFSET, count_one)

    return generate(Path(root), RECORD, stamp, write, progress)


def holds_sample(root: str | Path) -> bool:
    """Returns whether ``root`` contains a sample data set of this version, of any size and seed."""
    return holds(root, RECORD, VERSION)


def _write_split(
    root: Path,
    split: str,
    material: Material,
    count: int,
    seed: tuple[int, int],
    id_offset: int,
    count_one: Callable[[], None],
) -> None:
    """Writes the images and the annotation file of one split; image ``n`` depends only on (seed, n)."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        scene = compose(material, np.random.default_rng([*seed, number]))
        name = f"{number:06d}.jpg"
        write_jpeg(root / split / name, scene.image)
        image_id = id_offset + number + 1
        images.append({"id": image_id, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels):
            annotations.append(
                {
                    "id": id_offset + len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        count_one()
    categories = [{"id": label + 1, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASSES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"{split}.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
