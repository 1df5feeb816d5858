"""Effective receptive field: its growth with depth, its fit and the theoretical field, by hand and by theory."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcn_det.config import load_config
from dcn_det.errors import UserError
from dcn_det.models.build import build_detector
from dcn_det.ops import DeformConv2d
from dcn_det.visualize.receptive_field import (
    GradientMap,
    ReceptiveField,
    fit_gaussian,
    measure,
    network_of,
    plot,
    receptive_field,
    table,
    theoretical_field,
    to_plain,
)
from tests.visualize.test_offsets import CONFIGS, SMALL_PYRAMID, batch

DEPTHS = (5, 10, 20, 40)


def plain_stack(depth: int, channels: int, random: bool) -> nn.Sequential:
    layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(depth)]
    for layer in layers:
        if random:
            nn.init.normal_(layer.weight, std=1 / math.sqrt(9 * channels))
        else:
            nn.init.constant_(layer.weight, 1 / (9 * channels))
    return nn.Sequential(*layers)


def field_of_stack(depth: int, channels: int, seeds: int, random: bool) -> ReceptiveField:
    torch.manual_seed(depth)
    total = GradientMap(60)
    for _ in range(seeds):
        total.add(plain_stack(depth, channels, random), torch.zeros(1, channels, 121, 121))
    return receptive_field(total.mean(), theoretical=2 * depth + 1)


@pytest.mark.parametrize("depth", DEPTHS)
def test_equal_weights_give_the_gaussian_of_the_central_limit(depth: int) -> None:
    """Each layer adds the variance of a box of 3 pixels, 2/3."""
    field = field_of_stack(depth, 1, 1, random=False)
    assert field.std == pytest.approx((math.sqrt(2 / 3 * depth),) * 2, rel=0.05)
    assert field.middle == pytest.approx((60, 60), abs=0.05)
    assert field.size == pytest.approx(4 * math.sqrt(2 / 3 * depth), rel=0.05)


def test_the_size_grows_as_the_square_root_of_the_depth() -> None:
    """With random weights, the squares of gradients spread as above, so that their roots are wider by sqrt(2)."""
    fields = {depth: field_of_stack(depth, 6, 6, random=True) for depth in DEPTHS}
    sizes = np.array([field.size / math.sqrt(depth) for depth, field in fields.items()])
    assert sizes == pytest.approx(sizes.mean(), rel=0.1)
    assert sizes == pytest.approx(4 * math.sqrt(2 * 2 / 3), rel=0.1)
    fractions = [fields[depth].fraction for depth in DEPTHS]
    assert fractions == sorted(fractions, reverse=True), "the effective field is an ever smaller share"


@pytest.mark.parametrize(("middle", "std"), [(50.0, 0.6), (41.3, 5.2), (50.0, 14.0), (20.0, 30.0)])
def test_fit(middle: float, std: float) -> None:
    index = np.arange(101)
    profile = 2.5 * np.exp(-(((index - middle) / std) ** 2) / 2)
    assert fit_gaussian(profile) == pytest.approx((middle, std), rel=1e-2)
    combed = profile * (index % 2)  # strided 1x1 convolutions leave out pixels
    if std > 5:
        assert fit_gaussian(combed) == pytest.approx((middle, std), rel=0.1)


def test_images_of_different_sizes_are_centered() -> None:
    """A network of one pixel: all of the gradient is at the unit."""
    total = GradientMap(8)
    for height, width in ((9, 9), (40, 60), (5, 33)):
        total.add(lambda images: 3 * images, torch.zeros(2, 3, height, width))
    gradient = total.mean()
    assert gradient.shape == (17, 17) and np.count_nonzero(gradient) == 1
    assert gradient[8, 8] == pytest.approx(9), "three channels"


def with_pooling(padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 7, stride=2, padding=3),  # 7 pixels, stride 2
        nn.MaxPool2d(3, 2, padding=padding),  # + 2 * 2, stride 4
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),  # + 4 * 4
        DeformConv2d(4, 4, 3, stride=2, padding=3, dilation=3),  # + 6 * 4, stride 8
        nn.AvgPool2d(2),  # + 1 * 8
    )


def test_theoretical_field_by_hand() -> None:
    image = torch.zeros(1, 3, 64, 64)
    assert theoretical_field(with_pooling(1), image) == 7 + 4 + 16 + 24 + 8
    assert theoretical_field(plain_stack(12, 2, random=False), torch.zeros(1, 2, 16, 16)) == 25

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.long = plain_stack(3, 2, random=False)
            self.short = plain_stack(1, 2, random=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.short(x)
            y += self.long(x)
            return y

    assert theoretical_field(Residual(), torch.zeros(1, 2, 16, 16)) == 7


@pytest.mark.parametrize(
    ("config", "overrides", "field", "deformable"),
    [
        # Stem and pooling: 11 pixels at stride 4. res2: 4 * 2 * 4. res3: 2 * 4 + 3 * 2 * 8. res4: 2 * 8 + 3 * 2 * 16.
        # res5: 4 * 4 * 16, with dilation 2.
        ("sample/class_aware_rpn_dcn", (), 11 + 32 + 56 + 112 + 256, 2),
        # res5 with stride and dilation 1: 2 * 16 + 3 * 2 * 32; and the 3x3 convolution of the level: 2 * 32.
        ("coco/faster_rcnn_r101_fpn_dcn", SMALL_PYRAMID, 11 + 32 + 56 + 112 + 224 + 64, 3),
    ],
)
def test_a_detector(config: str, overrides: tuple[str, ...], field: int, deformable: int) -> None:
    torch.manual_seed(0)
    model = build_detector(load_config(CONFIGS / f"{config}.yaml", *overrides), 10)
    images = [batch(1, side) for side in (96, 64)]
    seen: list[tuple[int, int]] = []
    result = measure(model, images, 2, 60, lambda *count: seen.append(count))
    assert result.theoretical == field
    assert (result.images, result.deformable, result.gradient.shape) == (
        2,
        len(SMALL_PYRAMID) and result.deformable,
        (121, 121),
    )
    assert 0 < result.fraction < 1 and seen == [(1, 2), (2, 2)]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert network_of(model)(torch.zeros(1, 3, 64, 64)).shape[0] == 1


def test_what_cannot_be_fitted_is_refused() -> None:
    for values in (np.zeros((5, 5)), np.full((5, 5), np.nan)):
        with pytest.raises(UserError, match="zero or not finite"):
            receptive_field(values, 10)


def test_table_record_and_plot() -> None:
    fields = {name: field_of_stack(depth, 1, 1, random=False) for name, depth in (("a", 5), ("b", 10))}
    text = table(fields)
    assert f"{fields['b'].size:.1f}" in text and f"{fields['a'].fraction:.1%}" in text
    record = to_plain(fields)
    assert [each["name"] for each in record] == ["a", "b"]
    assert record[1]["theoretical"] == 21 and record[1]["size"] == fields["b"].size
    pytest.importorskip("matplotlib")
    assert plot(fields).startswith(b"\x89PNG")
