"""Metrics of semantic segmentation against independent computations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dcn_det.categories import Category
from dcn_det.distributed import Processes
from dcn_det.evaluation.segmentation import MaskEvaluator, MaskMetrics, confusion, mean_iou, resize_nearest

CLASSES = 7
CATEGORIES = tuple(Category(label, f"class {label}") for label in range(CLASSES))


def random_pairs(count: int = 6, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of different sizes, with ignored pixels; class 3 never occurs, class 5 is never right."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        sizes = rng.integers(5, 40, size=(2, 2))
        predicted = rng.choice([0, 1, 2, 4, 6], size=sizes[0]).astype(np.uint8)
        truth = rng.choice([0, 1, 2, 4, 5, 255], size=sizes[1]).astype(np.uint8)
        pairs.append((predicted, truth))
    return pairs


def ious_by_loops(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], float]:
    """IoU of each class and pixel accuracy by set operations on masks, without a confusion matrix."""
    ious = []
    for label in range(CLASSES):
        inside = union = 0
        for predicted, truth in pairs:
            counted = truth != 255
            mine, its = (predicted == label) & counted, (truth == label) & counted
            inside += int((mine & its).sum())
            union += int((mine | its).sum())
        ious.append(inside / union if union else float("nan"))
    right = sum(int((p == t)[t != 255].sum()) for p, t in pairs)
    return ious, right / sum(int((t != 255).sum()) for _, t in pairs)


def resized(labels: np.ndarray, like: np.ndarray) -> np.ndarray:
    return cv2.resize(labels, like.shape[::-1], interpolation=cv2.INTER_NEAREST)


def measure(pairs: Sequence[tuple[np.ndarray, np.ndarray]], compare_at: Any, full: bool = False) -> MaskMetrics:
    evaluator = MaskEvaluator(CATEGORIES, compare_at)
    for i, (predicted, truth) in enumerate(pairs):
        whole = torch.from_numpy(resized(predicted, truth)) if full else None
        evaluator.add(i, torch.from_numpy(predicted), torch.from_numpy(truth), whole)
    return evaluator.metrics()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_counting_pixels_class_by_class(seed: int) -> None:
    pairs = random_pairs(seed=seed)
    by_truth = [(resized(predicted, truth), truth) for predicted, truth in pairs]
    by_input = [(predicted, resized(truth, predicted)) for predicted, truth in pairs]
    full = ious_by_loops(by_truth)
    for compare_at, compared in (("image", by_truth), ("input", by_input)):
        ious, accuracy = ious_by_loops(compared)
        found = measure(pairs, compare_at, full=seed % 2 == 0)
        assert list(found.per_class.values()) == pytest.approx(ious, abs=1e-12, nan_ok=True)
        assert found["mIoU"] == pytest.approx(np.nanmean(ious), abs=1e-12)
        assert found["mIoU_full"] == pytest.approx(np.nanmean(full[0]), abs=1e-12)
        assert found["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_absent_classes_are_left_out_of_the_mean_and_wrong_ones_are_not() -> None:
    found = measure(random_pairs(), "image")
    assert np.isnan(found.per_class["class 3"])
    assert found.per_class["class 5"] == 0 and found.per_class["class 6"] == 0
    assert found["mIoU"] == pytest.approx(np.mean([v for k, v in found.per_class.items() if k != "class 3"]))


def test_hand_computed() -> None:
    predicted, truth = torch.tensor([[0, 0, 1], [1, 1, 0]]), torch.tensor([[0, 1, 1], [1, 255, 255]])
    counts = confusion(predicted, truth, 3)
    assert counts.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert float(mean_iou(counts)) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_nothing_to_count_is_undefined() -> None:
    found = measure([(np.zeros((3, 3), np.uint8), np.full((3, 3), 255, np.uint8))], "image")
    assert all(np.isnan(value) for value in found.values.values())
    assert found.to_plain()["metrics"] == {"mIoU": None, "mIoU_full": None, "pixel_accuracy": None}


@pytest.mark.parametrize("old", [1, 2, 3, 7, 10, 49, 360, 375, 500])
def test_nearest_pixels_are_those_of_opencv(old: int) -> None:
    row = np.arange(old, dtype=np.int32).astype(np.float32)[None]  # float32 as in the authors' code
    for new in (1, 2, 3, 5, 7, 21, 98, 360, 480, 500, 599, 600):
        expected = cv2.resize(row, (new, 1), interpolation=cv2.INTER_NEAREST)
        assert torch.equal(resize_nearest(torch.from_numpy(row), 1, new), torch.from_numpy(expected)), new
        tall = resize_nearest(torch.from_numpy(row.T.copy()), new, 1)
        assert torch.equal(tall, torch.from_numpy(expected.T.copy()))


class Together(Processes):
    """Processes of a run, in one: what the others would send is known."""

    parts: list[Any]

    def gather(self, value: Any) -> list[Any]:
        return self.parts


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_metrics_do_not_depend_on_the_number_of_processes(world_size: int) -> None:
    pairs = random_pairs(8)
    alone = measure(pairs, "input")

    class Recorder(Processes):
        def gather(self, value: Any) -> list[Any]:
            sent.append(value)
            return [value]

    sent: list[Any] = []
    for rank in range(world_size):
        evaluator = MaskEvaluator(CATEGORIES, "input")
        for i in range(8 * rank // world_size, 8 * (rank + 1) // world_size):
            evaluator.add(i, *(torch.from_numpy(each) for each in pairs[i]))
        evaluator.metrics(Recorder())
    together = Together()
    object.__setattr__(together, "parts", sent)
    found = MaskEvaluator(CATEGORIES, "input").metrics(together)
    assert found.values == alone.values
    assert found.scores == alone.scores and [score.image_id for score in found.scores] == list(range(8))
    assert np.array_equal(found.confusion, alone.confusion)


def test_scores_of_images_find_the_worst_one() -> None:
    pairs = [(truth.clip(0, 6), truth) for _, truth in random_pairs(4)]
    pairs[2] = ((pairs[2][1] + 1).clip(0, 6), pairs[2][1])
    found = measure(pairs, "image")
    assert min(found.scores, key=lambda score: score.iou).image_id == 2
    assert all(score.iou == score.accuracy == 1 for score in found.scores if score.image_id != 2)
    assert "4 images" in found.table() and "class 0" in found.table(per_class=True)
