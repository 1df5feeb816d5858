"""Pascal VOC's metrics against an implementation of their definition that shares nothing with ours."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dcn_det.config.data import VocDataConfig
from dcn_det.config.testing import EvaluationConfig
from dcn_det.data.records import ImageRecord, ObjectRecord, pack, to_coco
from dcn_det.errors import UserError
from dcn_det.evaluation.ground_truth import GroundTruth, load_ground_truth
from dcn_det.evaluation.truth import Truth
from dcn_det.evaluation.voc import Rule, VocTruth, average_precision, evaluate_voc, read_voc_results, write_voc_results
from tests.messages import refused

CLASSES = ("cat", "dog", "owl")


@dataclass(frozen=True)
class Thing:
    """An object with inclusive corners, counted from 1."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Picture:
    image_id: int
    objects: tuple[Thing, ...]


def image(image_id: int, *objects: tuple[str, tuple[float, float, float, float], bool]) -> Picture:
    return Picture(image_id, tuple(Thing(*each) for each in objects))


def truth(images: list[Picture]) -> GroundTruth:
    def record(each: Thing) -> ObjectRecord:
        x1, y1, x2, y2 = each.box
        return ObjectRecord(CLASSES.index(each.name), (x1 - 1, y1 - 1, x2, y2), each.difficult)

    rows = [
        ImageRecord(each.image_id, f"JPEGImages/{each.image_id:06d}.jpg", 200, 300, tuple(map(record, each.objects)))
        for each in images
    ]
    return load_ground_truth(to_coco(pack(rows, CLASSES, Path())))


def result(image_id: int, name: str, corners: tuple[float, float, float, float], score: float) -> dict:
    """From inclusive corners counted from 1."""
    x1, y1, x2, y2 = corners
    category = CLASSES.index(name) + 1
    box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
    return {"image_id": image_id, "category_id": category, "bbox": box, "score": score}


def random_case(seed: int) -> tuple[list[Picture], list[dict]]:
    random = np.random.default_rng(seed)
    images, results = [], []
    for image_id in range(1, 16):
        objects = []
        for _ in range(random.integers(0, 6)):
            x, y = random.integers(1, 150, 2).tolist()
            width, height = random.integers(5, 100, 2).tolist()
            name = str(random.choice(CLASSES[:2]))
            objects.append((name, (x, y, x + width, y + height), bool(random.random() < 0.25)))
            for _ in range(random.integers(0, 4)):
                near = np.array([x, y, x + width, y + height]) + random.normal(0, 0.12, 4) * np.array(
                    [width, height] * 2
                )
                if near[2] > near[0] and near[3] > near[1]:
                    results.append(result(image_id, name, tuple(near.tolist()), float(random.random())))
        images.append(image(image_id, *objects))
        for _ in range(random.integers(0, 4)):
            x, y = random.integers(1, 150, 2).tolist()
            box = (x, y, x + 40, y + 30)
            results.append(result(image_id, str(random.choice(CLASSES[:2])), box, float(random.random())))
    return images, results


def pixels(box: tuple[float, ...]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def slow_ap(images: list[Picture], results: list[dict], name: str, iou: float, rule: str) -> float:
    """By definition: for every recall the greatest precision of any score threshold that reaches it."""
    total = sum(o.name == name and not o.difficult for i in images for o in i.objects)
    if total == 0:
        return math.nan
    mine = sorted((r for r in results if CLASSES[r["category_id"] - 1] == name), key=lambda r: -r["score"])
    used: set[tuple[int, int]] = set()
    points, right, wrong = [], 0, 0
    for entry in mine:
        x, y, width, height = entry["bbox"]
        box = (x + 1, y + 1, x + width, y + height)
        (where,) = [i for i in images if i.image_id == entry["image_id"]]
        best, chosen = -1.0, -1
        for position, thing in enumerate(where.objects):
            if thing.name != name:
                continue
            b = thing.box
            cut = (max(box[0], b[0]), max(box[1], b[1]), min(box[2], b[2]), min(box[3], b[3]))
            shared = pixels(cut) if cut[2] >= cut[0] - 1 and cut[3] >= cut[1] - 1 else 0
            value = shared / (pixels(box) + pixels(b) - shared)
            if value > best:
                best, chosen = value, position
        if best > iou and where.objects[chosen].difficult:
            pass
        elif best > iou and (where.image_id, chosen) not in used:
            used.add((where.image_id, chosen))
            right += 1
        else:
            wrong += 1
        points.append((right / total, right / (right + wrong) if right + wrong else 0.0))
    if rule == "11-point":
        levels = [0.0]
        for step in range(1, 11):
            levels.append(step * 0.1)  # 0.3 comes out above 3 / 10 here, as in the authors' code
        return sum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 11
    area, last = 0.0, 0.0
    for r in sorted({r for r, _ in points}):
        area += (r - last) * max(p for other, p in points if other >= r)
        last = r
    return area


@pytest.mark.parametrize("rule", ["11-point", "area"])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_the_definition(seed: int, rule: Rule) -> None:
    images, results = random_case(seed)
    metrics = evaluate_voc(truth(images), results, rule, (0.5, 0.7))
    assert tuple(metrics.values) == VocDataConfig.metrics
    for iou in (0.5, 0.7):
        expected = [slow_ap(images, results, name, iou, rule) for name in CLASSES]
        assert metrics[f"mAP{round(100 * iou)}"] == pytest.approx(np.nanmean(expected), abs=1e-9)
        if iou == 0.5:
            assert list(metrics.per_class.values()) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert 0 < metrics["mAP70"] < metrics["mAP50"] < 1
    assert math.isnan(metrics.per_class["owl"])


def test_difficult_objects_are_neither_found_nor_missed() -> None:
    images = [image(1, ("cat", (1, 1, 50, 50), False), ("cat", (101, 1, 150, 50), True))]
    both = [result(1, "cat", (1, 1, 50, 50), 0.5), result(1, "cat", (101, 1, 150, 50), 0.9)]
    metrics = evaluate_voc(truth(images), both)
    assert metrics["mAP50"] == pytest.approx(1)
    assert metrics.objects == 1
    with refused("all 1", "crowds"):
        truth([image(1, ("cat", (1, 1, 5, 5), True))])


def test_overlap_has_to_exceed_the_threshold_and_counts_pixels() -> None:
    images = [image(1, ("cat", (1, 1, 10, 10), False))]
    half = [result(1, "cat", (1, 1, 10, 5), 0.5)]  # 50 of 100 pixels: an overlap of 0.5
    assert evaluate_voc(truth(images), half, ious=(0.5,))["mAP50"] == 0
    assert evaluate_voc(truth(images), half, ious=(0.49,))["mAP49"] == pytest.approx(1)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    images = [image(1, ("cat", (1, 1, 50, 50), False)), image(2, ("cat", (1, 1, 50, 50), False))]
    results = [result(1, "cat", (1, 1, 50, 50), 0.9), result(1, "cat", (1, 1, 50, 49), 0.8)]
    results.append(result(2, "cat", (1, 1, 50, 50), 0.7))
    # Precision 1 up to recall 0.5, then 2/3.
    assert evaluate_voc(truth(images), results, "area")["mAP50"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert evaluate_voc(truth(images), results)["mAP50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_coco_metrics_are_added_on_request() -> None:
    images, results = random_case(1)
    objects = VocTruth(truth(images))
    alone, both = (objects.measure(results, EvaluationConfig(coco_metrics=each)) for each in (False, True))
    coco = Truth(truth(images)).measure(results)
    assert tuple(alone.values) == VocDataConfig.metrics
    assert both.per_class == pytest.approx(alone.per_class, nan_ok=True)
    assert both.values == pytest.approx(alone.values | coco.values, nan_ok=True) and 0 < both["AP"] < both["AP50"]


def test_average_precision_of_no_detections_is_zero() -> None:
    assert average_precision(np.zeros(0), np.zeros(0), "area") == 0
    metrics = evaluate_voc(truth([image(1, ("cat", (1, 1, 50, 50), False))]), [])
    assert metrics["mAP50"] == 0
    assert "there are no results: nothing was detected in any image" in metrics.table()


def test_result_files_are_those_of_the_authors_and_can_be_read_back(tmp_path: Path) -> None:
    images, results = random_case(0)
    objects = truth(images)
    names = {each.image_id: f"{each.image_id:06d}" for each in images}
    write_voc_results(tmp_path, results, names, objects.categories, "test")
    assert {path.name for path in tmp_path.iterdir()} == {f"comp4_det_test_{name}.txt" for name in CLASSES}
    one = [result(3, "dog", (11.24, 12, 60, 70.06), 0.12345)]
    write_voc_results(tmp_path / "one", one, names, objects.categories, "test")
    assert (tmp_path / "one" / "comp4_det_test_dog.txt").read_text() == "000003 0.123 11.2 12.0 60.0 70.1\n"
    again = evaluate_voc(objects, read_voc_results(tmp_path, objects))
    assert again["mAP50"] == pytest.approx(evaluate_voc(objects, results)["mAP50"], abs=0.05)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("comp4_det_test_cow.txt", "", r"'cow' is none of the classes"),
        ("comp4_det_test_cat.txt", "000099 0.5 1 2 3 4\n", r"test_cat\.txt:1: expected 'image score xmin"),
        ("comp4_det_test_cat.txt", "000001 0.5 1 2 3\n", r"test_cat\.txt:1: expected 'image score xmin"),
        ("other.txt", "", r"comp4_det_"),
    ],
)
def test_wrong_result_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_voc_results(tmp_path, truth([image(1, ("cat", (1, 1, 5, 5), False))]))
