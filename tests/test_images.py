from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from dcn_det.errors import UserError
from dcn_det.images import as_rgb, color, draw_boxes, read_image, sheet, write_image


def test_a_box_is_drawn_on_its_edges_and_the_image_is_left_alone() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    picture = draw_boxes(image, np.array([[30.0, 40.0, 61.0, 81.0]]), [1], ["a", "b"])
    assert not image.any()
    for x, y in ((30, 60), (60, 60), (45, 80)):
        assert tuple(picture[y, x]) == color(1)
    assert not picture[60, 45].any(), "the inside is not filled"
    assert not picture[60, 62:].any(), "half-open: nothing from x2 on"


def test_boxes_and_captions_at_the_rim_stay_inside() -> None:
    image = np.zeros((40, 50, 3), np.uint8)
    boxes = np.array([[-20.0, -20.0, 80.0, 90.0], [48.0, 38.0, 50.0, 40.0]])
    assert draw_boxes(image, boxes, [0, 1], ["a long name", "another"], [0.9, 0.8]).shape == image.shape


def test_a_sheet_holds_images_of_different_sizes() -> None:
    images = [np.full((10 + k, 20, 3), 10 * k, np.uint8) for k in range(3)]
    grid = sheet(images, columns=2, margin=2)
    assert grid.shape == (2 * 14 + 2, 2 * 22 + 2, 3)
    assert grid[2, 24, 0] == 10
    assert (grid[-2:] == 255).all()


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_an_image_in_any_form_is_the_same_array(tmp_path: Path) -> None:
    image = picture()
    write_image(tmp_path / "a.png", image)
    tensor = torch.from_numpy(image.copy())
    forms = [str(tmp_path / "a.png"), tmp_path / "a.png", PIL.Image.fromarray(image), image, tensor]
    forms += [tensor.permute(2, 0, 1), PIL.Image.fromarray(image).convert("RGBA")]
    for form in forms:
        assert np.array_equal(as_rgb(form), image)
    gray = as_rgb(PIL.Image.fromarray(image[..., 0]))
    assert np.array_equal(gray[..., 2], image[..., 0])


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (np.zeros((4, 5, 3), np.float32), ValueError, "float32"),
        (np.zeros((4, 5), np.uint8), ValueError, r"\(4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"\(0, 5, 3\)"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), ValueError, r"\(1, 3, 4, 5\)"),
        (3, TypeError, "int"),
    ],
)
def test_what_is_no_rgb_image_is_refused(image: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        as_rgb(image)


def test_images_are_written_whole_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    write_image(tmp_path / "new" / "a.png", picture())
    assert np.array_equal(read_image(tmp_path / "new" / "a.png"), picture())
    with pytest.raises(UserError, match=r"a\.xyz.*\.jpg"):
        write_image(tmp_path / "a.xyz", picture())
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "a.png"]
