"""Non-maximum suppression, on every available tier."""

import math
from fractions import Fraction

import pytest
import torch
import torchvision

from dcn_det.ops import batched_nms, library, nms
from dcn_det.ops.reference import nms as reference

OPERATOR = torch.ops.dcn_det.nms


class Tier:
    def __init__(self, name: str) -> None:
        self.name = name
        self.device = "cuda" if name == "cuda" else "cpu"
        self.operator = reference.nms if name == "plain" else OPERATOR

    def __call__(self, boxes, scores, iou_threshold, max_keep=None, labels=None) -> list[int]:
        labels = None if labels is None else labels.to(self.device)
        result = self.operator(boxes.to(self.device), scores.to(self.device), labels, iou_threshold, max_keep)
        assert result.dtype == torch.int64 and result.dim() == 1 and result.device.type == self.device
        return result.tolist()


@pytest.fixture(params=["cpu", "plain", pytest.param("cuda", marks=pytest.mark.cuda)])
def tier(request) -> Tier:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param != "plain" and library.tier("nms", request.param) != request.param:
        pytest.skip(f"no compiled {request.param} kernel: {library.status()[request.param].reason}")
    return Tier(request.param)


def random_boxes(count: int, seed: int, extent: float = 200, size: float = 60, dtype=torch.float32):
    """Returns boxes in a square of ``extent`` pixels, with sides of 1 to ``size``, and their scores."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * extent
    side = 1 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * (size - 1)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + side], 1).to(dtype), scores.to(dtype)


def clustered_boxes(count: int, seed: int, dtype=torch.float32):
    """Returns boxes around a few objects, as proposed by a detector."""
    objects, _ = random_boxes(7, seed, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed + 1)
    chosen = torch.randint(7, (count,), generator=generator)
    jitter = torch.randn(count, 4, generator=generator, dtype=torch.float64) * 4
    boxes = objects[chosen] + jitter
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    return boxes.to(dtype), torch.rand(count, generator=generator, dtype=torch.float64).to(dtype)


def random_labels(count: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def greedy(boxes, scores, iou_threshold, max_keep=None, labels=None) -> list[int]:
    """Implements the definition, in exact arithmetic for finite boxes, pair by pair."""
    corners = [[Fraction(value) for value in box] for box in boxes.double().tolist()]
    values, classes = scores.tolist(), None if labels is None else labels.tolist()

    def overlap_exceeds(i: int, j: int) -> bool:
        a, b = corners[i], corners[j]
        width = max(min(a[2], b[2]) - max(a[0], b[0]), Fraction(0))
        height = max(min(a[3], b[3]) - max(a[1], b[1]), Fraction(0))
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        union = sum(areas) - width * height
        return union != 0 and Fraction(width * height) / union > Fraction(iou_threshold)

    kept: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        rivals = [j for j in kept if classes is None or classes[i] == classes[j]]
        if not any(overlap_exceeds(i, j) for j in rivals):
            kept.append(i)
    return kept[:max_keep]


@pytest.mark.parametrize("make", [random_boxes, clustered_boxes])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_the_definition(tier, make, iou_threshold):
    boxes, scores = make(150, seed=3)
    expected = greedy(boxes, scores, iou_threshold)
    assert tier(boxes, scores, iou_threshold) == expected
    if 0 < iou_threshold < 1:
        assert 1 < len(expected) < 150


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [random_boxes, clustered_boxes])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_equals_torchvision(tier, dtype, make, count):
    boxes, scores = make(count, seed=count, dtype=dtype)
    for iou_threshold in (0.3, 0.7):
        expected = torchvision.ops.nms(boxes, scores, iou_threshold).tolist()
        assert tier(boxes, scores, iou_threshold) == expected


def test_equals_torchvision_next_to_the_threshold(tier):
    """With small integer sizes, thousands of pairs overlap by exactly 1/2, 3/10 or 7/10."""
    for seed in range(3):
        boxes, scores = random_boxes(800, seed, extent=100, size=11)
        boxes = boxes.round()
        for iou_threshold in (0.3, 0.5, 0.7):
            expected = torchvision.ops.nms(boxes, scores, iou_threshold).tolist()
            assert tier(boxes, scores, iou_threshold) == expected


@pytest.mark.parametrize("count", [3000, 9000])
def test_many_boxes(tier, count):
    """Tests more boxes than fit in a strip of the CUDA kernel."""
    boxes, scores = random_boxes(count, seed=1, extent=2000, size=250)
    expected = torchvision.ops.nms(boxes, scores, 0.2).tolist()
    assert tier(boxes, scores, 0.2) == expected
    assert tier(boxes, scores, 0.2, max_keep=500) == expected[:500]


def test_ties_keep_the_lower_index_first(tier):
    boxes, scores = random_boxes(300, seed=5)
    scores = (scores * 4).round() / 4
    expected = greedy(boxes, scores, 0.4)
    assert tier(boxes, scores, 0.4) == expected
    apart = torch.arange(200.0)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    assert tier(apart, torch.ones(200), 0.5) == list(range(200))
    signed_zeros = torch.zeros(200)
    signed_zeros[::3] = -0.0
    assert tier(apart, signed_zeros, 0.5) == list(range(200))
    identical = torch.tensor([[0.0, 0, 5, 5]]).expand(100, 4)
    assert tier(identical, torch.ones(100), 0.5) == [0]


def test_scores_of_any_sign_and_size(tier):
    scores = torch.tensor([-1.0, 3.0, -math.inf, 1e-40, math.inf, -2.5, 0.0, 1e30])
    boxes = torch.arange(8.0)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    assert tier(boxes, scores, 0.5) == [4, 7, 1, 3, 6, 0, 5, 2]
    assert tier(boxes.double(), scores.double(), 0.5) == [4, 7, 1, 3, 6, 0, 5, 2]


@pytest.mark.parametrize("max_keep", [1, 2, 10, 64, 65, 10_000])
def test_max_keep_is_a_prefix(tier, max_keep):
    boxes, scores = random_boxes(400, seed=2)
    labels = random_labels(400, 5, seed=2)
    for classes in (None, labels):
        whole = tier(boxes, scores, 0.5, labels=classes)
        assert len(whole) > 65
        assert tier(boxes, scores, 0.5, max_keep, labels=classes) == whole[:max_keep]


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_classes_leave_each_other_alone(tier, classes):
    boxes, scores = clustered_boxes(500, seed=4)
    scores = (scores * 50).round() / 50
    labels = random_labels(500, classes, seed=6)
    kept = []
    for label in range(classes):
        members = (labels == label).nonzero()[:, 0]
        kept += members[torchvision.ops.nms(boxes[members], scores[members], 0.5)].tolist()
    expected = sorted(kept, key=lambda i: (-scores[i].item(), i))
    assert tier(boxes, scores, 0.5, labels=labels) == expected == greedy(boxes, scores, 0.5, None, labels)


def test_labels_may_be_any_integers(tier):
    boxes, scores = clustered_boxes(200, seed=8)
    labels = random_labels(200, 4, seed=8)
    expected = tier(boxes, scores, 0.5, labels=labels)
    values = torch.tensor([-(2**62), -1, 2**33, 2**62])
    assert tier(boxes, scores, 0.5, labels=values[labels]) == expected
    for dtype in (torch.int32, torch.int8, torch.uint8):
        assert tier(boxes, scores, 0.5, labels=labels.to(dtype)) == expected


def test_classes_are_not_moved_apart():
    """Shifting each class by an offset, the common trick, would lose the precision of far classes."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 1, 0.501]])
    labels = torch.tensor([2**40, 2**40])
    scores = torch.tensor([0.9, 0.8])
    assert batched_nms(boxes, scores, labels, 0.5).tolist() == [0]
    assert batched_nms(boxes, scores, labels, 0.502).tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 1])
def test_few_boxes(tier, count):
    boxes, scores = random_boxes(count, seed=0)
    assert tier(boxes, scores, 0.5) == list(range(count))
    assert tier(boxes, scores, 0.5, 3, labels=torch.zeros(count, dtype=torch.int64)) == list(range(count))


def test_nan_scores_are_never_kept(tier):
    boxes, scores = clustered_boxes(300, seed=9)
    missing = torch.rand(300, generator=torch.Generator().manual_seed(9)) < 0.4
    scores[missing] = math.nan
    present = (~missing).nonzero()[:, 0]
    for labels in (torch.zeros(300, dtype=torch.int64), random_labels(300, 3, seed=9)):
        expected = tier(boxes[present], scores[present], 0.5, labels=labels[present])
        assert tier(boxes, scores, 0.5, labels=labels) == present[expected].tolist()
    assert tier(boxes, torch.full((300,), math.nan), 0.5) == []
    negative_nan = torch.full((300,), -1, dtype=torch.int32).view(torch.float32)
    assert tier(boxes, negative_nan, 0.5) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.5])
def test_boxes_that_are_not_finite_overlap_nothing(tier, value, iou_threshold):
    boxes, scores = clustered_boxes(120, seed=10)
    finite = tier(boxes[:100], scores[:100], iou_threshold)
    for i in range(100, 120):
        boxes[i, i % 4] = value
    assert sorted(tier(boxes, scores, iou_threshold)) == sorted(finite + list(range(100, 120)))


def test_empty_and_inverted_boxes_overlap_nothing(tier):
    boxes = torch.tensor([[0.0, 0, 10, 10], [5.0, 5, 5, 5], [5.0, 5, 5, 5], [8.0, 8, 2, 9], [2.0, 2, 8, 2]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    assert tier(boxes, scores, 0.0) == torchvision.ops.nms(boxes, scores, 0.0).tolist() == [0, 1, 2, 3, 4]


def test_widths_are_half_open(tier):
    """With inclusive corners, the second box would overlap the first by 33 / 55, and the third would touch it."""
    boxes = torch.tensor([[0.0, 0, 10, 2], [0.0, 0, 10, 4], [10.0, 0, 20, 2]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert tier(boxes, scores, 0.5) == [0, 1, 2]
    assert tier(boxes, scores, 0.499) == [0, 2]
    assert tier(boxes, scores, 0.0) == [0, 2]  # boxes that touch do not overlap


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(tier, dtype):
    boxes, scores = clustered_boxes(400, seed=11)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    expected = torchvision.ops.nms(boxes.float(), scores.float(), 0.5).tolist()
    assert tier(boxes, scores, 0.5) == expected
    assert tier(boxes.float(), scores, 0.5) == expected  # dtypes may differ


def test_float64_is_computed_in_float64(tier):
    boxes = torch.tensor([[0.0, 0, 1, 1], [0.0, 0, 1, 0.5 + 1e-12]], dtype=torch.float64)
    scores = torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)
    assert tier(boxes, scores, 0.5) == [1]
    assert tier(boxes, scores.float(), 0.5 + 2e-12) == [0, 1]


def test_memory_layout_does_not_matter(tier):
    boxes, scores = clustered_boxes(150, seed=12)
    expected = tier(boxes, scores, 0.5)
    wide = torch.zeros(150, 7)
    wide[:, 1:5] = boxes
    assert tier(wide[:, 1:5], scores, 0.5) == expected
    shifted = torch.cat([torch.zeros(1), boxes.flatten()])[1:].view(150, 4)
    assert tier(shifted, torch.stack([scores, scores], 1)[:, 1], 0.5) == expected
    assert tier(boxes.T.contiguous().T, scores, 0.5) == expected


def test_gradients_and_autocast_leave_it_alone():
    boxes, scores = clustered_boxes(200, seed=14)
    expected = nms(boxes, scores, 0.5)
    found = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert torch.equal(found, expected) and not found.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nms(boxes, scores, 0.5), expected)
    with torch.inference_mode():
        assert torch.equal(nms(boxes, scores, 0.5), expected)


def good_arguments() -> dict:
    boxes, scores = random_boxes(5, seed=0)
    return {"boxes": boxes, "scores": scores, "labels": torch.arange(5), "iou_threshold": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(5)}, r"boxes is of shape \(5,\); expected \(N, 4\)"),
        ({"boxes": torch.zeros(5, 5)}, r"boxes is of shape \(5, 5\); expected \(N, 4\)"),
        ({"boxes": torch.zeros(5, 4, dtype=torch.int64)}, r"boxes is torch.int64; expected float32"),
        ({"scores": torch.zeros(4)}, r"scores is of shape \(4,\); expected \(5,\)"),
        ({"scores": torch.zeros(5, 1)}, r"scores is of shape \(5, 1\); expected \(5,\)"),
        ({"scores": torch.zeros(5, dtype=torch.bool)}, r"scores is torch.bool; expected float32"),
        ({"scores": torch.zeros(5, device="meta")}, r"scores is on meta; expected cpu"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, r"labels is of shape \(6,\); expected \(5,\)"),
        ({"labels": torch.zeros(5)}, r"labels is torch.float32; expected an integer dtype"),
        ({"labels": torch.zeros(5, dtype=torch.int64, device="meta")}, r"labels is on meta; expected cpu"),
        ({"iou_threshold": -0.1}, r"iou_threshold is -0.1; expected a number in \[0, 1\]"),
        ({"iou_threshold": 1.5}, r"iou_threshold is 1.5; expected a number in \[0, 1\]"),
        ({"iou_threshold": math.nan}, r"iou_threshold is nan; expected a number in \[0, 1\]"),
        ({"max_keep": 0}, r"max_keep is 0; expected an int of at least 1"),
        ({"max_keep": 2.0}, r"max_keep is 2.0; expected an int of at least 1"),
    ],
)
def test_mistakes_are_named(changes, message):
    arguments = {**good_arguments(), **changes}
    with pytest.raises(ValueError, match=rf"^batched_nms: {message}"):
        batched_nms(**arguments)
    if "labels" not in changes:
        del arguments["labels"]
        with pytest.raises(ValueError, match=rf"^nms: {message}"):
            nms(**arguments)


def test_the_compiled_operator_guards_its_memory():
    if library.tier("nms", "cpu") != "cpu":
        pytest.skip(f"no compiled cpu kernel: {library.status()['cpu'].reason}")
    boxes, scores = random_boxes(5, seed=0)
    for arguments in (
        (boxes, scores[:4], None, 0.5, None),
        (boxes[:, :3], scores, None, 0.5, None),
        (boxes, scores, torch.zeros(4, dtype=torch.int64), 0.5, None),
        (boxes, scores, None, 2.0, None),
        (boxes, scores, None, 0.5, -1),
    ):
        with pytest.raises(RuntimeError, match="nms"):
            OPERATOR(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("labeled", [False, True])
def test_operator_registration(dtype, labeled):
    boxes, scores = clustered_boxes(20, seed=15, dtype=dtype)
    labels = random_labels(20, 3, seed=15) if labeled else None
    torch.library.opcheck(OPERATOR.default, (boxes, scores, labels, 0.5, None))
    torch.library.opcheck(OPERATOR.default, (boxes.requires_grad_(), scores, labels, 0.5, 4))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_in_one_graph(dynamic):
    def detect(boxes, scores, labels):
        kept = batched_nms(boxes * 2, scores, labels, 0.5, 30)
        first = nms(boxes[kept], scores[kept], 0.5)
        return boxes[kept][first] + 1

    compiled = torch.compile(detect, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for count in (50, 120):
        boxes, scores = clustered_boxes(count, seed=count)
        labels = random_labels(count, 3, seed=count)
        assert torch.equal(compiled(boxes, scores, labels), detect(boxes, scores, labels))


def test_public_functions_reach_the_operator():
    boxes, scores = clustered_boxes(100, seed=16)
    labels = random_labels(100, 3, seed=16)
    assert nms(boxes, scores, 0.5, 5).tolist() == greedy(boxes, scores, 0.5, 5)
    assert batched_nms(boxes, scores, labels, 0.5, 7).tolist() == greedy(boxes, scores, 0.5, 7, labels)
