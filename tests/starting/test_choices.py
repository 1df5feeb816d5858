"""Input size, anchors, length and batch size that follow from the data."""

from collections.abc import Sequence

import numpy as np
import pytest

from dcn_det.config.data import ResizeConfig
from dcn_det.config.model import AnchorsConfig
from dcn_det.starting.anchors import Boxes, fit_anchors, fit_size
from dcn_det.starting.memory import fitting_batch
from dcn_det.starting.plan import run_length


def boxes(sides: Sequence[tuple[float, float]], image: tuple[float, float] = (300, 400)) -> Boxes:
    """Boxes of these widths and heights, around the middle of images of one size (height, width)."""
    wide = np.array(sides, np.float64)
    middle = np.array([image[1] / 2, image[0] / 2])
    corners = np.hstack([middle - wide / 2, middle + wide / 2])
    return Boxes(corners, np.repeat([image], len(wide), axis=0).astype(np.float64))


def test_sides_after_resizing() -> None:
    sides = boxes([(10, 20)]).sides(ResizeConfig(short_side=600, max_side=1000))
    assert sides.tolist() == [[20, 40]]
    limited = boxes([(10, 20)], (100, 1000)).sides(ResizeConfig(short_side=600, max_side=1000))
    assert limited.tolist() == [[10, 20]]


@pytest.mark.parametrize(
    ("side", "short", "long"),
    [(40, 300, 400), (30, 320, 427), (1, 416, 555)],
    ids=["two cells", "enlarged", "at most a third"],
)
def test_the_input_is_enlarged_for_small_objects(side: float, short: int, long: int) -> None:
    size, why = fit_size(boxes([(side, side)]), ResizeConfig(short_side=300, max_side=500), 16)
    assert (size.short_side, size.max_side) == (short, long) and "300x400" in why


def test_anchors_fit_boxes_of_two_sizes() -> None:
    found = fit_anchors(
        boxes([(32, 64)] * 20 + [(96, 192)] * 20), ResizeConfig(short_side=300, max_side=400), AnchorsConfig(), [16]
    )
    assert found.changed and found.after > found.before and found.after > 0.8
    # Areas are 45.25^2 and 135.8^2 pixels: 2.8 and 8.5 times the stride.
    assert found.scales == (2.8, 8.5) and found.ratios == (2,)


def test_anchors_of_the_base_are_kept_where_they_fit() -> None:
    sides = [(64 * scale, 64 * scale) for scale in (1, 2, 4)]
    found = fit_anchors(boxes(sides), ResizeConfig(short_side=300, max_side=400), AnchorsConfig(), [16])
    assert not found.changed and found.scales == (4, 8, 16, 32) and found.before == found.after


def test_a_pyramid_has_one_scale_for_all_levels() -> None:
    strides = [4, 8, 16, 32, 64]
    found = fit_anchors(
        boxes([(20, 20), (40, 40), (80, 80)]),
        ResizeConfig(short_side=300, max_side=400),
        AnchorsConfig(scales=(8,)),
        strides,
    )
    assert found.changed and (found.scales, found.ratios) == ((5,), (1,))


@pytest.mark.parametrize(
    ("images", "iterations", "warmup"),
    [(6, 500, 25), (364, 2184, 109), (2500, 15000, 750), (5000, 15000, 750), (118_287, 354_861, 1000)],
)
def test_the_length_of_a_run(images: int, iterations: int, warmup: int) -> None:
    assert run_length(images, 4) == (iterations, warmup)


@pytest.mark.parametrize(("free", "batch"), [(0, 1), (399, 1), (500, 2), (700, 2), (858, 4), (10**6, 4)])
def test_the_largest_batch_that_fits(free: int, batch: int) -> None:
    assert fitting_batch(4, free, fixed=200, per_image=75) == batch
