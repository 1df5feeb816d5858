import math

import pytest
import torch

from dcn_det.models.boxes import MAX_LOG_SCALE, clip, decode, encode, iou_matrix, to_rois


def random_boxes(count: int, seed: int = 0, size: float = 200.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    extent = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size + 1
    return torch.cat([corner, corner + extent], dim=1)


def to_inclusive(boxes: torch.Tensor) -> torch.Tensor:
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def encode_inclusive(references: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The formulas with ``width = x2 - x1 + 1``, as the authors' code has them."""
    ref_size = references[:, 2:] - references[:, :2] + 1
    size = boxes[:, 2:] - boxes[:, :2] + 1
    ref_centre = references[:, :2] + 0.5 * (ref_size - 1)
    centre = boxes[:, :2] + 0.5 * (size - 1)
    return torch.cat([(centre - ref_centre) / ref_size, (size / ref_size).log()], dim=1)


def iou_inclusive(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_encode_by_hand() -> None:
    reference = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[10.0, 10.0, 30.0, 20.0]])
    expected = torch.tensor([[1.5, 0.25, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(encode(reference, box), expected)
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(encode(reference, box, stds), expected / torch.tensor(stds))


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decode_inverts_encode(stds: tuple[float, float, float, float]) -> None:
    references, boxes = random_boxes(50, seed=1), random_boxes(50, seed=2)
    torch.testing.assert_close(decode(references, encode(references, boxes, stds), stds), boxes)


def test_decode_broadcasts_over_classes() -> None:
    references = random_boxes(3)
    deltas = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded = decode(references[:, None], deltas)
    assert decoded.shape == (3, 5, 4)
    torch.testing.assert_close(decoded[:, 2], decode(references, deltas[:, 2]))


def test_decode_stays_finite() -> None:
    reference = torch.tensor([[0.0, 0.0, 512.0, 512.0]])
    decoded = decode(reference, torch.tensor([[0.0, 0.0, 1e4, 1e30]]))
    assert decoded.isfinite().all()
    assert clip(decoded, 600, 1000).tolist() == [[0, 0, 1000, 600]]
    # Below the cut nothing is limited.
    assert decode(reference, torch.tensor([[0.0, 0.0, MAX_LOG_SCALE / 2, 0.0]]))[0, 2] > 1e9


def test_coding_equals_the_inclusive_one() -> None:
    references, boxes = random_boxes(50, seed=3).round(), random_boxes(50, seed=4).round()
    inclusive = encode_inclusive(to_inclusive(references), to_inclusive(boxes))
    torch.testing.assert_close(encode(references, boxes), inclusive)


def test_iou_equals_the_inclusive_one() -> None:
    a, b = random_boxes(20, seed=5).round(), random_boxes(30, seed=6).round()
    expected = [[iou_inclusive(x, y) for y in to_inclusive(b).tolist()] for x in to_inclusive(a).tolist()]
    torch.testing.assert_close(iou_matrix(a, b), torch.tensor(expected, dtype=torch.float64))


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1 / 7, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(iou_matrix(a, b), expected)
    assert iou_matrix(a, b[:0]).shape == (2, 0)


def test_clip_keeps_a_pixel() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 200.0, 50.0], [120.0, 90.0, 130.0, 95.0], [-30.0, 3.5, -20.0, 7.25]])
    expected = [[0, 0, 100, 50], [99, 79, 100, 80], [0, 3.5, 1, 7.25]]
    assert clip(boxes, height=80, width=100).tolist() == expected


def test_to_rois() -> None:
    boxes = [torch.tensor([[0.0, 1.0, 10.0, 11.0]]), torch.zeros(0, 4), torch.tensor([[2.0, 2.0, 3.0, 4.0]])]
    assert to_rois(boxes).tolist() == [[0, 0, 1, 9, 10], [2, 2, 2, 2, 3]]
    assert to_rois([torch.zeros(0, 4)]).shape == (0, 5)
