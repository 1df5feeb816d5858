"""Ground truth in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcn_det.categories import Category
from dcn_det.data.findings import Findings
from dcn_det.data.formats.coco import read_document
from dcn_det.data.records import Records, to_coco
from dcn_det.files import read_json


@dataclass(frozen=True)
class GroundTruth:
    """Images, categories and objects that detections are evaluated against.

    Attributes:
        source: file or folder of the annotations, for messages.
        images: height and width by image id.
        categories: categories in ascending order of id.
        annotations: objects in COCO's format; ``area`` and ``iscrowd`` are always present. Ids are numbered anew from
            1: the metrics do not use them, but in pycocotools the id 0 marks unmatched objects.
        notes: messages about data filled in or left out, one line each.
        file_names: file names by image id, for images that have one.
    """

    source: str
    images: dict[int, tuple[int, int]]
    categories: tuple[Category, ...]
    annotations: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    file_names: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(records: Records) -> GroundTruth:
        """Returns the ground truth with the images and objects of a data format."""
        ids = records.image_ids.tolist()
        return GroundTruth(
            str(records.source),
            {image_id: (height, width) for image_id, (height, width) in zip(ids, records.sizes.tolist())},
            tuple(sorted(records.categories, key=lambda category: category.id)),
            tuple(to_coco(records)["annotations"]),
            (*_defaults(records), *records.notes),
            {image_id: name for image_id, name in zip(ids, records.names) if name},
        )

    @property
    def category_ids(self) -> frozenset[int]:
        return frozenset(category.id for category in self.categories)


def load_ground_truth(source: str | Path | Mapping[str, Any]) -> GroundTruth:
    """Reads COCO annotations with the checks that training uses; images need no file names.

    A missing ``iscrowd`` is 0, and a missing ``area`` is that of the box; a note is added for both.

    Args:
        source: annotation file, or its content.

    Raises:
        UserError: the file has no COCO annotations, an annotation is malformed or belongs to no image or category, or
            there is no object except crowds, so that no metric is defined.
    """
    name = Path(source) if isinstance(source, str | Path) else Path("ground truth")
    if isinstance(source, str | Path):
        data = read_json(source)
    else:  # through JSON, which converts numbers of other types, such as NumPy's, to Python's
        data = json.loads(json.dumps(dict(source), default=lambda value: value.tolist()))
    findings = Findings(name)
    records = read_document(data, name, findings, files=False)
    findings.refuse()
    return GroundTruth.of(records)


def _defaults(records: Records) -> list[str]:
    rows = records.written.annotations if records.written else []
    rules = {"iscrowd": "0 is used", "area": "that of the box is used"}
    missing = {key: sum(row.get(key) is None for row in rows) for key in rules}
    return [f"annotations without {key}: {missing[key]}; {rules[key]}" for key in rules if missing[key]]
