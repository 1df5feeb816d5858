"""Pascal VOC's average precision and result files.

Rules of the development kits and of the authors' released code: a detection is right when it overlaps an object of its
class by more than the threshold and no better one took that object; overlaps count pixels (a box from 1 to 2 is two
wide); objects marked difficult are neither to be found nor wrong to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dcn_det.data.voc import VocImage
from dcn_det.errors import UserError, did_you_mean
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result, ResultTable, check_results
from dcn_det.files import read_text, write_text

Rule = Literal["11-point", "area"]
VOC_METRICS = ("mAP50", "mAP70")


def average_precision(precision: NDArray[np.float64], recall: NDArray[np.float64], rule: Rule) -> float:
    """Area under the curve of precision over recall, precision made monotonic.

    Args:
        precision, recall: (N,), after each detection, best score first.
        rule: ``11-point`` samples recall at 0, 0.1, ... 1 (2007); ``area`` is exact (from 2010 on).
    """
    if not len(recall):
        return 0.0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "area":
        return float((np.diff(recall, prepend=0.0) * best).sum())
    # Levels as NumPy rounds them, 0.3 a little above 3 / 10: so does the authors' code.
    reached = np.searchsorted(recall, np.arange(11) * 0.1)
    return float(sum(best[i] for i in reached if i < len(best)) / 11)


def evaluate_voc(
    images: Sequence[VocImage],
    results: Sequence[Result] | ResultTable,
    classes: Sequence[str],
    rule: Rule = "11-point",
    ious: Sequence[float] = (0.5, 0.7),
) -> Metrics:
    """Computes VOC's mean average precision.

    Args:
        images: the ground truth.
        results: COCO results whose category ids count from 1 in the order of ``classes``.
        classes: names.
        rule: see :func:`average_precision`.
        ious: overlap a detection has to exceed; each gives a metric ``mAP50``, ``mAP70`` and so on.

    Returns:
        Metrics; ``per_class`` is the average precision at the first of ``ious``, nan for a class without objects.

    Raises:
        UserError: results that cannot be evaluated, see ``check_results``; or there is nothing to find.
    """
    sizes = {image.image_id: (image.height, image.width) for image in images}
    table = (
        results
        if isinstance(results, ResultTable)
        else check_results(list(results), sizes, range(1, len(classes) + 1), "bbox")
    )
    objects = sum(not each.difficult for image in images for each in image.objects)
    if not objects:
        raise UserError("ground truth: has no object to find (difficult ones do not count): no metric is defined")
    values: dict[str, float] = {}
    per_class: dict[str, float] = {}
    for iou in ious:
        found = {name: _class_ap(images, table, i, name, iou, rule) for i, name in enumerate(classes, start=1)}
        values[f"mAP{round(100 * iou)}"] = float(np.nanmean(list(found.values())))
        per_class = per_class or found
    notes = list(table.notes)
    if not len(table):
        notes.append("there are no results: nothing was detected in any image")
    return Metrics("voc", f"dcn_det, {rule}", values, per_class, len(images), objects, len(table), tuple(notes))


def _class_ap(
    images: Sequence[VocImage], table: ResultTable, category: int, name: str, iou: float, rule: Rule
) -> float:
    boxes = {
        image.image_id: np.array([each.box for each in image.objects if each.name == name]).reshape(-1, 4)
        for image in images
    }
    difficult = {image.image_id: [each.difficult for each in image.objects if each.name == name] for image in images}
    count = sum(not hard for hards in difficult.values() for hard in hards)
    if not count:
        return float("nan")
    rows = np.flatnonzero(table.category_ids == category)
    rows = rows[np.argsort(-table.scores[rows], kind="stable")]
    # From x, y, width, height counted from 0 to inclusive corners counted from 1.
    corners = table.boxes[rows].copy()
    corners[:, 2:] += corners[:, :2]
    corners[:, :2] += 1
    taken = {image_id: [False] * len(hards) for image_id, hards in difficult.items()}
    right, wrong = np.zeros(len(rows)), np.zeros(len(rows))
    for index, (image_id, box) in enumerate(zip(table.image_ids[rows].tolist(), corners)):
        overlaps = _overlaps(box, boxes[image_id])
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or not overlaps[best] > iou:
            wrong[index] = 1
        elif not difficult[image_id][best]:
            right[index] = not taken[image_id][best]
            wrong[index] = taken[image_id][best]
            taken[image_id][best] = True
    right, wrong = right.cumsum(), wrong.cumsum()
    return average_precision(right / np.maximum(right + wrong, 1e-12), right / count, rule)


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes with inclusive corners: (4,) and (N, 4) -> (N,)."""
    size = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1).clip(min=0)
    shared = size[:, 0] * size[:, 1]
    areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=1) + (box[2:] - box[:2] + 1).prod()
    return np.asarray(shared / (areas - shared))


def write_voc_results(
    folder: Path, results: Sequence[Result], images: Sequence[VocImage], classes: Sequence[str], image_set: str
) -> list[Path]:
    """Writes a result file for each class, ``comp4_det_<image set>_<class>.txt``.

    A line is image name, score to 3 decimals, and the corners to 1 decimal, inclusive and counted from 1, as in the
    authors' released code.

    Args:
        folder: made if absent.
        results: COCO results, category ids counted from 1.
        images: the images tested.
        classes: names.
        image_set: such as ``test``.
    """
    names = {image.image_id: image.name for image in images}
    paths = []
    for category, name in enumerate(classes, start=1):
        lines = []
        for entry in results:
            if entry["category_id"] == category:
                x, y, width, height = entry["bbox"]
                corners = f"{x + 1:.1f} {y + 1:.1f} {x + width:.1f} {y + height:.1f}"
                lines.append(f"{names[entry['image_id']]} {entry['score']:.3f} {corners}\n")
        path = folder / f"comp4_det_{image_set}_{name}.txt"
        write_text(path, "".join(lines))
        paths.append(path)
    return paths


def read_voc_results(folder: Path, images: Sequence[VocImage], classes: Sequence[str]) -> list[Result]:
    """Reads the result files of a folder, see :func:`write_voc_results`; a class without a file has no detections.

    Raises:
        UserError: there is no file, one is of an unknown class, or a line is malformed.
    """
    ids = {image.name: image.image_id for image in images}
    results: list[Result] = []
    files = sorted(folder.glob("comp[34]_det_*_*.txt"))
    if not files:
        raise UserError(f"'{folder}' holds no VOC result file (comp4_det_<image set>_<class>.txt)")
    for path in files:
        name = path.stem.rsplit("_", 1)[1]
        if name not in classes:
            raise UserError(f"{path}: '{name}' is none of the classes{did_you_mean(name, classes)}")
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            words = line.split()
            try:
                image_id, (score, x1, y1, x2, y2) = ids[words[0]], map(float, words[1:])
            except (KeyError, ValueError, IndexError):
                raise UserError(
                    f"{path}:{number}: expected 'image score xmin ymin xmax ymax' of a listed image, got '{line[:60]}'"
                ) from None
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            entry = {"image_id": image_id, "category_id": classes.index(name) + 1, "bbox": box, "score": score}
            results.append(entry)
    return results
