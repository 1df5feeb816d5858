import numpy as np
import torch

from dcn_det.structures import Detections, Target
from dcn_det.visualize.boxes import color, draw_detections, draw_target, sheet


def test_a_box_is_drawn_on_its_edges_and_the_image_is_left_alone() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    target = Target(torch.tensor([[30.0, 40.0, 61.0, 81.0]]), torch.tensor([1]))
    picture = draw_target(image, target, ["a", "b"])
    assert not image.any()
    for x, y in ((30, 60), (60, 60), (45, 80)):
        assert tuple(picture[y, x]) == color(1)
    assert not picture[60, 45].any(), "the inside stays free"
    assert not picture[60, 62:].any(), "half-open: nothing from x2 on"


def test_weak_detections_are_not_drawn() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    boxes = torch.tensor([[10.0, 30.0, 30.0, 60.0], [40.0, 30.0, 60.0, 60.0]])
    picture = draw_detections(image, Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([0, 0])), ["a"], 0.5)
    assert picture[45, 10].any()
    assert not picture[:, 44:].any()


def test_boxes_and_captions_at_the_rim_stay_inside() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    boxes = torch.tensor([[-20.0, -20.0, 80.0, 90.0], [48.0, 38.0, 50.0, 40.0]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]))
    assert draw_detections(image, found, ["a long name", "another"], 0.0).shape == image.shape


def test_a_sheet_holds_images_of_different_sizes() -> None:
    images = [np.full((10 + k, 20, 3), 10 * k, np.uint8) for k in range(3)]
    grid = sheet(images, columns=2, margin=2)
    assert grid.shape == (2 * 14 + 2, 2 * 22 + 2, 3)
    assert grid[2, 24, 0] == 10
    assert (grid[-2:] == 255).all()
