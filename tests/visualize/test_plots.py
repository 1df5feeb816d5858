"""Plots and pictures of data with odd names and far boxes."""

import numpy as np
import pytest

from dcn_det.evaluation.analysis import analyse
from dcn_det.evaluation.ground_truth import load_ground_truth
from dcn_det.evaluation.results import check_results
from dcn_det.images import draw_boxes
from dcn_det.visualize.plots import plots
from tests.evaluation.helpers import ground_truth, result


@pytest.mark.parametrize("name", ["$\\frac{$", "a_b^c$x$", "\u6a39", "x" * 300, "<b>"])
def test_class_names_are_no_formulas(name: str) -> None:
    data = ground_truth()
    data["categories"][1]["name"] = name
    truth = load_ground_truth(data)
    drawn = plots(analyse(truth, check_results([result()], truth.images, truth.category_ids, "bbox")))
    assert len(drawn) == 6 and all(content.startswith(b"\x89PNG") for content in drawn.values())


def test_boxes_far_beyond_the_image_are_drawn_to_its_border() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    far = draw_boxes(image, np.array([[10.0, 10, 1e10, 1e300]]), [0], ["a"])
    near = draw_boxes(image, np.array([[10.0, 10, 1000, 1000]]), [0], ["a"])
    assert np.array_equal(far, near)
