"""COCO's 12 metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from dcn_det.errors import UserError
from dcn_det.evaluation import backends
from dcn_det.evaluation.backends import Backend, IouType
from dcn_det.evaluation.ground_truth import GroundTruth, load_ground_truth
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result, ResultTable, check_results
from dcn_det.files import iterate_json, write_json

__all__ = [
    "METRICS",
    "GroundTruth",
    "IouType",
    "evaluate",
    "load_ground_truth",
    "load_results",
    "write_json",
]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""In the order of pycocotools. AP and AR are means over IoU 0.50:0.05:0.95, AP50 and AP75 are at one IoU; s,
m and l are objects with an area up to 32^2, up to 96^2 and above; ARn allows n detections an image and class,
the others 100."""


def load_results(
    path: str | Path, ground_truth: GroundTruth | str | Path | COCO, iou_type: IouType = "bbox"
) -> ResultTable:
    """Reads a COCO results file and checks it against the ground truth it is for.

    Raises:
        UserError: not JSON, not a list, or entries that cannot be evaluated: unknown images or categories,
            missing keys, scores that are not finite, boxes of negative size, masks of another size.
    """
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else load_ground_truth(ground_truth)
    return check_results(iterate_json(path), truth.images, truth.category_ids, iou_type, str(path))


def evaluate(
    ground_truth: GroundTruth | str | Path | Mapping[str, Any] | COCO,
    results: Sequence[Result] | ResultTable,
    iou_type: IouType = "bbox",
    backend: Backend = "auto",
) -> Metrics:
    """Computes COCO's metrics over all images of the ground truth.

    Neither argument is changed. Having no results is valid: every metric that has objects is then 0, and a
    note says why. An image without results counts as one in which nothing was found.

    Args:
        ground_truth: what ``load_ground_truth`` takes or gave.
        results: COCO results, see ``Result``, or what ``load_results`` gave; of an image and category the 100 best
            count.
        iou_type: overlap of boxes or of masks.
        backend: what computes; ``auto`` takes hotcoco when it is installed.

    Raises:
        UserError: see ``load_ground_truth`` and ``load_results``; or the back end is not installed.
    """
    truth = ground_truth if isinstance(ground_truth, GroundTruth) else load_ground_truth(ground_truth)
    table = (
        results
        if isinstance(results, ResultTable)
        else check_results(list(results), truth.images, truth.category_ids, iou_type)
    )
    if iou_type == "segm" and any(not annotation.get("segmentation") for annotation in truth.annotations):
        raise UserError(f"{truth.source}: has annotations without segmentation; evaluate boxes instead")
    name = backends.resolve(backend)
    arrays = backends.accumulate(truth, table, iou_type, name)
    return Metrics(
        iou_type,
        backends.label(name),
        {metric: _share(value) for metric, value in zip(METRICS, arrays.stats)},
        class_precision(arrays.precision, arrays.category_ids, truth),
        images=len(truth.images),
        objects=sum(not annotation["iscrowd"] for annotation in truth.annotations),
        detections=len(table),
        notes=(*truth.notes, *table.notes, *_notes(truth, table)),
    )


def _notes(truth: GroundTruth, table: ResultTable) -> list[str]:
    if not len(table):
        return ["there are no results: nothing was detected in any image"]
    empty = len(truth.images) - len(np.unique(table.image_ids))
    return [f"images without results, where nothing was detected: {empty}"] if empty else []


def _share(value: float) -> float:
    """pycocotools says -1 for what is undefined."""
    return float("nan") if value < 0 else float(value)


def class_precision(
    precision: NDArray[np.float64], category_ids: Sequence[int], truth: GroundTruth, area: int = 0
) -> dict[str, float]:
    """AP of each class by name, nan without objects; ``area`` counts all, small, medium, large."""
    by_id = {category.id: category.name for category in truth.categories}
    result = {}
    for index, category_id in enumerate(category_ids):
        values = precision[:, :, index, area, -1]
        result[by_id[category_id]] = float(values[values > -1].mean()) if (values > -1).any() else float("nan")
    return result
