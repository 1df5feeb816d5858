"""COCO's 12 metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dcn_det.config.data import COCO_METRICS
from dcn_det.errors import UserError
from dcn_det.evaluation import backends
from dcn_det.evaluation.backends import COUNTED, Arrays, Backend, IouType
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result, ResultTable, box_hints, check_results


def evaluate(
    truth: GroundTruth,
    results: Sequence[Result] | ResultTable,
    iou_type: IouType = "bbox",
    backend: Backend = "auto",
    max_detections: int = COUNTED,
) -> Metrics:
    """Computes COCO's metrics over all images of the ground truth.

    Results may be empty: metrics with objects are then 0, and a note is added. Images without results count as images
    without detections.

    Args:
        truth: ground truth.
        results: results in COCO's format, see ``Result``.
        iou_type: IoU of boxes or of masks.
        backend: back end that computes the metrics; ``auto`` uses hotcoco if it is installed.
        max_detections: maximum number of detections per image and category, those with the highest scores; only COCO's
            100 gives comparable numbers.

    Returns:
        The 12 metrics in the order of pycocotools. AP and AR are means over IoU 0.50:0.05:0.95; AP50 and AP75 are at
        one IoU. The endings s, m and l denote objects with an area up to 32^2, up to 96^2 and above. ARn counts n
        detections per image and class, the other metrics ``max_detections``.

    Raises:
        UserError: the results cannot be evaluated, see ``check_results``; masks are compared, but the ground truth has
            none; or the back end is not installed.
    """
    table = (
        results
        if isinstance(results, ResultTable)
        else check_results(list(results), truth.images, truth.category_ids, iou_type)
    )
    if iou_type == "segm" and any(not annotation.get("segmentation") for annotation in truth.annotations):
        raise UserError(f"{truth.source}: annotations without segmentation; evaluate boxes instead")
    name = backends.resolve(backend)
    arrays = backends.accumulate(truth, table, iou_type, name, max_detections)
    return Metrics(
        iou_type,
        backends.label(name),
        {metric: _share(value) for metric, value in zip(COCO_METRICS, _summary(arrays))},
        class_precision(arrays.precision, arrays.category_ids, truth),
        images=len(truth.images),
        objects=sum(not annotation["iscrowd"] for annotation in truth.annotations),
        detections=len(table),
        notes=(*truth.notes, *table.notes, *_notes(truth, table, max_detections)),
    )


def _summary(arrays: Arrays) -> list[float]:
    """Returns the 12 metrics; -1 where there are no objects."""
    precision, recall = arrays.precision, arrays.recall
    return [
        *(_mean(part) for part in (precision[..., 0, 2], precision[0, ..., 0, 2], precision[5, ..., 0, 2])),
        *(_mean(precision[..., area, 2]) for area in (1, 2, 3)),
        *(_mean(recall[..., 0, count]) for count in (0, 1, 2)),
        *(_mean(recall[..., area, 2]) for area in (1, 2, 3)),
    ]


def _mean(values: NDArray[np.float64]) -> float:
    present = values[values > -1]
    return float(present.mean()) if len(present) else -1.0


def _notes(truth: GroundTruth, table: ResultTable, counted: int) -> list[str]:
    if not len(table):
        return ["there are no results: nothing was detected in any image"]
    notes = box_hints(table, truth.images)
    empty = len(truth.images) - len(np.unique(table.image_ids))
    if empty:
        notes.append(f"images without results, where nothing was detected: {empty}")
    objects = Counter((each["image_id"], each["category_id"]) for each in truth.annotations if not each["iscrowd"])
    crowded = sum(count > counted for count in objects.values())
    if crowded:
        notes.append(
            f"pairs of image and class with more than {counted} objects: {crowded}; at most {counted} detections are "
            "counted for each, so AP cannot reach 1 (evaluation.max_detections)"
        )
    if counted != COUNTED:
        notes.append(f"{counted} detections per image and class are counted; published COCO numbers count {COUNTED}")
    return notes


def _share(value: float) -> float:
    """Returns a metric, or nan for -1, which marks undefined metrics in pycocotools."""
    return float("nan") if value < 0 else float(value)


def class_precision(
    precision: NDArray[np.float64], category_ids: Sequence[int], truth: GroundTruth, area: int = 0
) -> dict[str, float]:
    """Returns the AP of each class by name, nan without objects.

    Args:
        precision, category_ids: see ``Arrays``.
        truth: ground truth.
        area: index of the area: all, small, medium, large.
    """
    by_id = {category.id: category.name for category in truth.categories}
    result = {}
    for index, category_id in enumerate(category_ids):
        values = precision[:, :, index, area, -1]
        result[by_id[category_id]] = float(values[values > -1].mean()) if (values > -1).any() else float("nan")
    return result
