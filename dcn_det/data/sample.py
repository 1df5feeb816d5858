"""The embedded data set: real handwritten digits over real photographs, with tight boxes, in COCO format.

It is composed offline from what scikit-learn carries (1,797 digits of 8x8 pixels, two photographs of 640x427),
so that training, testing and every tool can be tried, and regressions caught, without a download. Training and
validation share neither a digit nor a pixel of photograph.

    python -m dcn_det.data.sample datasets/sample
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError

VERSION = 1
"""Goes up when the pixels or annotations of a given seed change; sets of another version are written anew."""

IMAGE_SIZE = 256
CLASSES = tuple("0123456789")
TRAIN_IMAGES = 1500
VAL_IMAGES = 200
DEFAULT_ROOT = "datasets/sample"

_JPEG_QUALITY = 92
_OBJECTS = (1, 5)
_LONG_SIDE = (24.0, 140.0)
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
_VAL_ID_OFFSET = 100_000
_LUMINANCE = np.array([0.299, 0.587, 0.114])

Progress = Callable[[int, int], None]
"""Called with (images written, images in all)."""


@dataclass(frozen=True)
class _Stamp:
    """What a written set was made with; kept in ``sample.json``."""

    version: int
    seed: int
    train_images: int
    val_images: int


@dataclass(frozen=True)
class _Material:
    """What one split is composed of: smooth ink maps by class (float32, 0-1) and photographs (uint8 RGB)."""

    glyphs: list[list[NDArray[np.float32]]]
    photos: list[NDArray[np.uint8]]


def make_sample(
    root: str | Path = DEFAULT_ROOT,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes the sample data set unless ``root`` already holds it.

    Every image is a pure function of (seed, split, number), so files are the same byte for byte between runs
    with the same versions of NumPy and OpenCV. The set appears under ``root`` complete or not at all: it is
    written to a sibling folder and renamed, which also makes concurrent callers harmless.

    Args:
        root: folder to hold ``train/``, ``val/``, ``annotations/{train,val}.json`` and ``sample.json``.
        train_images: number of training images.
        val_images: number of validation images.
        seed: drives every random choice.
        progress: called after each image.

    Returns:
        ``root``.

    Raises:
        UserError: scikit-learn or Pillow is not installed, or ``root`` holds something else.
    """
    root = Path(root)
    stamp = _Stamp(VERSION, seed, train_images, val_images)
    if _read_stamp(root) == stamp:
        return root
    if root.exists() and _read_stamp(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists and is not a sample data set; give an empty or a new folder")

    materials = _load_material()
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
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return root


def holds_sample(root: str | Path) -> bool:
    """Whether ``root`` holds a complete sample set of this version, of whatever size and seed."""
    stamp = _read_stamp(Path(root))
    return stamp is not None and stamp.version == VERSION


def _read_stamp(root: Path) -> _Stamp | None:
    try:
        return _Stamp(**json.loads((root / "sample.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _publish(staging: Path, root: Path, stamp: _Stamp) -> None:
    """Renames ``staging`` to ``root`` over an outdated set; keeps the set of a faster concurrent writer."""
    if root.exists() and _read_stamp(root) != stamp:
        outdated = root.parent / f".{root.name}-{uuid.uuid4().hex}"
        root.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    try:
        staging.rename(root)
    except OSError:
        if _read_stamp(root) != stamp:
            raise


def _load_material() -> tuple[_Material, _Material]:
    """Returns the material of training and of validation, which share neither digits nor pixels."""
    try:
        from sklearn.datasets import load_digits, load_sample_images

        photos = load_sample_images().images
    except ImportError as error:
        raise UserError('the sample data set needs scikit-learn and Pillow: pip install "dcn_det[sample]"') from error
    digits = load_digits()

    def glyphs(part: slice) -> list[list[NDArray[np.float32]]]:
        images, labels = digits.images[part], digits.target[part]
        return [[_glyph(image) for image in images[labels == label]] for label in range(len(CLASSES))]

    train = _Material(glyphs(slice(None, _DIGIT_SPLIT)), [photo[:, :_PHOTO_SPLIT] for photo in photos])
    val = _Material(glyphs(slice(_DIGIT_SPLIT, None)), [photo[:, _PHOTO_SPLIT:] for photo in photos])
    return train, val


def _glyph(digit: NDArray[np.float64]) -> NDArray[np.float32]:
    """Enlarges an 8x8 digit (0-16) smoothly, with a margin; sharpens it: holes open, faint strokes join."""
    padded = np.pad(digit, _GLYPH_MARGIN).astype(np.float32) / np.float32(digit.max())
    size = padded.shape[0] * _GLYPH_SCALE
    smooth = cv2.resize(padded, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(3 * smooth - 2 * cv2.GaussianBlur(smooth, (0, 0), 1.5 * _GLYPH_SCALE), dtype=np.float32)


def _write_split(
    root: Path,
    split: str,
    material: _Material,
    count: int,
    seed: tuple[int, int],
    id_offset: int,
    count_one: Callable[[], None],
) -> None:
    """Writes the images of one split and its annotation file; image ``n`` depends on (seed, n) alone."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        canvas, boxes, labels = _compose(material, np.random.default_rng([*seed, number]))
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


Box = tuple[int, int, int, int]


def _compose(material: _Material, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[Box], list[int]]:
    """Draws one image: uint8 RGB canvas, half-open integer boxes around the visible ink, 0-based labels."""
    canvas = _background(material.photos, rng)
    count = int(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1))
    low, high = np.log(_LONG_SIDE)
    boxes: list[Box] = []
    labels: list[int] = []
    # Large ones first: placed last, they would rarely find room and the sizes would no longer be log-uniform.
    for long_side in sorted(np.exp(rng.uniform(low, high, count)).tolist(), reverse=True):
        label = int(rng.integers(len(CLASSES)))
        choices = material.glyphs[label]
        ink = _draw_ink(choices[int(rng.integers(len(choices)))], long_side, rng)
        height, width = ink.shape
        for _ in range(_PLACEMENT_TRIES):
            x = int(rng.integers(IMAGE_SIZE - width + 1))
            y = int(rng.integers(IMAGE_SIZE - height + 1))
            box = (x, y, x + width, y + height)
            if all(_cover(box, other) <= _MAX_COVER for other in boxes):
                _paint(canvas[y : y + height, x : x + width], ink, rng)
                boxes.append(box)
                labels.append(label)
                break
    return np.rint(canvas).astype(np.uint8), boxes, labels


def _background(photos: list[NDArray[np.uint8]], rng: np.random.Generator) -> NDArray[np.float32]:
    """Takes a random square of a random photograph, perhaps mirrored, at the size of the canvas."""
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


def _draw_ink(glyph: NDArray[np.float32], long_side: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Stretches, shears and rotates a glyph; returns its opacity (0-1), cropped to the visible ink."""
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
    visible_rows = np.flatnonzero((opacity > 0.3).any(axis=1))
    visible_columns = np.flatnonzero((opacity > 0.3).any(axis=0))
    return opacity[visible_rows[0] : visible_rows[-1] + 1, visible_columns[0] : visible_columns[-1] + 1]


def _paint(patch: NDArray[np.float32], ink: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Blends a random colour into ``patch`` in place, its luminance well apart from the patch's own."""
    here = float((patch @ _LUMINANCE).mean())
    darker, lighter = max(here - _MIN_CONTRAST, 0), max(255 - here - _MIN_CONTRAST, 0)
    draw = rng.uniform(0, darker + lighter)
    luminance = draw if draw < darker else 255 - (draw - darker)
    # A chroma direction that leaves the luminance alone, as far as the cube of colours allows.
    chroma = rng.uniform(-1, 1, 3)
    chroma -= chroma @ _LUMINANCE
    room = np.where(chroma > 0, 255 - luminance, luminance) / np.maximum(np.abs(chroma), 1e-6)
    colour = luminance + rng.uniform(0.2, 1) * room.min() * chroma
    alpha = ink[:, :, None] * np.float32(rng.uniform(0.9, 1))
    patch += alpha * (colour.astype(np.float32) - patch)


def _cover(a: Box, b: Box) -> float:
    """Intersection over the smaller area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller


def main() -> None:
    """Writes the set from the command line."""
    parser = argparse.ArgumentParser(description="Write the sample data set of digits over photographs.")
    parser.add_argument("root", nargs="?", default=DEFAULT_ROOT, help="folder to write (default: %(default)s)")
    parser.add_argument("--train-images", type=int, default=TRAIN_IMAGES)
    parser.add_argument("--val-images", type=int, default=VAL_IMAGES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def show(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            print(f"{done}/{total} images", flush=True)

    try:
        print(make_sample(args.root, args.train_images, args.val_images, args.seed, show))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
