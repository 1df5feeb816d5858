"""Writes the embedded sample data set."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dcn_det.data.sample.compose import CLASSES, IMAGE_SIZE, Material, compose, load_material
from dcn_det.errors import UserError
from dcn_det.progress import Count

VERSION = 1
"""Version of the data set, increased when images or annotations of a seed change; other versions are rewritten."""

TRAIN_IMAGES = 1500
VAL_IMAGES = 200
DEFAULT_ROOT = "datasets/sample"

_JPEG_QUALITY = 92
_VAL_ID_OFFSET = 100_000


@dataclass(frozen=True)
class _Stamp:
    """Arguments that a data set was made with, stored in ``sample.json``."""

    version: int
    seed: int
    train_images: int
    val_images: int


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
        UserError: scikit-learn or Pillow is not installed, or ``root`` contains other files.
        OSError: the files cannot be written.
    """
    root = Path(root)
    stamp = _Stamp(VERSION, seed, train_images, val_images)
    if _read_stamp(root) == stamp:
        return root
    if root.exists() and _read_stamp(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not a sample data set; choose an empty or a new folder")

    materials = load_material()
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = root.parent / f".{root.name}-{uuid.uuid4().hex}"
    try:
        done = 0

        def count_one() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, train_images + val_images)

        _write_split(staging, "train", materials[0], train_images, (seed, 0), 0, count_one)
        _write_split(staging, "val", materials[1], val_images, (seed, 1), _VAL_ID_OFFSET, count_one)
        (staging / "sample.json").write_text(json.dumps(asdict(stamp)) + "\n", encoding="utf-8")
        _publish(staging, root, stamp)
    except OSError as error:  # the system names no file when a disk is full
        raise OSError(error.errno, error.strerror, error.filename or str(root)) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return root


def holds_sample(root: str | Path) -> bool:
    """Returns whether ``root`` contains a sample data set of this version, of any size and seed."""
    stamp = _read_stamp(Path(root))
    return stamp is not None and stamp.version == VERSION


def _read_stamp(root: Path) -> _Stamp | None:
    try:
        return _Stamp(**json.loads((root / "sample.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _publish(staging: Path, root: Path, stamp: _Stamp) -> None:
    """Renames ``staging`` to ``root``; replaces an outdated set, but keeps one that another process wrote meanwhile."""
    if root.exists() and _read_stamp(root) != stamp:
        outdated = root.parent / f".{root.name}-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # another process has just done the same
            root.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        staging.rename(root)
    except OSError:
        if _read_stamp(root) != stamp:
            raise


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
        canvas, boxes, labels = compose(material, np.random.default_rng([*seed, number]))
        name = f"{number:06d}.jpg"
        ok, jpeg = cv2.imencode(
            ".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        )
        assert ok
        (root / split / name).write_bytes(jpeg.tobytes())
        image_id = id_offset + number + 1
        images.append({"id": image_id, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        for (x1, y1, x2, y2), label in zip(boxes, labels):
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
