"""COCO ground truth, read and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from dcn_det.categories import Category
from dcn_det.errors import UserError
from dcn_det.evaluation.results import box_problem, is_number
from dcn_det.files import read_json


@dataclass(frozen=True)
class GroundTruth:
    """A checked COCO annotation file.

    Attributes:
        source: what messages call it.
        images: height and width by image id.
        categories: in the file's order.
        annotations: with ``id`` from 1 on, ``area`` and ``iscrowd`` always present.
        notes: what had to be filled in, one line each.
        file_names: by image id, as far as the file names them.
    """

    source: str
    images: dict[int, tuple[int, int]]
    categories: tuple[Category, ...]
    annotations: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    file_names: dict[int, str] = field(default_factory=dict)

    @property
    def category_ids(self) -> frozenset[int]:
        return frozenset(category.id for category in self.categories)


def load_ground_truth(source: str | Path | Mapping[str, Any]) -> GroundTruth:
    """Reads and checks COCO annotations.

    Annotation ids are given anew: they play no part in the metrics, but pycocotools takes an object with id 0
    for a missed one. A missing ``iscrowd`` is 0 and a missing ``area`` that of the box; both are noted.

    Args:
        source: a file, or its content.

    Raises:
        UserError: no COCO annotations, an annotation that is malformed or belongs to no image or category, or
            nothing to find: then no metric is defined.
        OSError: the file cannot be read.
    """
    name = str(source) if isinstance(source, str | Path) else "ground truth"
    data = read_json(source) if isinstance(source, str | Path) else source
    if not isinstance(data, Mapping):
        hint = "; this looks like a results file" if isinstance(data, list) else ""
        raise UserError(f"{name}: not COCO annotations: expected an object{hint}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise UserError(f"{name}: not COCO annotations to evaluate with: has no list '{key}'")
    images, file_names = {}, {}
    for index, image in enumerate(data["images"]):
        _require(image, {"id": Integral, "height": Integral, "width": Integral}, f"{name}: image {index}")
        images[int(image["id"])] = (int(image["height"]), int(image["width"]))
        if isinstance(image.get("file_name"), str):
            file_names[int(image["id"])] = image["file_name"]
    categories = []
    for index, category in enumerate(data["categories"]):
        _require(category, {"id": Integral, "name": str}, f"{name}: category {index}")
        categories.append(Category(int(category["id"]), category["name"]))
    _check_unique(categories, name)
    annotations = [
        _annotation(entry, index, images, {category.id for category in categories}, name)
        for index, entry in enumerate(data["annotations"])
    ]
    if all(annotation["iscrowd"] for annotation in annotations):
        raise UserError(f"{name}: has no object to find (crowds do not count), so that no metric is defined")
    return GroundTruth(name, images, tuple(categories), tuple(annotations), _notes(data["annotations"]), file_names)


def _require(entry: object, types: Mapping[str, type], where: str) -> None:
    for key, wanted in types.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get(key), wanted):
            raise UserError(f"{where}: '{key}' is missing or not {'a string' if wanted is str else 'an integer'}")


def _check_unique(categories: Sequence[Category], name: str) -> None:
    for what in ("id", "name"):
        counts = Counter(getattr(category, what) for category in categories)
        if twice := [value for value, count in counts.items() if count > 1]:
            raise UserError(f"{name}: two categories have the {what} {twice[0]!r}")


def _annotation(
    entry: object, index: int, images: Container[int], categories: Container[int], name: str
) -> dict[str, Any]:
    """A copy of an annotation with what pycocotools needs."""
    where = f"{name}: annotation {index}"
    _require(entry, {"image_id": Integral, "category_id": Integral}, where)
    assert isinstance(entry, Mapping)
    if entry["image_id"] not in images:
        raise UserError(f"{where}: image_id {entry['image_id']} is none of the images")
    if entry["category_id"] not in categories:
        raise UserError(f"{where}: category_id {entry['category_id']} is none of the categories")
    problem = box_problem(entry.get("bbox"))
    if problem:
        raise UserError(f"{where}: {problem[1]}")
    filled = {**entry, "id": index + 1}
    for key, default in (("iscrowd", 0), ("area", entry["bbox"][2] * entry["bbox"][3])):
        if filled.get(key) is None:
            filled[key] = default
        if not is_number(filled[key]):
            raise UserError(f"{where}: {key} must be a finite number, got {filled[key]!r}")
    return filled


def _notes(annotations: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    rules = {"iscrowd": "taken as 0", "area": "that of the box is taken"}
    missing = {key: sum(entry.get(key) is None for entry in annotations) for key in rules}
    return tuple(f"annotations without {key}: {missing[key]}; {rules[key]}" for key in rules if missing[key])
