"""Reads COCO-format annotation files of boxes.

The format (cocodataset.org, "Data format", object detection) is an object of three lists: ``images`` (id,
file_name, width, height), ``annotations`` (image_id, category_id, bbox as x, y, width, height in pixels,
iscrowd) and ``categories`` (id, name).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcn_det.categories import Category
from dcn_det.data.check import AnchorCheck, Report, check_document
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.records import Records, first_few
from dcn_det.errors import UserError
from dcn_det.files import kind_of, read_json
from dcn_det.progress import Count

if TYPE_CHECKING:
    from dcn_det.config.data import CocoSplitConfig

Rows = list[dict[str, Any]]


class CocoFormat(DataFormat):
    """An annotation file and a folder of images, ``annotations`` and ``images`` of a split."""

    paths: CocoSplitConfig

    @property
    def folder(self) -> Path:
        return self.root / self.paths.images

    def _file(self) -> Path:
        path = self.root / self.paths.annotations
        if not path.is_file():
            raise UserError(f"data.{self.split}.annotations: no file {path} (data.root is {self.root})")
        return path

    def read(self, labelled: bool = True) -> Records:
        path = self._file()
        if not self.folder.is_dir():
            raise UserError(f"data.{self.split}.images: no folder {self.folder} (data.root is {self.root})")
        return read_coco(path, self.data.classes, labelled)

    def ground_truth(self) -> Path:
        return self._file()

    def check(self, anchors: AnchorCheck | None, workers: int = 0, progress: Count | None = None) -> Report:
        return check_coco(self._file(), self.folder, anchors, workers, progress)

    def settings_of_fixed(self, path: Path) -> list[str]:
        return [f"data.{self.split}.annotations={path.absolute()}"]


def read_coco(path: Path, classes: Sequence[str] | None = None, labelled: bool = True) -> Records:
    """Reads a COCO annotation file.

    Labels number the categories in ascending order of id. ``area`` and ``segmentation`` are ignored.

    Args:
        path: the JSON file.
        classes: names the categories must have, in ascending order of id.
        labelled: whether a file without ``annotations``, such as COCO's test-dev list, is an error.

    Raises:
        UserError: the file is missing or malformed, ids repeat or refer to nothing, or ``classes`` differ.
    """
    document = _read(path)
    image_rows = _rows(document, "images", path)
    annotation_rows = _rows(document, "annotations", path) if labelled or "annotations" in document else []
    category_rows = _rows(document, "categories", path)
    categories = _categories(category_rows, path)
    if classes is not None:
        _check_classes(classes, [category.name for category in categories], path)

    image_ids = _integers(image_rows, "id", "images", path)
    _refuse_duplicates(image_ids, "image", path)
    heights = _integers(image_rows, "height", "images", path, least=1)
    widths = _integers(image_rows, "width", "images", path, least=1)
    corners = _boxes(annotation_rows, path)
    corners[:, 2:] += corners[:, :2]
    return Records(
        source=path,
        categories=categories,
        image_ids=image_ids,
        names=_strings(image_rows, "file_name", "images", path),
        sizes=np.stack([heights, widths], axis=1),
        owners=_positions(annotation_rows, "image_id", image_ids, "image id(s)", path),
        boxes=corners,
        labels=_positions(annotation_rows, "category_id", np.array([c.id for c in categories]), "category id(s)", path),
        crowd=np.array([bool(row.get("iscrowd", 0)) for row in annotation_rows], dtype=np.bool_),
    )


def check_coco(
    annotations: Path, images: Path, anchors: AnchorCheck | None, workers: int = 0, progress: Count | None = None
) -> Report:
    """Checks one split in COCO's format.

    Args:
        annotations: the JSON file.
        images: folder of the images.
        anchors, workers, progress: see ``dcn_det.data.check.check_document``.

    Raises:
        UserError: the file cannot be read, or lacks one of its lists.
    """
    document = _read(annotations)
    for section in ("images", "annotations", "categories"):
        if not isinstance(document.get(section), list):
            raise UserError(f"annotation file {annotations} has no list '{section}'")
    report = Report(str(annotations))
    check_document(document, images, report, anchors, workers, progress)
    return report


def _read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"annotation file {path} holds {kind_of(document)}, expected an object")
    return document


def _rows(document: dict[str, Any], section: str, path: Path) -> Rows:
    rows = document.get(section)
    if rows is None:
        raise UserError(f"annotation file {path} has no '{section}'; its keys are {sorted(document)}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"annotation file {path}: '{section}' is not a list of objects")
    if not rows and section != "annotations":
        raise UserError(f"annotation file {path}: '{section}' is empty")
    return rows


def _values(rows: Rows, key: str, section: str, path: Path) -> list[Any]:
    try:
        return [row[key] for row in rows]
    except KeyError:
        position = next(i for i, row in enumerate(rows) if key not in row)
        keys = sorted(rows[position])
        raise UserError(f"{path}: {section}[{position}] has no '{key}'; its keys are {keys}") from None


def _integers(rows: Rows, key: str, section: str, path: Path, least: int | None = None) -> NDArray[np.int64]:
    values = _values(rows, key, section, path)
    for position, value in enumerate(values):
        if type(value) is not int or (least is not None and value < least):
            wanted = "an integer" if least is None else f"an integer from {least} on"
            raise UserError(f"{path}: {section}[{position}].{key} is {value!r}, expected {wanted}")
    return np.array(values, dtype=np.int64)


def _strings(rows: Rows, key: str, section: str, path: Path) -> list[str]:
    values = _values(rows, key, section, path)
    for position, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise UserError(f"{path}: {section}[{position}].{key} is {value!r}, expected a name")
    return values


def _boxes(rows: Rows, path: Path) -> NDArray[np.float64]:
    """Returns x, y, width, height (M, 4) as written; NaN and infinity pass, to be counted later."""
    values = _values(rows, "bbox", "annotations", path)
    for position, value in enumerate(values):
        if type(value) is not list or len(value) != 4 or not {int, float}.issuperset(map(type, value)):
            raise UserError(f"{path}: annotations[{position}].bbox is {value!r}, expected [x, y, width, height]")
    return np.array(values, dtype=np.float64).reshape(-1, 4)


def _positions(rows: Rows, key: str, known: NDArray[np.int64], what: str, path: Path) -> NDArray[np.int64]:
    """Returns where in ``known`` each row's id is."""
    ids = _integers(rows, key, "annotations", path)
    order = np.argsort(known, kind="stable")
    place = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    unknown = np.unique(ids[known[place] != ids])
    if len(unknown):
        raise UserError(f"{path}: annotations refer to {len(unknown)} {what} that are not listed: {first_few(unknown)}")
    return place


def _refuse_duplicates(ids: NDArray[np.int64], what: str, path: Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"{path}: {what} id(s) used more than once: {first_few(values[counts > 1])}")


def _categories(rows: Rows, path: Path) -> tuple[Category, ...]:
    ids = _integers(rows, "id", "categories", path)
    names = _strings(rows, "name", "categories", path)
    _refuse_duplicates(ids, "category", path)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: category name(s) used more than once: {first_few(repeated)}")
    return tuple(Category(int(i), name) for i, name in sorted(zip(ids, names)))


def _check_classes(wanted: Sequence[str], found: Sequence[str], path: Path) -> None:
    if list(wanted) == list(found):
        return
    absent = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if absent or extra:
        parts = [f"not in the file: {first_few(absent)}"] if absent else []
        parts += [f"only in the file: {first_few(extra)}"] if extra else []
        raise UserError(f"data.classes differ from the {len(found)} categories of {path}; {'; '.join(parts)}")
    at = next((i for i, (a, b) in enumerate(zip(wanted, found)) if a != b), len(found))
    raise UserError(
        f"data.classes are not in the order of {path} (ascending id): position {at} is "
        f"'{wanted[at]}', expected '{found[at] if at < len(found) else 'nothing'}'"
    )
