"""Sampling locations: by hand, and where the gradient of the operators goes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d
from dcn_det.structures import ImageInfo
from dcn_det.visualize.observation import automatic_points
from dcn_det.visualize.offsets import Offsets, reading_offsets
from dcn_det.visualize.sampling import Stack, stack_of, stacked_layers
from dcn_det.visualize.sampling_pictures import length_picture, sampling_picture
from tests.visualize.test_offsets import SMALL_PYRAMID

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read(network: nn.Module, input: torch.Tensor, stride: int = 1, size: tuple[int, int] | None = None) -> Stack:
    """The stack of all layers of a network, whose input is a map of this stride of an image of this size."""
    readings: list[Offsets] = []
    with reading_offsets(network, readings.append):
        network(input)
    height, width = (side * stride for side in input.shape[2:])
    original = size or (height, width)
    return stack_of(readings, (height, width), ImageInfo(0, "", *original, height, width))


def set_offsets(layer: DeformConv2d, taps: dict[int, tuple[float, float]], group: int = 0) -> None:
    """Adds the same (y, x) at every position to some taps."""
    assert layer.offset.bias is not None
    with torch.no_grad():
        for tap, (y, x) in taps.items():
            channel = 2 * (group * math.prod(layer.kernel_size) + tap)
            layer.offset.bias[channel], layer.offset.bias[channel + 1] = y, x


def test_one_layer_by_hand() -> None:
    layer = DeformConv2d(1, 1, 3, padding=2, dilation=2)
    set_offsets(layer, {4: (1.0, -0.5), 8: (0.25, 0.0)})
    # A map of stride 16 of an image that was enlarged by 2 along x and 4 along y.
    stack = read(layer, torch.zeros(1, 1, 10, 12), stride=16, size=(40, 96))
    # Cell (3, 5) is at pixel (88, 56) of the network's input, that is (44, 14) in the image.
    assert stack.unit_at(44, 14) == stack.unit_at(44 + 3.9, 14 - 1.9) == (3, 5)
    samples = stack.samples(45, 13)
    assert (samples.cell, samples.unit) == ((3, 5), (44, 14))
    assert samples.points.shape == (1, 9, 2) and bool(samples.reads.all())
    points = samples.points[0].tolist()
    assert points[0] == [44 - 16, 14 - 8]  # 2 cells of 16 pixels, divided by 2 and by 4
    assert points[1] == [44, 14 - 8]
    assert points[4] == [44 - 0.5 * 8, 14 + 4]
    assert points[8] == [44 + 16, 14 + 8 + 1]


def test_stride_and_padding_by_hand() -> None:
    """Filter (row 2, column 1) starts at cell (2 * 2 - 1, 3 * 1 - 0) of the input."""
    layer = DeformConv2d(1, 1, (3, 1), stride=(2, 3), padding=(1, 0), dilation=(1, 1))
    stack = read(layer, torch.zeros(1, 1, 9, 9), stride=4)
    assert stack.unit_at(x=14, y=18) == (2, 1)
    samples = stack.samples(14, 18)
    assert samples.points[0].tolist() == [[14, 14], [14, 18], [14, 22]]
    assert samples.unit == (14, 18)


def test_offsets_are_interpolated_between_cells() -> None:
    """The upper layer moves its middle tap by half a cell, where the lower layer's offset is the mean of two cells."""
    lower, upper = DeformConv2d(1, 1, 1), DeformConv2d(1, 1, 1)
    set_offsets(upper, {0: (0.5, 0.25)})
    stack = read(nn.Sequential(lower, upper), torch.zeros(1, 1, 6, 6), stride=8)
    # y offset: the row; x offset: 10 times the column. Bilinear interpolation is exact for these.
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    stack.layers[0].offset[0, 0, 0] = torch.stack((rows, 10 * columns))
    point = stack.samples(x=8 * 0.5, y=8 * 2.5).points[0, 0]
    assert point.tolist() == [(0.25 + 10 * 0.25 + 0.5) * 8, (2.5 + 2.5 + 0.5) * 8]
    # Beyond the outermost cells, their offsets count.
    set_offsets(upper, {0: (0.5, -0.5)})
    beyond = read(nn.Sequential(lower, upper), torch.zeros(1, 1, 6, 6), stride=8)
    beyond.layers[0].offset[0, 0, 0] = torch.stack((rows, 3 + 10 * columns))
    assert beyond.samples(4, 20).points[0, 0].tolist() == [(-0.5 + 3 + 0.5) * 8, (2.5 + 2.5 + 0.5) * 8]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_without_offsets_they_form_a_grid(layers: int) -> None:
    network = nn.Sequential(*(DeformConv2d(1, 1, 3, padding=2, dilation=2) for _ in range(layers)))
    samples = read(network, torch.zeros(1, 1, 25, 25), stride=16).samples(200, 200)
    assert samples.points.shape == (1, 9**layers, 2) and bool(samples.reads.all())
    reach = 2 * layers
    grid = {(200 + 16 * x, 200 + 16 * y) for x in range(-reach, reach + 1, 2) for y in range(-reach, reach + 1, 2)}
    assert set(map(tuple, samples.points[0].tolist())) == grid


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1)])
@pytest.mark.parametrize("border", ["zeros", "dcn_v1"])
def test_points_are_the_cells_that_the_unit_depends_on(strides: tuple[int, int, int], border: str) -> None:
    """With whole offsets, the gradient of a unit is positive at its samples and 0 elsewhere."""
    generator = torch.Generator().manual_seed(sum(strides))
    layers = [
        DeformConv2d(1, 1, 3, stride=stride, padding=dilation, dilation=dilation, bias=False, border=border)
        for stride, dilation in zip(strides, (2, 1, 2))
    ]
    for layer in layers:
        nn.init.ones_(layer.weight)
        assert layer.offset.bias is not None
        nn.init.constant_(layer.offset.bias, 0)
        layer.offset.bias.data = torch.randint(-2, 3, layer.offset.bias.shape, generator=generator).float()
    input = torch.zeros(1, 1, 32, 40, requires_grad=True)
    network = nn.Sequential(*layers)
    stack = read(network, input)
    for x, y in ((20.5, 16.5), (1.0, 30.0)):
        samples = stack.samples(x, y)
        row, column = samples.cell
        (gradient,) = torch.autograd.grad(network(input)[0, 0, row, column], input)
        expected = {(column, row) for row, column in gradient[0, 0].nonzero().tolist()}
        points = samples.points[0][samples.reads[0]]
        assert {(int(x), int(y)) for x, y in (points - 0.5).tolist()} == expected
        counts = torch.zeros(32, 40)
        counts.index_put_(((points[:, 1]).long(), points[:, 0].long()), torch.ones(len(points)), accumulate=True)
        assert torch.equal(counts, gradient[0, 0])


def test_offset_groups_stay_apart() -> None:
    layers = [DeformConv2d(2, 2, 3, padding=1, offset_groups=groups) for groups in (2, 1)]
    set_offsets(layers[0], {4: (0.0, 1.0)}, group=1)
    stack = read(nn.Sequential(*layers), torch.zeros(1, 2, 9, 9))
    samples = stack.samples(4.5, 4.5)
    assert samples.points.shape == (2, 81, 2)
    moved = samples.points[1] - samples.points[0]
    middle = torch.arange(81) % 9 == 4
    assert moved[middle].tolist() == [[1, 0]] * 9 and not moved[~middle].any()


def test_lengths_are_in_pixels_of_the_image() -> None:
    layer = DeformConv2d(1, 1, 1, stride=2)
    set_offsets(layer, {0: (3.0, 4.0)})
    stack = read(layer, torch.zeros(1, 1, 8, 8), stride=8, size=(32, 64))  # twice as high, as wide
    (only,) = stack.layers
    torch.testing.assert_close(stack.lengths(only), torch.full((4, 4), math.hypot(3 * 8 / 2, 4 * 8)))


@pytest.mark.parametrize(
    ("config", "overrides", "names"),
    [
        ("sample/faster_rcnn_dcn", (), ["layer4.0.conv2", "layer4.1.conv2"]),
        (
            "coco/class_aware_rpn_r101_dcn",
            ("model.backbone={kind: resnet50, width: 4, stem_width: 4, weights: none, norm: gn, frozen_stages: 0}",),
            ["layer4.0.conv2", "layer4.1.conv2", "layer4.2.conv2"],
        ),
        (
            "coco/faster_rcnn_r101_fpn_dcn",
            SMALL_PYRAMID,
            [f"bottom_up.layer{each}.conv2" for each in ("2.1", "3.0", "4.1")],
        ),
        # Of the parallel branches of a block, the longer one.
        ("sample/faster_rcnn_air_dcn", (), ["layer4.2.branch2.layers.3", "layer4.2.branch2.layers.6"]),
        ("sample/faster_rcnn", (), []),
    ],
)
def test_layers_of_a_detector(config: str, overrides: tuple[str, ...], names: list[str]) -> None:
    torch.manual_seed(0)
    model = build_detector(load_config(CONFIGS / f"{config}.yaml", *overrides), 10).eval()
    assert list(stacked_layers(model)) == [f"backbone.{name}" for name in names]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_offsets_that_are_not_finite_are_refused() -> None:
    layer = DeformConv2d(1, 1, 1)
    set_offsets(layer, {0: (math.nan, 0.0)})
    with pytest.raises(UserError, match="not finite"):
        read(layer, torch.zeros(1, 1, 4, 4))


def test_automatic_points() -> None:
    boxes = np.array([[10, 10, 20, 30], [50, 0, 90, 100]], np.float32)
    points = automatic_points(boxes, (100, 200))
    assert points["small object"] == (15, 20) and points["large object"] == (70, 50)
    # Right of the large box, 110 pixels remain, so that points in the middle are 50 pixels from the border.
    x, y = points["background"]
    assert 135 <= x <= 155 and abs(y - 50) <= 1
    similar = np.array([[0, 0, 10, 10], [5, 5, 15, 16]], np.float32)
    assert automatic_points(similar, (40, 40))["object"] == (5, 5)
    assert list(automatic_points(np.zeros((0, 4), np.float32), (40, 60))) == ["background"]
    assert list(automatic_points(np.array([[0, 0, 60, 40]], np.float32), (40, 60))) == ["object"]


def test_pictures() -> None:
    layer = DeformConv2d(1, 1, 3, padding=1)
    set_offsets(layer, {4: (0.0, 2.0)})
    stack = read(layer, torch.zeros(1, 1, 10, 20), stride=16)
    image = np.full((160, 320, 3), 128, np.uint8)
    picture = sampling_picture(image, stack, {"a": (168.0, 72.0)})
    assert picture.shape[:2] == (320 + 30 + 8, 640 + 8)
    # Panels are twice as large and start after a margin of 4 pixels.
    assert tuple(picture[4 + 2 * 72, 4 + 2 * 168]) == (40, 235, 60), "the unit"
    assert tuple(picture[4 + 2 * 72, 4 + 2 * (168 + 32)]) == (255, 40, 40), "the moved tap"
    assert tuple(picture[4 + 2 * 72, 4 + 2 * (168 + 48)]) == (128, 128, 128), "no tap"
    heat = length_picture(image, stack)
    assert heat.shape == picture.shape and heat[100, 100].max() > 150
