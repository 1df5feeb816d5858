"""The CUDA kernels of non-maximum suppression, run without a GPU: kept boxes and memory accesses."""

import pytest
import torch

from dcn_det.ops.reference import nms as reference
from tests.ops.cuda_on_host import CSRC, InOut, Out
from tests.ops.test_nms import clustered_boxes, random_boxes, random_labels

STRIP_WORDS = 64  # as in nms.cuh


def on_host(host, boxes, scores, threshold, max_keep=None, labels=None, strip_words=STRIP_WORDS, seed=0) -> list[int]:
    """Runs the kernels as the operator does: boxes and scores in one dtype, scores sorted by PyTorch."""
    dtype = torch.float64 if torch.float64 in (boxes.dtype, scores.dtype) else torch.float32
    sorted_scores, order = scores.to(dtype).sort(stable=True, descending=True)
    limit = min(max_keep or len(boxes), len(boxes))
    kept, count = torch.full((limit,), -1), torch.zeros(1, dtype=torch.int64)
    arguments = (dtype, len(boxes), limit, threshold, strip_words, boxes.to(dtype), sorted_scores, labels, order)
    host("nms", *arguments, Out(kept), InOut(count), seed=seed)
    return kept[: count.item()].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [random_boxes, clustered_boxes])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_equals_the_reference(host, count, make, dtype):
    boxes, scores = make(count, seed=count, dtype=dtype)
    for threshold in (0.3, 0.7):
        expected = reference.nms(boxes, scores, None, threshold, None).tolist()
        assert on_host(host, boxes, scores, threshold, seed=count) == expected


@pytest.mark.parametrize("strip_words", [1, 2, 5])
@pytest.mark.parametrize("max_keep", [None, 1, 64, 100])
def test_strips(host, strip_words, max_keep):
    boxes, scores = random_boxes(700, seed=4)
    labels = random_labels(700, 3, seed=4)
    for classes in (None, labels):
        expected = reference.nms(boxes, scores, classes, 0.4, max_keep).tolist()
        assert len(expected) > 64 or len(expected) == max_keep
        for seed in (0, 1):
            found = on_host(host, boxes, scores, 0.4, max_keep, classes, strip_words, seed)
            assert found == expected


def test_ties_and_scores_and_boxes_that_are_no_numbers(host):
    boxes, scores = random_boxes(200, seed=5)
    scores = (scores * 4).round() / 4
    scores[::7], scores[3] = float("nan"), float("inf")
    boxes[5, 0], boxes[6, 2], boxes[8] = float("nan"), float("inf"), 1e30
    boxes[9:12] = boxes[9]
    expected = reference.nms(boxes, scores, None, 0.4, None).tolist()
    assert on_host(host, boxes, scores, 0.4) == expected
    assert on_host(host, boxes, torch.full_like(scores, torch.nan), 0.4) == []


def test_strip_width():
    """STRIP_WORDS is the width in the source."""
    source = (CSRC / "cuda" / "nms.cuh").read_text()
    assert f"kStripWords = {STRIP_WORDS};" in source
