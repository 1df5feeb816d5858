"""Effective dilation: values, places and statistics computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dcn_det.config import load_config
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d
from dcn_det.structures import ImageInfo
from dcn_det.visualize.effective_dilation import (
    PAPER,
    PLACES,
    UNCOUNTED,
    LayerDilation,
    Statistics,
    effective_dilation,
    filter_centers,
    places_of,
    plot,
    published,
    table,
    undeformed,
)
from dcn_det.visualize.offsets import Offsets, deformable_layers, reading_offsets, stride_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def measured(layer: DeformConv2d) -> Tensor:
    readings: list[Offsets] = []
    with reading_offsets(layer, readings.append):
        layer(torch.randn(2, layer.in_channels, 40, 50))
    return effective_dilation(readings[0])


def with_offsets(dilation: int, *taps: tuple[float, float]) -> DeformConv2d:
    """Returns a layer with two offset groups, of which the second adds these (y, x) to its taps everywhere."""
    layer = DeformConv2d(2, 2, 3, padding=dilation, dilation=dilation, offset_groups=2)
    with torch.no_grad():
        assert layer.offset.bias is not None
        layer.offset.bias[18:] = torch.tensor(taps).flatten()
    return layer


@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    "options", [{}, {"kernel_size": (5, 3)}, {"kernel_size": (1, 3)}, {"stride": 2, "modulated": True}]
)
def test_undeformed_layers_have_exactly_their_dilation(dilation: int, options: dict) -> None:
    layer = DeformConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3} | options, dilation=dilation)
    values = measured(layer)
    assert undeformed(layer) == dilation and (values == dilation).all()


def test_dilations_that_differ_are_weighted_by_the_pairs() -> None:
    layer = DeformConv2d(1, 1, (3, 2), dilation=(4, 1))
    # Four vertical pairs, 4 apart, and three horizontal ones, 1 apart.
    assert undeformed(layer) == pytest.approx(19 / 7)
    torch.testing.assert_close(measured(layer), torch.full((2, 1, 32, 49), 19 / 7))


def test_a_stretched_filter() -> None:
    """Taps move away from the center by 1 along y and by 1.5 along x: pairs are 2 + 1 and 2 + 1.5 apart."""
    taps = [(row - 1.0, 1.5 * (column - 1)) for row in range(3) for column in range(3)]
    values = measured(with_offsets(2, *taps))
    assert (values[:, 0] == 2).all() and (values[:, 1] == 3.25).all()


def test_a_sheared_filter() -> None:
    """Each row moves by 1 along x: horizontal pairs stay 3 apart, vertical ones become the root of 3^2 + 1^2 apart."""
    taps = [(0.0, float(row)) for row in range(3) for _ in range(3)]
    values = measured(with_offsets(3, *taps))[:, 1]
    torch.testing.assert_close(values, torch.full_like(values, (3 + math.sqrt(10)) / 2))


def test_a_filter_of_which_one_tap_moves() -> None:
    """The corner tap moves 3 up and 4 left; of the 12 pairs, two are stretched."""
    values = measured(with_offsets(1, (-3.0, -4.0), *[(0.0, 0.0)] * 8))[:, 1]
    expected = (10 + math.hypot(5, 3) + math.hypot(4, 4)) / 12
    torch.testing.assert_close(values, torch.full_like(values, expected))


def test_a_filter_is_on_the_smallest_box_that_contains_its_center() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 200, 200],  # large
            [10, 10, 106, 106],  # 96 x 96: large
            [20, 20, 52, 52],  # 32 x 32: medium
            [30, 30, 61, 62],  # 31 x 32: small
            [150, 0, 300, 100],  # a crowd
        ]
    )
    crowd = torch.tensor([False, False, False, False, True])
    centers = {
        (5, 5): "large",
        (10, 10): "large",
        (20, 20): "medium",  # the first pixel of a box belongs to it
        (52, 25): "large",  # the end of a box does not
        (35, 35): "small",
        (60.9, 61.9): "small",
        (61, 40): "large",
        (160, 50): "large",  # on a crowd and on an object
        (250, 50): None,  # on a crowd only
        (250, 150): "background",
    }
    places = places_of(torch.tensor(list(centers)), boxes, crowd)
    assert [None if place == UNCOUNTED else PLACES[place] for place in places.tolist()] == list(centers.values())
    nowhere = places_of(torch.tensor([[1.0, 1.0]]), boxes[:0], crowd[:0])
    assert nowhere.tolist() == [PLACES.index("background")]
    just_below = torch.tensor([[0.0, 0, 96, 95.99]])
    assert places_of(torch.tensor([[1.0, 1.0]]), just_below, crowd[:1]).tolist() == [PLACES.index("medium")]


def test_centers_in_the_original_image() -> None:
    # Halved along x, kept along y; a map of stride 16 for an input padded to 48 x 64.
    info = ImageInfo(1, "", height=40, width=100, input_height=40, input_width=50)
    centers, real = filter_centers(3, 4, 16, info)
    assert centers.reshape(3, 4, 2)[2, 1].tolist() == [(16 + 8) * 2, 32 + 8]
    assert real.reshape(3, 4).tolist() == [[True, True, True, False], [True, True, True, False], [False] * 4]


@pytest.mark.parametrize(
    ("input_size", "size", "stride"),
    [
        ((600, 1000), (38, 63), 16),
        ((608, 1024), (152, 256), 4),
        ((301, 405), (75, 101), 4),
        ((800, 1333), (25, 42), 32),
    ],
)
def test_strides(input_size: tuple[int, int], size: tuple[int, int], stride: int) -> None:
    assert stride_of(input_size, size) == stride


def test_statistics_in_parts_equal_those_of_all_values() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(1000, 0.1, size) for size in (3, 0, 500, 1, 70)]
    statistics = Statistics()
    assert math.isnan(statistics.mean) and math.isnan(statistics.std)
    for part in parts:
        statistics.add(torch.from_numpy(part))
    values = np.concatenate(parts)
    assert statistics.filters == len(values)
    assert statistics.mean == pytest.approx(values.mean(), rel=1e-12)
    assert statistics.std == pytest.approx(values.std(), rel=1e-9)


def test_the_published_numbers_belong_to_the_layers_of_their_detector() -> None:
    for name in ("rfcn_r101_dconv", "rfcn_r101_dconv3"):
        config = load_config(CONFIGS / "voc" / f"{name}.yaml")
        assert published(config) is PAPER
        with torch.device("meta"):
            assert list(deformable_layers(build_detector(config, 20))) == list(PAPER)
    for name in ("voc/rfcn_r101_dconv2", "voc/rfcn_r101_dcn", "voc/faster_rcnn_r101_dconv", "coco/rfcn_r101_dcn"):
        assert not published(load_config(CONFIGS / f"{name}.yaml"))
    for place in PLACES:  # deeper layers reach further
        means = [PAPER[layer][place][0] for layer in PAPER]
        assert means == sorted(means)


def test_the_table_has_the_published_numbers_below_those_of_their_layer() -> None:
    layers = [LayerDilation(name, 2.0) for name in PAPER]
    layers[0].places["small"].add(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    lines = table(layers, PAPER).splitlines()
    assert len(lines) == 1 + 2 * 3
    assert lines[1].split() == ["backbone.layer4.0.conv2", "2", "3.50", "+-", "1.12", "(4)", "-", "-", "-"]
    assert lines[6].split()[-3:] == ["6.2", "+-", "3.0"]
    assert len(table(layers, {}).splitlines()) == 4


def test_plots_of_layers_with_and_without_filters() -> None:
    pytest.importorskip("matplotlib")
    layers = [LayerDilation(name, 2.0) for name in PAPER]
    layers[0].places["small"].add(torch.tensor([2.0, 3.0]))
    with_paper, without = plot(layers, PAPER), plot(layers, {})
    assert with_paper.startswith(b"\x89PNG") and without.startswith(b"\x89PNG") and with_paper != without
