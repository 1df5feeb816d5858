import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcn_det.errors import UserError
from dcn_det.inference.predictor import Predictor, View, resolve_device, to_original
from dcn_det.structures import Batch, Category, Detections, ImageInfo

CATEGORIES = (Category(7, "bright"),)


class Brightest(nn.Module):
    """Finds the white rectangle of an image, in input pixels, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def candidates(self, batch: Batch) -> list[Detections]:
        self.modes.append(self.training)
        found = []
        for image, info in zip(batch.images, batch.infos):
            ys, xs = (image[0, : info.input_height, : info.input_width] > 127).nonzero(as_tuple=True)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            found.append(Detections(box[None], torch.ones(1), torch.zeros(1, dtype=torch.int64)))
        return found


def predictor(short: int, cap: int) -> Predictor:
    return Predictor(Brightest(), CATEGORIES, [View(short, cap)], torch.device("cpu"))


def scene(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


@pytest.mark.parametrize(("short", "cap"), [(200, 400), (100, 120), (50, 1000), (400, 640)])
def test_boxes_come_back_in_pixels_of_the_original(short: int, cap: int) -> None:
    found = predictor(short, cap)(scene(200, 300, (40, 60, 160, 120)))
    torch.testing.assert_close(found.boxes, Tensor([[40, 60, 160, 120]]), atol=3, rtol=0)


def test_the_predictor_evaluates_and_leaves_the_mode_as_it_was() -> None:
    one = predictor(100, 100)
    one.model.train()
    one(scene(100, 100, (1, 2, 30, 40)))
    assert one.model.modes == [False]
    assert one.model.training


def test_a_mirrored_input_is_mirrored_back() -> None:
    info = ImageInfo(1, "", height=100, width=200, input_height=50, input_width=100, flipped=True)
    boxes = torch.tensor([[10.0, 5.0, 30.0, 20.0]])
    original = to_original(Detections(boxes, torch.ones(1), torch.zeros(1)), info)
    assert original.boxes.tolist() == [[140.0, 10.0, 180.0, 40.0]]


def test_boxes_are_clipped_to_the_original() -> None:
    info = ImageInfo(1, "", height=99, width=201, input_height=50, input_width=100)
    boxes = torch.tensor([[-5.0, -5.0, 300.0, 300.0]])
    assert to_original(Detections(boxes, torch.ones(1), torch.zeros(1)), info).boxes.tolist() == [[0, 0, 201, 99]]


def test_devices_are_resolved_or_refused() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"device 'gpu' is unknown; allowed: auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(UserError, match=r"device 'cuda:99' is not there"):
        resolve_device("cuda:99")
