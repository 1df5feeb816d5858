"""Suppression and voting against slow, plain references."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dcn_det.models.postprocess import PostProcess, confident, soft_nms, vote
from dcn_det.structures import Detections


def random_candidates(seed: int, count: int = 150, classes: int = 3, decimals: int | None = None) -> Detections:
    """Clusters of overlapping boxes."""
    random = np.random.default_rng(seed)
    centres = random.uniform(50, 300, (12, 2))[random.integers(12, size=count)] + random.normal(0, 8, (count, 2))
    half = random.uniform(15, 45, (count, 2))
    scores = random.uniform(0.01, 1, count)
    if decimals is not None:
        scores = scores.round(decimals)
    return Detections(
        torch.from_numpy(np.hstack([centres - half, centres + half])).float(),
        torch.from_numpy(scores).float(),
        torch.from_numpy(random.integers(classes, size=count)),
    )


def overlap(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def slow_suppression(found: Detections, rule: str, iou: float, sigma: float, least: float, agnostic: bool):
    """Takes the best of what is left, class by class, and lowers the rest; returns (score, index) best first."""
    boxes, labels = found.boxes.tolist(), found.labels.tolist()
    taken = []
    for label in [None] if agnostic else sorted(set(labels)):
        left = {i: s for i, s in enumerate(found.scores.double().tolist()) if label is None or labels[i] == label}
        while left:
            best = max(left, key=lambda i: (left[i], -i))
            score = left.pop(best)
            if score <= least:
                break
            taken.append((score, best))
            for i in list(left):
                o = overlap(boxes[best], boxes[i])
                if rule == "hard" and o > iou:
                    del left[i]
                elif rule == "linear" and o > iou:
                    left[i] *= 1 - o
                elif rule == "gaussian":
                    left[i] *= math.exp(-o * o / sigma)
    return sorted(taken, key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("rule", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_equals_a_slow_reference(rule: Any, agnostic: bool, seed: int) -> None:
    found = random_candidates(seed)
    expected = slow_suppression(found, rule, 0.35, 0.6, 0.05, agnostic)[:30]
    select = PostProcess(0.05, rule, 0.35, 0.6, agnostic, max_detections=30)
    result = select(found[found.scores > 0.05])
    whole = found[torch.tensor([i for _, i in expected])]
    assert 10 < len(result) == len(expected)
    torch.testing.assert_close(result.scores.double(), torch.tensor([s for s, _ in expected]).double())
    assert torch.equal(result.boxes, whole.boxes)
    assert torch.equal(result.labels, whole.labels)


def test_soft_suppression_takes_the_lower_index_of_equal_scores_and_stops() -> None:
    found = Detections(torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1), torch.tensor([0.5, 0.5, 0.5]), torch.zeros(3))
    settings: dict[str, Any] = {"iou_threshold": 0.3, "score_threshold": 0.001, "max_keep": 10}
    keep, scores = soft_nms(found.boxes, found.scores, torch.zeros(3, dtype=torch.int64), sigma=None, **settings)
    assert keep.tolist() == [0] and scores.tolist() == [0.5], "the linear rule leaves nothing of a box's own copy"
    keep, scores = soft_nms(found.boxes, found.scores, torch.zeros(3, dtype=torch.int64), sigma=0.5, **settings)
    assert keep.tolist() == [0, 1, 2]
    assert scores.tolist() == pytest.approx([0.5, 0.5 * math.exp(-2), 0.5 * math.exp(-4)])


def test_empty_boxes_and_nothing_at_all_are_suppressed_without_complaint() -> None:
    empty = Detections(torch.zeros(2, 4), torch.tensor([0.5, 0.4]), torch.zeros(2, dtype=torch.int64))
    for rule in ("hard", "linear", "gaussian"):
        for vote_iou in (None, 0.5):
            select = PostProcess(nms=rule, vote_iou=vote_iou)
            assert select(empty).boxes.tolist() == [[0] * 4] * 2
            assert len(select(empty[torch.zeros(2, dtype=torch.bool)])) == 0


@pytest.mark.parametrize("seed", range(4))
def test_voting_equals_a_slow_reference(seed: int) -> None:
    found = random_candidates(seed)
    kept = PostProcess(nms_iou=0.3, max_detections=40)(found)
    result = vote(kept, found, 0.5)
    boxes, scores, labels = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
    moved = 0
    for index, (box, label) in enumerate(zip(kept.boxes.tolist(), kept.labels.tolist())):
        members = [i for i in range(len(found)) if labels[i] == label and overlap(box, boxes[i]) >= 0.5]
        total = sum(scores[i] for i in members)
        mean = [sum(scores[i] * boxes[i][k] for i in members) / total for k in range(4)]
        assert result.boxes[index].tolist() == pytest.approx(mean, abs=1e-4)
        moved += len(members) > 1
    assert moved > 10, "the case is no trivial one"
    assert torch.equal(result.scores, kept.scores) and torch.equal(result.labels, kept.labels)


def test_voting_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 30], [0, 0, 10, 10]])
    candidates = Detections(boxes, torch.tensor([0.9, 0.3, 0.8, 0.7]), torch.tensor([0, 0, 0, 1]))
    result = PostProcess(nms_iou=0.6, vote_iou=0.5)(candidates)
    assert result.labels.tolist() == [0, 0, 1]
    # 0.9 at 10 and 0.3 at 12; the tall box overlaps neither by half, and that of the other class has no vote.
    assert result.boxes[:, 3].tolist() == pytest.approx([10.5, 30, 10])


def test_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    boxes = torch.stack([boxes, boxes + 100], dim=1)
    scores = torch.tensor([[0.5, 0.9], [0.6, 0.1], [0.7, 0.05]])
    result = PostProcess(0.05, nms_iou=0.3, max_detections=100)(confident(scores, boxes, 0.05))
    assert result.labels.tolist() == [1, 0, 0]
    assert torch.equal(result.scores, torch.tensor([0.9, 0.7, 0.6]))
    assert torch.equal(result.boxes, torch.stack([boxes[0, 1], boxes[2, 0], boxes[1, 0]]))


def test_limit_counts_all_classes() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(3, 4, 4) + 50 * torch.arange(3.0).view(3, 1, 1)
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    result = PostProcess(0, nms_iou=0.3, max_detections=5)(confident(scores, boxes, 0))
    assert torch.equal(result.scores, scores.flatten().sort(descending=True).values[:5])


def test_confident_pairs_come_by_box_then_by_class() -> None:
    boxes = torch.arange(24.0).view(2, 3, 4)
    found = confident(torch.tensor([[0.2, 0.5, 0.1], [0.9, 0.1, 0.3]]), boxes, 0.1)
    assert found.labels.tolist() == [0, 1, 0, 2]
    assert found.scores.tolist() == pytest.approx([0.2, 0.5, 0.9, 0.3])
    assert torch.equal(found.boxes, torch.stack([boxes[0, 0], boxes[0, 1], boxes[1, 0], boxes[1, 2]]))


def test_nothing_confident() -> None:
    result = PostProcess(0, nms_iou=0.3, max_detections=5)(confident(torch.zeros(4, 3), torch.zeros(4, 3, 4), 0))
    assert len(result) == 0 and result.boxes.shape == (0, 4) and result.labels.dtype == torch.int64
