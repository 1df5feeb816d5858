"""Error analysis of detections: curves, histograms, confusion matrix, kinds of errors and images with most errors."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError
from dcn_det.evaluation import backends
from dcn_det.evaluation.coco import class_precision
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.results import ResultTable

RIGHT_IOU = 0.5
"""Minimum IoU of a correct detection with an object of its class."""
BACKGROUND_IOU = 0.1
"""Detections with a lower IoU with all objects are on background (Bolya et al., ECCV 2020)."""
ERRORS = {
    "Cls": ("classification", "wrong class, IoU of at least 0.5"),
    "Loc": ("localization", "correct class, IoU of 0.1 to 0.5"),
    "Both": ("both", "wrong class, IoU of 0.1 to 0.5"),
    "Dupe": ("duplicate", "a detection with a higher score matches the object"),
    "Bkg": ("background", "IoU below 0.1 with all objects"),
    "Miss": ("missed", "object without a correct detection, classification error or localization error"),
}
"""Kinds of errors of TIDE (Bolya et al., ECCV 2020): key, name and meaning."""


@dataclass(frozen=True)
class ClassRow:
    """Numbers of one class: AP over all IoUs, at 0.5 and 0.75, and by size; nan without objects."""

    name: str
    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    objects: int
    detections: int


@dataclass(frozen=True)
class ErrorKind:
    """One kind of error: number of errors and gain in AP at IoU 0.5 if all of them were fixed."""

    name: str
    meaning: str
    count: int
    cost: float


@dataclass(frozen=True)
class BadImage:
    """Errors of an image at the score of confident detections.

    Attributes:
        image_id: id of the image.
        badness: sum of the scores of wrong detections, plus the number of missed objects.
        wrong: rows of wrong detections in the results.
        missed: indices of the missed objects in the annotations.
    """

    image_id: int
    badness: float
    wrong: tuple[int, ...]
    missed: tuple[int, ...]


@dataclass(frozen=True)
class Analysis:
    """Result of :func:`analyse`.

    Attributes:
        score: minimum score of a confident detection.
        classes: numbers of each class, in the order of the categories.
        recall: (101,), recall levels from 0 to 1.
        precision: (101,) by name of the curve: precision at these levels, averaged over the classes, for IoU 0.5, 0.75
            and 0.9 and for the mean of IoU 0.5 to 0.95.
        right_scores, wrong_scores: scores of correct and wrong detections at IoU 0.5.
        ious: highest IoU of each confident detection with an object of its class.
        confusion: (K + 1, K + 1) counts of confident detections; rows are true classes, columns are detected classes,
            and the last row and column are background.
        ap50: AP at IoU 0.5, to which the cost of each kind of error refers.
        errors: kinds of errors.
        worst: images with most errors, worst first.
    """

    score: float
    classes: tuple[ClassRow, ...]
    recall: NDArray[np.float64]
    precision: dict[str, NDArray[np.float64]]
    right_scores: NDArray[np.float64]
    wrong_scores: NDArray[np.float64]
    ious: NDArray[np.float64]
    confusion: NDArray[np.int64]
    ap50: float
    errors: tuple[ErrorKind, ...]
    worst: tuple[BadImage, ...]


def analyse(truth: GroundTruth, results: ResultTable, score: float = 0.3, worst: int = 12) -> Analysis:
    """Analyzes the errors of detections.

    Args:
        truth: ground truth; crowds count neither as found nor as missed.
        results: boxes in the same images.
        score: minimum score of a confident detection.
        worst: maximum number of images with errors to return.

    Raises:
        UserError: hotcoco, which assigns the kinds of errors, is not installed.
    """
    if importlib.util.find_spec("hotcoco") is None:
        raise UserError('analysis: hotcoco is not installed: pip install "dcn_det[report]"')
    evaluation = backends.hotcoco_evaluation(truth, results, "bbox")
    tide = evaluation.tide_errors(pos_thr=RIGHT_IOU, bg_thr=BACKGROUND_IOU)
    found = evaluation.image_diagnostics(iou_thr=RIGHT_IOU, score_thr=score)
    confusion = evaluation.confusion_matrix(iou_thr=RIGHT_IOU, min_score=score)["matrix"]
    arrays = backends.accumulate(truth, results, "bbox", "hotcoco")

    # hotcoco numbers detections and objects from 1, in the order given.
    status = np.array([found["dt_status"].get(i + 1, "") for i in range(len(results))], dtype=object)
    return Analysis(
        score,
        _class_rows(truth, results, arrays),
        np.linspace(0, 1, 101),
        _curves(arrays.precision),
        results.scores[status == "tp"],
        results.scores[status == "fp"],
        _nearest_ious(truth, results, score),
        np.asarray(confusion).astype(np.int64),
        float(tide["ap_base"]),
        tuple(ErrorKind(*ERRORS[key], int(tide["counts"][key]), float(tide["delta_ap"][key])) for key in ERRORS),
        _worst_images(truth, results, status, found["gt_match"], score, worst),
    )


def _class_rows(truth: GroundTruth, results: ResultTable, arrays: backends.Arrays) -> tuple[ClassRow, ...]:
    whole, small, medium, large = (
        class_precision(arrays.precision, arrays.category_ids, truth, area) for area in range(4)
    )
    at50, at75 = (class_precision(arrays.precision[t : t + 1], arrays.category_ids, truth) for t in (0, 5))
    rows = []
    for category in truth.categories:
        name = category.name
        objects = sum(a["category_id"] == category.id and not a["iscrowd"] for a in truth.annotations)
        detections = int((results.category_ids == category.id).sum())
        numbers = (whole[name], at50[name], at75[name], small[name], medium[name], large[name])
        rows.append(ClassRow(name, *numbers, objects, detections))
    return tuple(rows)


def _curves(precision: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Returns precision over recall, averaged over the classes that have objects."""
    values = precision[:, :, :, 0, -1]
    present = values[0, 0] > -1
    means = values[:, :, present].mean(axis=2)
    return {"IoU 0.50": means[0], "IoU 0.75": means[5], "IoU 0.90": means[8], "mean": means.mean(axis=0)}


def _nearest_ious(truth: GroundTruth, results: ResultTable, score: float) -> NDArray[np.float64]:
    objects: dict[tuple[int, int], list[list[float]]] = {}
    for annotation in truth.annotations:
        if not annotation["iscrowd"]:
            objects.setdefault((annotation["image_id"], annotation["category_id"]), []).append(annotation["bbox"])
    rows = np.flatnonzero(results.scores >= score)
    ious = np.zeros(len(rows))
    keys = zip(results.image_ids[rows].tolist(), results.category_ids[rows].tolist())
    for index, (key, box) in enumerate(zip(keys, results.boxes[rows])):
        if key in objects:
            ious[index] = _overlaps(box, np.array(objects[key], np.float64)).max()
    return ious


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the IoU (N,) of boxes x, y, width, height: (4,) with (N, 4)."""
    ends, far = box[:2] + box[2:], others[:, :2] + others[:, 2:]
    shared = (np.minimum(ends, far) - np.maximum(box[:2], others[:, :2])).clip(min=0).prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - shared
    return np.asarray(shared / np.maximum(union, np.finfo(np.float64).tiny))


def _worst_images(
    truth: GroundTruth,
    results: ResultTable,
    status: NDArray[np.object_],
    matches: dict[int, int],
    score: float,
    count: int,
) -> tuple[BadImage, ...]:
    wrong: dict[int, list[int]] = {}
    for row in np.flatnonzero((status == "fp") & (results.scores >= score)).tolist():
        wrong.setdefault(int(results.image_ids[row]), []).append(row)
    missed: dict[int, list[int]] = {}
    for index, annotation in enumerate(truth.annotations):
        match = matches.get(annotation["id"])
        if not annotation["iscrowd"] and (match is None or results.scores[match - 1] < score):
            missed.setdefault(annotation["image_id"], []).append(index)
    bad = [
        BadImage(
            image_id,
            float(results.scores[wrong.get(image_id, [])].sum()) + len(missed.get(image_id, [])),
            tuple(wrong.get(image_id, [])),
            tuple(missed.get(image_id, [])),
        )
        for image_id in wrong.keys() | missed.keys()
    ]
    return tuple(sorted(bad, key=lambda each: (-each.badness, each.image_id))[:count])
