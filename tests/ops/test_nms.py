"""Non-maximum suppression, for every tier that is present."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pooling_tiers import TIERS, use_tier
from torch import Tensor

from dcn_det.ops import batched_nms, nms
from dcn_det.ops.reference import nms as reference


@pytest.fixture(params=TIERS)
def device(request, monkeypatch) -> torch.device:
    return use_tier("nms", request.param, monkeypatch)


def make_boxes(
    count: int, seed: int = 0, grid: float = 0.0, dtype=torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels. With a grid, corners are multiples of it and scores multiples of 0.1."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 90
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40 + 1
    boxes = torch.cat([corner, corner + size], 1)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (count,), generator=generator)
    if grid:
        boxes, scores = (boxes / grid).round() * grid, (scores * 10).round() / 10
    return boxes.to(dtype), scores.to(dtype), labels


def by_loops(boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> list[int]:
    """The definition, in Python's numbers."""
    rows, values = boxes.double().tolist(), scores.double().tolist()
    classes = [0] * len(rows) if labels is None else labels.tolist()
    usable = [i for i, row in enumerate(rows) if not any(map(math.isnan, [*row, values[i]]))]
    kept: list[int] = []
    for i in sorted(usable, key=lambda i: (-values[i], i)):
        if all(classes[i] != classes[j] or iou(rows[i], rows[j]) <= iou_threshold for j in kept):
            kept.append(i)
    return kept


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 300])
@pytest.mark.parametrize("grid", [0, 8.0])
@pytest.mark.parametrize("with_labels", [False, True])
def test_matches_loops(count, grid, with_labels, device):
    boxes, scores, labels = make_boxes(count, count, grid, torch.float64)
    expected = by_loops(boxes, scores, labels if with_labels else None, 0.3)
    arguments = [t.to(device) for t in ((boxes, scores, labels) if with_labels else (boxes, scores))]
    found = (batched_nms if with_labels else nms)(*arguments, 0.3)
    assert found.dtype == torch.int64 and found.device.type == device.type
    assert found.tolist() == expected


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1 / 3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("grid", [0.0, 0.1, 10.0])
def test_matches_torchvision(threshold, grid, device):
    for seed in range(4):
        boxes, _, _ = make_boxes(400, seed, grid)
        # Different scores, because torchvision does not order equal ones.
        scores = torch.randperm(400, generator=torch.Generator().manual_seed(seed)).float()
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(nms(boxes.to(device), scores.to(device), threshold).cpu(), expected)


def test_batched_matches_torchvision(device):
    boxes, _, labels = make_boxes(600)
    scores = torch.randperm(600, generator=torch.Generator().manual_seed(0)).float()
    expected = torchvision.ops.batched_nms(boxes, scores, labels, 0.5)
    found = batched_nms(boxes.to(device), scores.to(device), labels.to(device), 0.5)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("values", [[-5, -5, 3], [0, 1 << 62, -(1 << 62)], [(1 << 63) - 1, -(1 << 63), 7]])
def test_labels_may_have_any_value(values, device):
    boxes, scores, labels = make_boxes(60)
    labels = labels % 3
    strange = torch.tensor(values)[labels]
    same = strange[:, None] == strange
    expected = batched_nms(boxes, scores, same.int().argmax(1), 0.3)
    assert torch.equal(
        batched_nms(boxes.to(device), scores.to(device), strange.to(device), 0.3).cpu(), expected
    )


def test_classes_far_from_the_origin_are_told_apart_exactly(device):
    # Moving classes apart by an offset would round these corners to multiples of 8.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [5e7, 0, 5e7 + 64, 64]]).to(device)
    scores, labels = torch.tensor([0.9, 0.8, 0.7]).to(device), torch.tensor([3, 3, 0]).to(device)
    assert batched_nms(boxes, scores, labels, 0.46).tolist() == [0, 1, 2]
    assert batched_nms(boxes, scores, labels, 0.44).tolist() == [0, 2]


@pytest.mark.parametrize("with_labels", [False, True])
def test_max_keep_gives_a_prefix(with_labels, device):
    arguments = [t.to(device) for t in make_boxes(200)[: 3 if with_labels else 2]]
    function = batched_nms if with_labels else nms
    everything = function(*arguments, 0.5)
    for most in (0, 1, 5, 64, len(everything), len(everything) + 1, 10**12):
        assert torch.equal(function(*arguments, 0.5, most), everything[:most])


def test_equal_scores_keep_their_order(device):
    boxes = torch.tensor([[0.0, 0, 1, 1], [10, 0, 11, 1], [20, 0, 21, 1], [30, 0, 31, 1]]).to(device)
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.5, 0.5]).to(device), 0.5).tolist() == [1, 0, 2, 3]
    assert nms(boxes, torch.tensor([0.0, -0.0, 0.0, -0.0]).to(device), 0.5).tolist() == [0, 1, 2, 3]


def test_an_overlap_equal_to_the_threshold_is_kept(device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]]).to(device)
    scores = torch.tensor([0.9, 0.8]).to(device)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.4999999).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_never_kept_and_suppresses_nothing(dtype, device):
    boxes, scores, labels = make_boxes(100, dtype=dtype)
    bad = torch.zeros(100, dtype=torch.bool)
    for i, corner in ((3, 0), (20, 1), (40, 2), (80, 3)):
        boxes[i, corner], bad[i] = float("nan"), True
    for i in (0, 7, 99):
        scores[i], bad[i] = float("nan"), True
    good = (~bad).nonzero().flatten()
    for function, extra in ((nms, []), (batched_nms, [labels])):
        expected = good[function(boxes[good], scores[good], *(e[good] for e in extra), 0.3)]
        found = function(*(t.to(device) for t in (boxes, scores, *extra)), 0.3)
        assert torch.equal(found.cpu(), expected)
    assert nms((boxes * float("nan")).to(device), scores.to(device), 0.3).tolist() == []


def test_infinite_values_and_empty_boxes(device):
    inf = float("inf")
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [-inf, -inf, inf, inf],
            [0, 0, inf, 10],
            [5, 5, 5, 5],
            [9, 9, 1, 1],
            [0, 0, 10, 10],
        ]
    ).to(device)
    scores = torch.tensor([-inf, inf, 0.5, 0.4, 0.3, -inf]).to(device)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2, 3, 4, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 8)] * 2, st.integers(0, 3), st.integers(0, 2)),
        max_size=80,
    ),
    st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.6, 1.0]),
)
def test_any_whole_boxes(rows, threshold):
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], 1)
    for labels in (None, table[:, 5].long()):
        expected = by_loops(boxes, table[:, 4], labels, threshold)
        for dtype in (torch.float32, torch.float64):
            arguments = (boxes.to(dtype), table[:, 4].to(dtype), labels, threshold, None)
            assert torch.ops.dcn_det.nms(*arguments).tolist() == expected
            assert reference.nms(*arguments).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, device):
    boxes, scores, _ = make_boxes(200, dtype=dtype)
    expected = nms(boxes.float(), scores.float(), 0.5)
    assert torch.equal(nms(boxes.to(device), scores.to(device), 0.5).cpu(), expected)
    assert torch.equal(nms(boxes.float().to(device), scores.to(device), 0.5).cpu(), expected)


def test_double_scores_are_not_rounded(device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]]).to(device)
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64).to(device)
    assert nms(boxes, scores, 0.5).tolist() == [1]


def test_arguments_need_not_be_contiguous(device):
    boxes, scores, labels = (t.to(device) for t in make_boxes(100))
    strided = (boxes.T.contiguous().T, scores.repeat_interleave(2)[::2], labels.repeat_interleave(3)[::3])
    assert torch.equal(batched_nms(*strided, 0.4), batched_nms(boxes, scores, labels, 0.4))


ERRORS = {
    "boxes": ({"boxes": torch.zeros(3, 5)}, r"boxes is of shape \(3, 5\); expected \(N, 4\)"),
    "boxes dtype": ({"boxes": torch.zeros(3, 4).int()}, "boxes is torch.int32; expected float32"),
    "scores": ({"scores": torch.zeros(2)}, r"scores is of shape \(2,\); expected \(3,\), one for each box"),
    "scores dtype": ({"scores": torch.zeros(3).long()}, "scores is torch.int64; expected float32"),
    "scores device": (
        {"scores": torch.zeros(3, device="meta")},
        "scores is on meta; expected cpu, as the boxes",
    ),
    "labels": ({"labels": torch.zeros(3, 1).long()}, r"labels is of shape \(3, 1\); expected \(3,\)"),
    "labels dtype": ({"labels": torch.zeros(3)}, "labels is torch.float32; expected int64"),
    "threshold": ({"iou_threshold": 1.5}, r"iou_threshold is 1.5; expected a number in \[0, 1\]"),
    "threshold nan": ({"iou_threshold": float("nan")}, "iou_threshold is nan; expected a number"),
    "max_keep": ({"max_keep": -1}, "max_keep is -1; expected None or an int of at least 0"),
}


@pytest.mark.parametrize(("changes", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("tier", ["cpu", "plain"])
def test_errors_tell_argument_and_expectation(changes, message, tier, monkeypatch):
    use_tier("nms", tier, monkeypatch)
    arguments = {"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), "labels": torch.zeros(3).long()}
    arguments |= {"iou_threshold": 0.5} | changes
    with pytest.raises(ValueError, match=rf"^batched_nms: {message}"):
        batched_nms(**arguments)
    del arguments["labels"]
    if "labels" not in changes:
        with pytest.raises(ValueError, match=rf"^nms: {message}"):
            nms(**arguments)


@pytest.mark.parametrize("with_labels", [False, True])
def test_opcheck(with_labels):
    boxes, scores, labels = make_boxes(20)
    arguments = (boxes, scores, labels if with_labels else None, 0.5, 5)
    torch.library.opcheck(torch.ops.dcn_det.nms, arguments)


def test_compiles_without_a_graph_break():
    def detect(boxes, scores, labels):
        kept = batched_nms(boxes, scores, labels, 0.5, 10)
        return boxes[kept] * 2

    compiled = torch.compile(detect, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (50, 0, 80):
        arguments = make_boxes(count)
        assert torch.equal(compiled(*arguments), detect(*arguments))


def test_nothing_needs_a_gradient():
    boxes, scores, _ = make_boxes(30)
    kept = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert not kept.requires_grad and len(kept) > 1
