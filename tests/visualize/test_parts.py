"""Bins of deformable RoI pooling: by hand, and where the operator samples."""

from typing import Any

import pytest
import torch

from dcn_det.config import load_config
from dcn_det.inference.predictor import Predictor, View, batch_of
from dcn_det.models.build import build_detector
from dcn_det.ops import deform_psroi_pool
from dcn_det.structures import Category, Detections
from dcn_det.visualize.parts import moved_bins, parts_of
from dcn_det.visualize.sampling_pictures import parts_picture
from tests.visualize.test_offsets import CONFIGS, SMALL_PYRAMID


def test_bins_by_hand() -> None:
    moves = torch.zeros(2, 2, 2, dtype=torch.float64)
    moves[0, 0, 1] = 0.25  # the upper right bin to the right, by a quarter of the width
    moves[1, 1, 0] = -0.5  # the lower left bin up, by half of the height
    # Corners are rounded: 10.6 to 11, and the last pixels, 49.7 and 29.4, to 50 and 29.
    bins = moved_bins(torch.tensor([10.6, 10.0, 50.7, 30.4], dtype=torch.float64), moves)
    assert bins[0, 0].tolist() == [11, 10, 31, 20]
    assert bins[0, 1].tolist() == [31 + 10, 10, 51 + 10, 20]
    assert bins[1, 0].tolist() == [11, 20 - 10, 31, 30 - 10]
    assert bins[1, 1].tolist() == [31, 20, 51, 30]


@pytest.mark.parametrize("stride", [4, 16])
def test_bins_are_where_the_operator_samples(stride: int) -> None:
    """Pooling a map of its own coordinates gives the mean position of the samples, which start at the bin's corner."""
    torch.manual_seed(0)
    side, count, samples = 40, 3, 4
    cells = torch.arange(float(side), dtype=torch.float64)
    maps = torch.stack(torch.meshgrid(cells, cells, indexing="xy"))[None]
    scale = 640 / side / stride
    box = torch.tensor([150.3, 200.8, 420.1, 391.6], dtype=torch.float64) / scale
    offset = torch.randn(1, 2, count, count, dtype=torch.float64)
    rois = torch.cat((torch.zeros(1, dtype=torch.float64), box - box.new_tensor((0, 0, 1, 1))))[None]
    options = {"output_dim": 2, "group_size": 1, "pooled_size": count, "part_size": count, "samples_per_bin": samples}
    mean = deform_psroi_pool(maps, rois, offset, spatial_scale=1 / stride, offset_std=0.1, **options)[0]
    bins = moved_bins(box, 0.1 * offset[0])
    first, last = bins[..., :2], bins[..., 2:]
    expected = first + (last - first) * (samples - 1) / (2 * samples)
    torch.testing.assert_close((mean.permute(1, 2, 0) + 0.5) * stride, expected)


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("sample/rfcn_dcn", ()),
        ("sample/faster_rcnn_dcn", ()),
        ("sample/faster_rcnn_dcn", ("model.head.pooling=modulated",)),
        ("coco/faster_rcnn_r101_fpn_dcn", SMALL_PYRAMID),
        ("sample/class_aware_rpn_dcn", ()),
    ],
)
def test_bins_of_detections(config: str, overrides: tuple[str, ...]) -> None:
    """Offsets are set to constants: for R-FCN, (1, 2) plus 10 times the class."""
    torch.manual_seed(0)
    model = build_detector(load_config(CONFIGS / f"{config}.yaml", *overrides), 10).eval()
    head: Any = getattr(model, "head", None)
    per_class = hasattr(head, "cls_offset")
    if per_class:
        constant = torch.tensor([[10.0 * label + 1, 10.0 * label + 2] for label in range(-1, 10)])
        head.cls_offset.bias.data = constant.flatten().repeat_interleave(head.pooled_size**2)
    elif head is not None:
        branches = head.offset if isinstance(head.offset, torch.nn.ModuleList) else [head.offset]
        for branch in branches:
            last = [module for module in branch.modules() if isinstance(module, torch.nn.Linear)][-1]
            last.bias.data[: 2 * head.pooled_size**2] = torch.tensor([1.0, 2.0]).repeat_interleave(head.pooled_size**2)
    names = tuple(Category(i, str(i)) for i in range(10))
    predictor = Predictor(model, names, [View(128, 128)], torch.device("cpu"))
    image = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    boxes = torch.tensor([[8.0, 16, 40, 48], [0, 0, 64, 32]])
    detections = Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([3, 0]))
    parts = list(parts_of(predictor, batch_of(image, predictor.views[0]), detections))
    if head is None:
        assert parts == []
        return
    assert [(part.label, round(part.score, 2)) for part in parts] == [(3, 0.9), (0, 0.5)]
    for part, box in zip(parts, boxes.double()):
        move_x, move_y = (10.0 * part.label + 1, 10.0 * part.label + 2) if per_class else (1.0, 2.0)
        width, height = (box[2:] - box[:2]).tolist()
        assert part.bins.shape == (head.pooled_size, head.pooled_size, 4)
        corner = [box[0] + head.offset_std * move_x * width, box[1] + head.offset_std * move_y * height]
        torch.testing.assert_close(part.bins[0, 0, :2], torch.tensor(corner, dtype=torch.float64), atol=1e-4, rtol=1e-5)
    picture = parts_picture(image, parts, predictor.names)
    assert picture.shape[1] > picture.shape[0] > 320
