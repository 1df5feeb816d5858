"""The parts of a report on a case small enough to be worked out by hand."""

import numpy as np
import pytest

from dcn_det.evaluation.analysis import Analysis, analyse
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.results import check_results

pytest.importorskip("hotcoco")

CAT, DOG, OWL = 3, 1, 8


def box(x: float, y: float, width: float = 20, height: float = 20) -> list[float]:
    return [x, y, width, height]


TRUTH = {
    "images": [{"id": i, "height": 200, "width": 200, "file_name": f"{i}.jpg"} for i in (5, 6, 7)],
    "categories": [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}, {"id": OWL, "name": "owl"}],
    "annotations": [
        {"image_id": 5, "category_id": CAT, "bbox": box(0, 0)},
        {"image_id": 5, "category_id": DOG, "bbox": box(50, 0)},
        {"image_id": 5, "category_id": CAT, "bbox": box(0, 100)},
        {"image_id": 6, "category_id": CAT, "bbox": box(0, 0)},
        {"image_id": 6, "category_id": CAT, "bbox": box(100, 100)},
        {"image_id": 7, "category_id": DOG, "bbox": box(0, 0)},
        {"image_id": 7, "category_id": CAT, "bbox": box(0, 0, 200, 200), "iscrowd": 1},
    ],
}
FOUND = [
    (5, CAT, box(0, 0), 0.95),  # right
    (5, CAT, box(0, 0, 20, 19), 0.6),  # duplicate
    (5, CAT, box(50, 0), 0.9),  # a dog taken for a cat
    (5, CAT, box(0, 112), 0.5),  # localization: 8 of 32 rows
    (6, CAT, box(0, 0), 0.8),  # right
    (6, DOG, box(150, 0), 0.7),  # background
    (6, DOG, box(100, 112), 0.4),  # both: a cat, 8 of 32 rows
    (7, DOG, box(0, 0), 0.2),  # right, not confident
]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    truth = load_ground_truth(TRUTH)
    entries = [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in FOUND]
    return analyse(truth, check_results(entries, truth.images, truth.category_ids, "bbox"))


def test_kinds_of_errors_are_counted(analysis: Analysis) -> None:
    counts = {error.name: error.count for error in analysis.errors}
    assert counts == {
        "classification": 1,
        "localization": 1,
        "both": 1,
        "duplicate": 1,
        "background": 1,
        "missed": 1,
    }


def ap50(right: list[bool], total: int) -> float:
    """Interpolated average precision at 101 recalls, best score first."""
    hits = np.cumsum(right)
    precision, recall = hits / np.arange(1, len(right) + 1), hits / total
    return float(np.mean([max(precision[recall >= level - 1e-12], default=0) for level in np.linspace(0, 1, 101)]))


def test_costs_are_what_mending_gains(analysis: Analysis) -> None:
    cat = [True, False, True, False, False]  # 0.95, 0.9, 0.8, 0.6, 0.5 of 4 objects
    dog = [False, False, True]  # 0.7, 0.4, 0.2 of 2 objects
    base = (ap50(cat, 4) + ap50(dog, 2)) / 2
    assert analysis.ap50 == pytest.approx(base)
    cost = {error.name: error.cost for error in analysis.errors}
    # The wrong class becomes a right dog of score 0.9.
    mended = (ap50([True, True, False, False], 4) + ap50([True, False, False, True], 2)) / 2
    assert cost["classification"] == pytest.approx(mended - base)
    # The badly placed cat becomes right.
    assert cost["localization"] == pytest.approx((ap50([True, False, True, False, True], 4) + ap50(dog, 2)) / 2 - base)
    # Duplicates and background are removed.
    assert cost["duplicate"] == pytest.approx((ap50([True, False, True, False], 4) + ap50(dog, 2)) / 2 - base)
    assert cost["background"] == pytest.approx((ap50(cat, 4) + ap50([False, True], 2)) / 2 - base)
    assert cost["both"] == pytest.approx((ap50(cat, 4) + ap50([False, True], 2)) / 2 - base)


def test_scores_are_divided_into_right_and_wrong(analysis: Analysis) -> None:
    assert sorted(analysis.right_scores) == [0.2, 0.8, 0.95]
    assert sorted(analysis.wrong_scores) == [0.4, 0.5, 0.6, 0.7, 0.9]


def test_overlaps_are_those_with_the_nearest_object_of_the_class(analysis: Analysis) -> None:
    # In the order of the confident detections; no cat is near the dog, no dog is in image 6.
    assert analysis.ious.tolist() == pytest.approx([1, 0.95, 0, 0.25, 1, 0, 0])


def test_confusions_of_confident_detections(analysis: Analysis) -> None:
    dog, cat, background = 0, 1, 3
    expected = np.zeros((4, 4), np.int64)
    expected[cat, cat] = 2
    expected[dog, cat] = 1
    expected[cat, background] = 2
    expected[dog, background] = 1  # the dog of image 7 is found without confidence
    expected[background, cat] = 2
    expected[background, dog] = 2
    assert analysis.confusion.tolist() == expected.tolist()


def test_the_worst_images_come_first(analysis: Analysis) -> None:
    worst = {bad.image_id: bad for bad in analysis.worst}
    assert [bad.image_id for bad in analysis.worst] == [5, 6, 7]
    assert worst[5].wrong == (1, 2, 3) and worst[5].missed == (1, 2)
    assert worst[5].badness == pytest.approx(0.6 + 0.9 + 0.5 + 2)
    assert worst[6].wrong == (5, 6) and worst[6].missed == (4,)
    assert worst[7].wrong == () and worst[7].missed == (5,)


def test_classes_and_curves(analysis: Analysis) -> None:
    rows = {row.name: row for row in analysis.classes}
    assert (rows["cat"].objects, rows["cat"].detections) == (4, 5)
    assert rows["cat"].ap50 == pytest.approx(ap50([True, False, True, False, False], 4))
    assert np.isnan(rows["owl"].ap) and np.isnan(rows["cat"].large)
    assert analysis.precision["IoU 0.50"].mean() == pytest.approx(analysis.ap50)
    assert analysis.precision["mean"].mean() == pytest.approx((rows["cat"].ap + rows["dog"].ap) / 2)


def test_no_results_at_all_can_be_analysed() -> None:
    truth = load_ground_truth(TRUTH)
    empty = analyse(truth, check_results([], truth.images, truth.category_ids, "bbox"))
    assert empty.ap50 == 0
    assert {error.name: error.count for error in empty.errors}["missed"] == 6
    assert len(empty.worst) == 3
