"""Boxes in YOLO's text format: a file per image, with a line per object.

A line has the class id and the box as fractions of the image: center x and y, width, height. Lines of segmentation data
sets have the class id and the corners of a polygon; their box encloses the polygon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from dcn_det.config.data import YoloDataConfig, YoloSplitConfig
from dcn_det.data.findings import Findings, first_few
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.records import ImageRecord, ObjectRecord, Records, image_id, named_together, only_classes, pack
from dcn_det.data.rules import screen
from dcn_det.errors import UserError, shown
from dcn_det.files import read_text
from dcn_det.images import SUFFIXES, image_size

NAMES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
"""Files of class names, in the order in which they are looked for."""
_TOLERANCE = 0.01
"""By which coordinates may leave the image, as a fraction of it; they are clipped."""


class YoloFormat(DataFormat):
    """YOLO's text format."""

    data: YoloDataConfig
    paths: YoloSplitConfig

    @property
    def source(self) -> str | Path:
        return named_together([self.root / each for each in self.paths.paths])

    def read(self, findings: Findings, labelled: bool = True) -> Records:
        names = read_names(self.root, self.data.names)
        upright = self.data.exif == "apply"
        files = list(dict.fromkeys(path for place in self.paths.paths for path in list_images(self.root, place)))
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda path: _read(path, self.root, len(names), upright), files))
        findings.images = len(files)
        images, absent = [], []
        for path, each in zip(files, read):
            for kind, example in each.problems:
                findings.error(kind, example)
            findings.objects += each.objects
            images += [each.image] if each.image else []
            absent += [] if each.labelled else [path.name]
        records = pack(images, names, self.source)
        if absent:
            records = records.noted(
                f"images without label file, taken as empty: {len(absent)} ({first_few(absent, 2)})"
            )
        if self.data.classes is not None:
            records = only_classes(records, self.data.classes)
        return screen(records, findings, labelled)


def read_names(root: Path, file: str | None = None) -> list[str]:
    """Returns class names by id.

    Args:
        root: folder of the data set.
        file: see ``YoloDataConfig.names``.

    Raises:
        UserError: there is no such file, or it has no names, or repeats one.
    """
    places = [root / file] if file is not None else [root / name for name in NAMES]
    path = next((each for each in places if each.is_file()), None)
    if path is None:
        raise UserError(
            f"data.names: no file {places[0]}"
            if file is not None
            else f"data.names: no class names in {root}; expected one of {', '.join(NAMES)}"
        )
    names = _yaml_names(path) if path.suffix in (".yaml", ".yml") else _lines(path)
    if not names:
        raise UserError(f"{path}: no class names; expected 'names' with a list, or one name per line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: class name {shown(twice[0])} is used twice")
    return names


def _yaml_names(path: Path) -> list[str]:
    found = read_description(path).get("names")
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found)] if sorted(found) == list(range(len(found))) else None
    if not isinstance(found, list) or not all(isinstance(name, str | int | float) for name in found):
        raise UserError(f"{path}: names: expected a list, or names by id from 0 without gaps")
    return [str(name) for name in found]


def read_description(path: Path) -> dict[str, Any]:
    """Returns the content of a ``data.yaml``.

    Raises:
        UserError: it is not YAML with keys.
    """
    try:
        plain = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(plain, dict):
        raise UserError(f"{path}: expected keys such as names, train and val")
    return plain


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def list_images(root: Path, place: str) -> list[Path]:
    """Returns the images in a folder and below, sorted, or those that a text file lists.

    Listed paths are relative to the folder of the text file, or to ``root``; see :func:`locate`.

    Raises:
        UserError: the folder or file does not exist, or has no image.
    """
    path = root / place
    if path.is_file():
        images = [locate(line, path.parent, root) or path.parent / line for line in _lines(path)]
    elif path.is_dir():
        images = sorted(
            each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and not each.name.startswith(".")
        )
    else:
        raise UserError(f"no folder of images or list {path} (data.root is {root})")
    if not images:
        raise UserError(f"no image in {path}; expected files such as .jpg or .png")
    return images


def locate(place: str, *folders: Path) -> Path | None:
    """Returns a file or folder that tools name from where they ran, in the first of the folders that has it; or None.

    Leading folders are left out until the rest exists: ``data/obj_train_data/a.jpg`` (CVAT), ``../train/images``
    (Roboflow) and ``/content/set/train/images`` are ``obj_train_data/a.jpg`` and ``train/images`` of the data set.
    """
    parts = [part for part in PurePosixPath(place.replace("\\", "/")).parts if part != "/"]
    for first in range(len(parts)):
        if parts[first] != "..":
            found = next((each for folder in folders if (each := folder.joinpath(*parts[first:])).exists()), None)
            if found is not None:
                return found
    return None


def label_path(image: Path) -> Path:
    """Returns the label file of an image: below ``labels`` in place of the last ``images``, or next to the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[-2::-1].index("images")
        below = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
        if below.is_file() or not image.with_suffix(".txt").is_file():
            return below
    return image.with_suffix(".txt")


@dataclass
class _Found:
    """Content of an image and its label file: problems as kind and example."""

    image: ImageRecord | None
    objects: int
    labelled: bool
    problems: list[tuple[str, str]]


def _read(path: Path, root: Path, classes: int, upright: bool) -> _Found:
    size = image_size(path, upright)
    if size is None:
        return _Found(None, 0, True, [("image missing or unreadable", str(path))])
    labels = label_path(path)
    lines = _lines(labels) if labels.is_file() else []
    objects, problems = [], []
    for number, line in enumerate(lines, start=1):
        found = _object(line.split(), size, classes)
        if isinstance(found, str):
            problems.append((found.partition(":")[0], f"{labels} line {number}{found.partition(':')[2]}"))
        else:
            objects.append(found)
    file = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    record = ImageRecord(image_id("", file), file, *size, tuple(objects))
    return _Found(record, len(lines), labels.is_file(), problems)


def _object(words: Sequence[str], size: tuple[int, int], classes: int) -> ObjectRecord | str:
    """Returns an object, or a kind of problem and, after a colon, what is wrong."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        return f"line that is no object:: {shown(' '.join(words))}, expected class, center x, y, width, height"
    if not values[0].is_integer() or not 0 <= values[0] < classes:
        return f"object of an unknown class:: {words[0]}, expected 0 to {classes - 1}"
    if not all(math.isfinite(value) and -_TOLERANCE <= value <= 1 + _TOLERANCE for value in values[1:]):
        return f"coordinates that are not fractions of the image:: {' '.join(words[1:5])}"
    height, width = size
    if len(values) == 5:
        x, y, w, h = values[1:]
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        xs, ys = values[1::2], values[2::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    box = tuple(value * side for value, side in zip(corners, (width, height, width, height)))
    return ObjectRecord(int(values[0]), (box[0], box[1], box[2], box[3]))
