"""Pascal VOC's average precision and result files.

Rules of the development kits and of the authors' released code: a detection is correct if its IoU with an object of its
class exceeds the threshold and no detection with a higher score matches that object. Corners are inclusive: a box from
1 to 2 is two pixels wide. Objects marked as difficult, and detections of them, are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from dcn_det.categories import Category
from dcn_det.config.data import DataConfig, VocDataConfig
from dcn_det.config.testing import EvaluationConfig
from dcn_det.errors import UserError, did_you_mean
from dcn_det.evaluation.backends import IouType
from dcn_det.evaluation.ground_truth import GroundTruth
from dcn_det.evaluation.metrics import Metrics
from dcn_det.evaluation.results import Result, ResultTable, box_hints, check_results
from dcn_det.evaluation.truth import Truth
from dcn_det.files import read_text, write_text

if TYPE_CHECKING:
    from dcn_det.data.index import DatasetIndex

Rule = Literal["11-point", "area"]


class VocTruth(Truth):
    """Ground truth for Pascal VOC's metrics; crowds are difficult objects, image names are file stems."""

    def measure(
        self,
        results: ResultTable | Sequence[Result],
        settings: EvaluationConfig | None = None,
        iou_type: IouType = "bbox",
    ) -> Metrics:
        if iou_type != "bbox":
            raise UserError(f"iou_type {iou_type}: Pascal VOC's metrics are for boxes; choose bbox")
        settings = settings or EvaluationConfig()
        found = evaluate_voc(self.coco, results, settings.voc_ap)
        if not settings.coco_metrics:
            return found
        coco = super().measure(results, settings)
        return replace(found, values=found.values | coco.values, notes=(*found.notes, *coco.notes))

    def measures(self, results: ResultTable, settings: EvaluationConfig) -> list[Metrics]:
        settings = settings.model_copy(update={"coco_metrics": False})
        return [self.measure(results, settings), super().measure(results, settings)]

    def read_folder(self, folder: Path) -> list[Result]:
        return read_voc_results(folder, self.coco)

    @staticmethod
    def write_results(folder: Path, results: Sequence[Result], index: DatasetIndex, data: DataConfig) -> Path:
        assert isinstance(data, VocDataConfig) and data.test is not None
        names = {index.image_id(i): Path(index.file_name(i)).stem for i in range(len(index))}
        write_voc_results(
            folder / "voc",
            results,
            names,
            index.categories,
            Path((data.test.sets or (data.test.folder or "test",))[0]).stem,
        )
        return folder / "voc"


def average_precision(precision: NDArray[np.float64], recall: NDArray[np.float64], rule: Rule) -> float:
    """Returns the area under the curve of precision over recall, with precision made monotonic.

    Args:
        precision, recall: (N,), values after each detection, in descending order of score.
        rule: ``11-point`` averages precision at recalls 0, 0.1, ... 1 (2007); ``area`` is exact (from 2010 on).
    """
    if not len(recall):
        return 0.0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if rule == "area":
        return float((np.diff(recall, prepend=0.0) * best).sum())
    # Levels as rounded by NumPy (the fourth is slightly above 0.3), as in the authors' released code.
    reached = np.searchsorted(recall, np.arange(11) * 0.1)
    return float(sum(best[i] for i in reached if i < len(best)) / 11)


def evaluate_voc(
    truth: GroundTruth,
    results: Sequence[Result] | ResultTable,
    rule: Rule = "11-point",
    ious: Sequence[float] = (0.5, 0.7),
) -> Metrics:
    """Computes VOC's mean average precision.

    Args:
        truth: ground truth; crowds are difficult objects.
        results: results in COCO's format.
        rule: see :func:`average_precision`.
        ious: IoU thresholds (exclusive), each of which gives a metric: ``mAP50`` and ``mAP70`` by default.

    Returns:
        Metrics; ``per_class`` is the average precision at the first of ``ious``, nan for a class without objects.

    Raises:
        UserError: the results cannot be evaluated; see ``check_results``.
    """
    table = (
        results
        if isinstance(results, ResultTable)
        else check_results(list(results), truth.images, truth.category_ids, "bbox")
    )
    objects = _objects_by_class(truth)
    values: dict[str, float] = {}
    per_class: dict[str, float] = {}
    for iou in ious:
        found = {each.name: _class_ap(objects[each.id], table, each.id, iou, rule) for each in truth.categories}
        values[f"mAP{round(100 * iou)}"] = float(np.nanmean(list(found.values())))
        per_class = per_class or found
    notes = list(table.notes)
    if not len(table):
        notes.append("there are no results: nothing was detected in any image")
    notes += box_hints(table, truth.images)
    count = sum(not each["iscrowd"] for each in truth.annotations)
    return Metrics("voc", f"dcn_det, {rule}", values, per_class, len(truth.images), count, len(table), tuple(notes))


@dataclass(frozen=True)
class _Objects:
    """Objects of a class in an image.

    Attributes:
        boxes: (N, 4), inclusive corners in pixels counted from 1.
        difficult: N flags.
    """

    boxes: NDArray[np.float64]
    difficult: list[bool]


_NONE = _Objects(np.zeros((0, 4)), [])


def _objects_by_class(truth: GroundTruth) -> dict[int, dict[int, _Objects]]:
    """Returns the objects by category id and image id."""
    rows: dict[int, dict[int, list[Mapping[str, Any]]]] = {category.id: {} for category in truth.categories}
    for each in truth.annotations:
        rows[each["category_id"]].setdefault(each["image_id"], []).append(each)
    return {
        category: {
            image_id: _Objects(_corners(np.array([each["bbox"] for each in here], np.float64)),
                               [bool(each["iscrowd"]) for each in here])
            for image_id, here in images.items()
        }
        for category, images in rows.items()
    }  # fmt: skip


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts x, y, width, height counted from 0 to inclusive corners counted from 1."""
    corners = boxes.copy()
    corners[:, 2:] += corners[:, :2]
    corners[:, :2] += 1
    return corners


def _class_ap(objects: Mapping[int, _Objects], table: ResultTable, category: int, iou: float, rule: Rule) -> float:
    count = sum(not hard for each in objects.values() for hard in each.difficult)
    if not count:
        return float("nan")
    rows = np.flatnonzero(table.category_ids == category)
    rows = rows[np.argsort(-table.scores[rows], kind="stable")]
    taken = {image_id: [False] * len(each.difficult) for image_id, each in objects.items()}
    right, wrong = np.zeros(len(rows)), np.zeros(len(rows))
    for index, (image_id, box) in enumerate(zip(table.image_ids[rows].tolist(), _corners(table.boxes[rows]))):
        here = objects.get(image_id, _NONE)
        overlaps = _overlaps(box, here.boxes)
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best < 0 or not overlaps[best] > iou:
            wrong[index] = 1
        elif not here.difficult[best]:
            right[index] = not taken[image_id][best]
            wrong[index] = taken[image_id][best]
            taken[image_id][best] = True
    right, wrong = right.cumsum(), wrong.cumsum()
    return average_precision(right / np.maximum(right + wrong, 1e-12), right / count, rule)


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the IoU (N,) of boxes with inclusive corners: (4,) with (N, 4)."""
    size = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + 1).clip(min=0)
    shared = size[:, 0] * size[:, 1]
    areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=1) + (box[2:] - box[:2] + 1).prod()
    return np.asarray(shared / (areas - shared))


def write_voc_results(
    folder: Path, results: Sequence[Result], images: Mapping[int, str], categories: Sequence[Category], image_set: str
) -> None:
    """Writes a result file per class, ``comp4_det_<image set>_<class>.txt``.

    Each line has the image name, the score with 3 decimals, and the corners with 1 decimal, inclusive and counted from
    1, as in the authors' released code. Characters that file names cannot have, such as ``/`` in a class name, and
    spaces in image names are percent-encoded (``%2F``).

    Args:
        folder: output folder, created if absent.
        results: results in COCO's format.
        images: image names by id, without suffix.
        categories: categories; a file is written for each.
        image_set: name of the image set, such as ``test``.
    """
    lines: dict[int, list[str]] = {category.id: [] for category in categories}
    for entry in results:
        x, y, width, height = entry["bbox"]
        corners = f"{x + 1:.1f} {y + 1:.1f} {x + width:.1f} {y + height:.1f}"
        name = _quoted(images[entry["image_id"]]).replace(" ", "%20")
        lines[entry["category_id"]].append(f"{name} {entry['score']:.3f} {corners}\n")
    for category in categories:
        content = "".join(lines[category.id]) if category.annotated else ""
        write_text(folder / f"comp4_det_{image_set}_{_quoted(category.name)}.txt", content)


def _quoted(name: str) -> str:
    """Percent-encodes ``%`` and characters that file names cannot have."""
    return quote(name, safe=" ()[]{},;=+@#$&!^~'")


def read_voc_results(folder: Path, truth: GroundTruth) -> list[Result]:
    """Reads the result files of a folder, see :func:`write_voc_results`; a class without a file has no detections.

    Raises:
        UserError: there are no result files, the class of a file is unknown, or a line is malformed.
    """
    images = {Path(name).stem: image_id for image_id, name in truth.file_names.items()}
    categories = {category.name: category.id for category in truth.categories}
    results: list[Result] = []
    endings = {f"_{_quoted(name)}": name for name in categories}
    files = sorted(folder.glob("comp[34]_det_*_*.txt"))
    if not files:
        raise UserError(f"'{folder}' contains no VOC result file (comp4_det_<image set>_<class>.txt)")
    for path in files:
        # Image sets and class names may both contain underscores: use the longest class name that matches.
        fitting = [ending for ending in endings if path.stem.endswith(ending)]
        if not fitting:
            name = path.stem.rsplit("_", 1)[1]
            raise UserError(f"{path}: '{name}' is none of the classes{did_you_mean(name, categories)}")
        name = endings[max(fitting, key=len)]
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            words = line.split()
            try:
                image_id, (score, x1, y1, x2, y2) = images[unquote(words[0])], map(float, words[1:])
            except (KeyError, ValueError, IndexError):
                raise UserError(
                    f"{path}:{number}: expected 'image score xmin ymin xmax ymax' of a known image, got '{line[:60]}'"
                ) from None
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            results.append({"image_id": image_id, "category_id": categories[name], "bbox": box, "score": score})
    return results
