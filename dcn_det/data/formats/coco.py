"""Reads COCO-format annotation files of boxes.

The format (cocodataset.org, "Data format", object detection) is an object of three lists: ``images`` (id,
file_name, width, height), ``annotations`` (image_id, category_id, bbox as x, y, width, height in pixels,
iscrowd, area) and ``categories`` (id, name).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcn_det.categories import Category
from dcn_det.data.findings import Findings
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.records import Records, Row, Written, join, named_together, only_classes, with_own_ids
from dcn_det.data.repair import repaired
from dcn_det.data.rules import MAX_SIDE, is_id, is_number, name_problem, screen
from dcn_det.errors import UserError, shown
from dcn_det.files import kind_of, read_json

if TYPE_CHECKING:
    from dcn_det.config.data import CocoSplitConfig


@dataclass(frozen=True)
class Check:
    """A rule for the values of a key.

    Attributes:
        problem: returns the problem of a value, or None.
        all_good: returns whether many values have no problem; False if each of them must be checked.
    """

    problem: Callable[[object], str | None]
    all_good: Callable[[list[Any]], bool] = lambda values: False


class CocoFormat(DataFormat):
    """COCO's format: annotation files and folders of images, ``annotations`` and ``images`` of a split."""

    paths: CocoSplitConfig

    @property
    def folders(self) -> Sequence[Path]:
        return list(dict.fromkeys(self.root / folder for folder, _ in self.paths.sources))

    @property
    def folder(self) -> Path:
        """The image folder; the folder that contains all of them if there are several."""
        folders = self.folders
        if len(folders) == 1:
            return folders[0]
        if any(each.is_absolute() for each in folders):
            folders = [each.absolute() for each in folders]
        return Path(os.path.commonpath([os.path.normpath(each) for each in folders]))

    @property
    def folder_setting(self) -> str:
        return f"data.{self.split}.images"

    @property
    def source(self) -> str | Path:
        return named_together([self.root / file for _, file in self.paths.sources])

    def _document(self, path: Path) -> Any:
        if not path.is_file():
            raise UserError(f"data.{self.split}.annotations: no file {path} (data.root is {self.root})")
        return read_json(path)

    def read(self, findings: Findings, labelled: bool = True) -> Records:
        return self._read(findings, labelled, lambda document: document, lambda records: records)

    def repaired(self, findings: Findings, labelled: bool = True) -> Records:
        return self._read(findings, labelled, repaired, with_own_ids)

    def _read(
        self,
        findings: Findings,
        labelled: bool,
        of_file: Callable[[Any], Any],
        of_all: Callable[[Records], Records],
    ) -> Records:
        """Reads all files; ``of_file`` changes the content of one, ``of_all`` the records of all."""
        parts, categories = [], []
        for folder, file in self.paths.sources:
            path = self.root / file
            document, found = of_file(self._document(path)), Findings(path)
            part = _parse(document, path, found, labelled)
            categories.append(document["categories"])
            findings.include(found, named=len(self.paths.sources) > 1)
            parts.append(in_folder(part, os.path.relpath(self.root / folder, self.folder)))
        return _finish(of_all(join(parts)), categories[0], findings, self.data.classes, labelled)

    def settings_of_fixed(self, path: Path) -> list[str]:
        split = f"data.{self.split}"
        folder = [] if len(self.folders) == 1 else [f"{split}.images={os.path.relpath(self.folder, self.root)}"]
        return [*folder, f"{split}.annotations={path.absolute()}"]


def in_folder(records: Records, folder: str) -> Records:
    """Returns the records with names relative to the folder that contains ``folder``; unusable names are kept."""
    if folder == ".":
        return records
    names = [name if name_problem(name) else f"{Path(folder).as_posix()}/{name}" for name in records.names]
    return replace(records, names=names)


def read_coco(path: Path, classes: Sequence[str] | None = None, labelled: bool = True) -> Records:
    """Reads a COCO annotation file; see :func:`read_document`.

    Raises:
        UserError: the file is missing or malformed, or an image or object cannot be used.
    """
    findings = Findings(path)
    records = read_document(read_json(path), path, findings, classes, labelled)
    findings.refuse()
    return records


def read_document(
    document: Any,
    source: Path,
    findings: Findings,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    files: bool = True,
) -> Records:
    """Reads the content of a COCO annotation file.

    Labels number the categories in ascending order of id. Some tools export the supercategory of others as a category;
    such a category is ignored if it has no objects. Annotation ids are not used.

    Args:
        document: content of the file.
        source: name of the file, for messages.
        findings: receives the problems of entries; these entries are left out.
        classes: names of the categories to use, in the order of their labels; None uses all.
        labelled: whether a file without ``annotations``, such as COCO's test-dev list, is an error.
        files: whether images need a file name.

    Raises:
        UserError: the list of images or categories is missing or empty, or a class is not among the categories.
    """
    records = _parse(document, source, findings, labelled, files)
    return _finish(records, document["categories"], findings, classes, labelled)


def _parse(document: Any, source: Path, findings: Findings, labelled: bool = True, files: bool = True) -> Records:
    """Reads the content of a file, with all of its categories; see :func:`read_document`."""
    if not isinstance(document, Mapping):
        hint = "; is it a results file?" if isinstance(document, list) else ""
        raise UserError(f"{source}: not COCO annotations: it is {kind_of(document)}, expected an object{hint}")
    images = _rows(document, "images", source, findings, {"id": _ID, "file_name": _name(files)} | _SIDES)
    findings.images = len(document["images"])
    categories = _categories(document, source, findings)
    annotations: list[Row] = []
    places: list[int] = []
    if labelled or "annotations" in document:
        rows = _section(document, "annotations", source)
        annotations, places = _sound(rows, "annotations", findings, _ANNOTATION)
        findings.objects = len(rows)
        _note_ids(annotations, findings)
    rows_of = {row["id"]: i for i, row in reversed(list(enumerate(images)))}
    labels_of = {category.id: label for label, category in enumerate(categories)}
    owners = _positions(annotations, places, "image_id", rows_of, document["images"], findings)
    labels = _positions(annotations, places, "category_id", labels_of, document["categories"], findings)
    kept = np.flatnonzero((owners >= 0) & (labels >= 0))
    annotations = [annotations[i] for i in kept.tolist()]
    corners = np.array([row["bbox"] for row in annotations], np.float64).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):
        corners[:, 2:] += corners[:, :2]
    return Records(
        source=source,
        categories=categories,
        image_ids=np.array([row["id"] for row in images], np.int64),
        names=[row.get("file_name") or "" for row in images],
        sizes=np.array([(row["height"], row["width"]) for row in images], np.int64).reshape(-1, 2),
        owners=owners[kept],
        boxes=corners,
        labels=labels[kept],
        crowd=np.array([bool(row.get("iscrowd") or 0) for row in annotations], np.bool_),
        written=Written(
            images, annotations, np.array(places, np.int64)[kept], (str(source),), np.zeros(len(images), np.int64)
        ),
    )


def _finish(
    records: Records, categories: list[Any], findings: Findings, classes: Sequence[str] | None, labelled: bool
) -> Records:
    """Selects the classes and leaves out what cannot be used; ``categories`` are the rows of a file."""
    records = _without_groups(records, categories) if classes is None else only_classes(records, classes)
    return screen(records, findings, labelled)


def _positions(
    rows: list[Row], places: list[int], key: str, known: Mapping[int, int], listed: list[Any], findings: Findings
) -> NDArray[np.int64]:
    """Returns the position of each row's image or category, -1 for unknown ones, which are errors.

    An image or category that is ``listed`` but not ``known`` has an error of its own.
    """
    found = np.array([known.get(row[key], -1) for row in rows], np.int64)
    bad = np.flatnonzero(found < 0).tolist()
    unusable = {_get(each, "id") for each in listed if is_id(_get(each, "id"))} if bad else set()
    for row in bad:
        if rows[row][key] not in unusable:
            what = key.removesuffix("_id")
            findings.error(f"annotation of an unknown {what}", f"annotations[{places[row]}].{key} is {rows[row][key]}")
    return found


def _get(row: object, key: str) -> object:
    return row.get(key) if isinstance(row, Mapping) else None


def _section(document: Mapping[str, Any], section: str, source: Path) -> list[Any]:
    rows = document.get(section)
    if not isinstance(rows, list):
        keys = ", ".join(shown(key) for key in list(document)[:9])
        raise UserError(f"{source}: not COCO annotations: has no list '{section}'; its keys are {keys or 'none'}")
    return rows


def _rows(
    document: Mapping[str, Any], section: str, source: Path, findings: Findings, checks: Mapping[str, Check]
) -> list[Row]:
    rows = _section(document, section, source)
    if not rows:
        raise UserError(f"{source}: '{section}' is empty")
    return _sound(rows, section, findings, checks)[0]


def _sound(
    rows: list[Any], section: str, findings: Findings, checks: Mapping[str, Check]
) -> tuple[list[Row], list[int]]:
    """Returns the rows without problems and their positions; reports the first problem of every other row."""
    bad: dict[int, tuple[str, str]] = {}
    for place, row in enumerate(rows):
        if type(row) is not dict:
            bad[place] = ("is not a JSON object", f"{section}[{place}] is {shown(row)}")
    for key, check in checks.items():
        if not bad and check.all_good([row.get(key) for row in rows]):
            continue
        for place, row in enumerate(rows):
            problem = None if place in bad else check.problem(row.get(key))
            if problem is not None:
                value = shown(row[key]) if key in row else "missing"
                bad[place] = (f"without a usable {key}", f"{section}[{place}].{key} is {value}, {problem}")
    for place in sorted(bad):
        kind, example = bad[place]
        findings.error(f"{_SINGULAR[section]} {kind}", example)
    kept = [place for place in range(len(rows)) if place not in bad]
    return [rows[place] for place in kept], kept


_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}


def _id(value: object) -> str | None:
    return None if is_id(value) else "expected a 64-bit integer"


def _all_ids(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and is_id(min(values)) and is_id(max(values))


_ID = Check(_id, _all_ids)


def _side(value: object) -> str | None:
    good = type(value) is int and 1 <= value <= MAX_SIDE
    return None if good else f"expected an integer from 1 to {MAX_SIDE}"


def _all_sides(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and min(values) >= 1 and max(values) <= MAX_SIDE


_SIDES = {"height": Check(_side, _all_sides), "width": Check(_side, _all_sides)}


def _name(required: bool) -> Check:
    def check(value: object) -> str | None:
        if value is None and not required:
            return None
        return name_problem(value) if isinstance(value, str) else "expected a name"

    return Check(check)


def _bbox(value: object) -> str | None:
    # Coordinates that are not finite are reported with those that are too large.
    if type(value) is list and len(value) == 4 and all(type(each) is float or is_number(each) for each in value):
        return None
    return "expected [x, y, width, height]"


def _all_boxes(values: list[Any]) -> bool:
    if set(map(type, values)) != {list} or set(map(len, values)) != {4}:
        return False
    return set(map(type, chain.from_iterable(values))) == {float}


def _iscrowd(value: object) -> str | None:
    return None if value is None or (isinstance(value, int) and value in (0, 1)) else "expected 0 or 1"


def _area(value: object) -> str | None:
    good = value is None or (is_number(value) and value >= 0)
    return None if good else "expected a finite number >= 0"


def _all_flags(values: list[Any]) -> bool:
    return set(map(type, values)) == {int} and {0, 1}.issuperset(values)


def _all_areas(values: list[Any]) -> bool:
    return set(map(type, values)) == {float} and bool(np.isfinite(values).all()) and min(values) >= 0


_ANNOTATION = {
    "image_id": _ID,
    "category_id": _ID,
    "bbox": Check(_bbox, _all_boxes),
    "iscrowd": Check(_iscrowd, _all_flags),
    "area": Check(_area, _all_areas),
}


def _class_name(value: object) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return "expected a name"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    return None


def _categories(document: Mapping[str, Any], source: Path, findings: Findings) -> tuple[Category, ...]:
    rows = _rows(document, "categories", source, findings, {"id": _ID, "name": Check(_class_name)})
    found: dict[int, str] = {}
    for row in rows:
        if row["id"] in found:
            findings.error("category id used twice", f"{row['id']} ({shown(row['name'])})")
        elif row["name"] in found.values():
            findings.error("category name used twice", shown(row["name"]))
        else:
            found[row["id"]] = row["name"]
    return tuple(Category(ident, found[ident]) for ident in sorted(found))


def _without_groups(records: Records, rows: list[Any]) -> Records:
    above = {each["name"]: each.get("supercategory") for each in rows if isinstance(_get(each, "name"), str)}
    groups = {group for name, group in above.items() if isinstance(group, str) and group != name}
    used = {records.categories[label].name for label in np.unique(records.labels)}
    ignored = [c.name for c in records.categories if c.name in groups - used and above[c.name] in (None, "", "none")]
    if not ignored or len(ignored) == len(records.categories):
        return records
    kept = only_classes(records, [each.name for each in records.categories if each.name not in ignored])
    return kept.noted(f"categories that only group others, ignored: {', '.join(ignored)}")


def _note_ids(annotations: list[Row], findings: Findings) -> None:
    counts = Counter(ident for row in annotations if is_id(ident := row.get("id")))
    for ident, count in counts.items():
        if count > 1:
            findings.note("annotation id used more than once", f"{ident} ({count} times)")
