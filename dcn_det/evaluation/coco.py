"""COCO's 12 metrics, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcn_det.errors import UserError
from dcn_det.evaluation.ground_truth import GroundTruth, load_ground_truth
from dcn_det.evaluation.results import Result, check_results, read_json, to_coco_results, write_json
from dcn_det.structures import Category

__all__ = [
    "METRICS",
    "CocoMetrics",
    "GroundTruth",
    "IouType",
    "evaluate",
    "load_ground_truth",
    "load_results",
    "to_coco_results",
    "write_json",
]

IouType = Literal["bbox", "segm"]
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""In the order of pycocotools. AP and AR are means over IoU 0.50:0.05:0.95, AP50 and AP75 are at one IoU; s,
m and l are objects with an area up to 32^2, up to 96^2 and above; ARn allows n detections an image and class,
the others 100."""


@dataclass(frozen=True)
class CocoMetrics:
    """What an evaluation found. Metrics are shares from 0 to 1, and nan where there is no object to find.

    Attributes:
        iou_type: ``bbox`` or ``segm``.
        values: the 12 metrics, by the names in ``METRICS``.
        per_class: AP by category name.
        images, objects, detections: how many took part; crowds are not counted as objects.
        notes: what a reader of the numbers has to know, one line each.
    """

    iou_type: str
    values: dict[str, float]
    per_class: dict[str, float]
    images: int
    objects: int
    detections: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready containers, where an undefined metric is None."""
        return {
            "iou_type": self.iou_type,
            "images": self.images,
            "objects": self.objects,
            "detections": self.detections,
            "metrics": {name: _defined(value) for name, value in self.values.items()},
            "per_class": {name: _defined(value) for name, value in self.per_class.items()},
            "notes": list(self.notes),
        }

    def table(self, per_class: bool = False) -> str:
        """The metrics as lines of text, with three decimals as COCO prints them."""
        counts = f"{self.images} images, {self.objects} objects, {self.detections} detections"
        lines = [f"{self.iou_type}: {counts}", *self.notes]
        for row in (METRICS[:6], METRICS[6:]):
            lines.append("  ".join(f"{name:>5} {_text(self.values[name])}" for name in row))
        if per_class:
            width = max(map(len, self.per_class))
            lines += [f"{name:<{width}}  {_text(value)}" for name, value in self.per_class.items()]
        return "\n".join(lines)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _text(value: float) -> str:
    return "  n/a" if math.isnan(value) else f"{value:.3f}"


def load_results(
    path: str | Path, ground_truth: GroundTruth | str | Path | COCO, iou_type: IouType = "bbox"
) -> list[Result]:
    """Reads a COCO results file and checks it against the ground truth it is for.

    Raises:
        UserError: not JSON, not a list, or entries that cannot be evaluated: unknown images or categories,
            missing keys, scores that are not finite, boxes of negative size, masks of another size.
    """
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else load_ground_truth(ground_truth)
    ids = {category.id for category in truth.categories}
    return check_results(read_json(path), truth.images, ids, iou_type, str(path))


def evaluate(
    ground_truth: GroundTruth | str | Path | Mapping[str, Any] | COCO,
    results: Sequence[Result],
    iou_type: IouType = "bbox",
) -> CocoMetrics:
    """Computes COCO's metrics over all images of the ground truth.

    Neither argument is changed. Having no results is valid: every metric that has objects is then 0, and a
    note says why. An image without results counts as one in which nothing was found.

    Args:
        ground_truth: what ``load_ground_truth`` takes or gave.
        results: COCO results, see ``Result``; of an image and category the 100 best count.
        iou_type: overlap of boxes or of masks.

    Raises:
        UserError: see ``load_ground_truth`` and ``load_results``.
    """
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else load_ground_truth(ground_truth)
    ids = {category.id for category in truth.categories}
    entries = check_results(list(results), truth.images, ids, iou_type)
    if iou_type == "segm" and any(not annotation.get("segmentation") for annotation in truth.annotations):
        raise UserError(f"{truth.source}: has annotations without segmentation; evaluate boxes instead")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(truth, truth.annotations), _coco(truth, _as_annotations(entries, iou_type)), iou_type
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    notes = list(truth.notes)
    empty = len(truth.images) - len({entry["image_id"] for entry in entries})
    if not entries:
        notes.append("there are no results: nothing was detected in any image")
    elif empty:
        notes.append(f"images without results, where nothing was detected: {empty}")
    return CocoMetrics(
        iou_type,
        {name: _share(value) for name, value in zip(METRICS, evaluation.stats)},
        dict(_class_precision(evaluation, truth.categories)),
        images=len(truth.images),
        objects=sum(not annotation["iscrowd"] for annotation in truth.annotations),
        detections=len(entries),
        notes=tuple(notes),
    )


def _coco(truth: GroundTruth, annotations: Iterable[Mapping[str, Any]]) -> COCO:
    """pycocotools' object over copies, since it writes into annotations."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in truth.images.items()],
        "categories": [{"id": category.id, "name": category.name} for category in truth.categories],
        "annotations": [dict(annotation) for annotation in annotations],
    }
    coco.createIndex()
    return coco


def _as_annotations(results: Sequence[Result], iou_type: IouType) -> Iterator[dict[str, Any]]:
    for index, result in enumerate(results):
        common = {key: result[key] for key in ("image_id", "category_id", "score")} | {
            "id": index + 1,
            "iscrowd": 0,
        }
        if iou_type == "bbox":
            yield {**common, "bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
        else:
            yield {
                **common,
                "segmentation": result["segmentation"],
                "area": mask.area(result["segmentation"]),
            }


def _share(value: float) -> float:
    """pycocotools says -1 for what is undefined."""
    return float("nan") if value < 0 else float(value)


def _class_precision(evaluation: COCOeval, categories: Sequence[Category]) -> Iterator[tuple[str, float]]:
    """AP of each class: precision is (IoU, recall, category, area, detections), -1 where there is no
    object."""
    by_id = {category.id: category.name for category in categories}
    precision: np.ndarray = evaluation.eval["precision"][:, :, :, 0, -1]
    for index, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        yield (
            by_id[int(category_id)],
            float(values[values > -1].mean()) if (values > -1).any() else float("nan"),
        )
