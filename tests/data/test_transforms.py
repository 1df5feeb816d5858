from pathlib import Path

import cv2
import numpy as np
import pytest

from dcn_det.data.transforms import flip_boxes, flip_image, resize_short_side, resized_size, scale_boxes
from dcn_det.errors import UserError
from dcn_det.images import decode, is_readable, read_image


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.mark.parametrize(
    ("height", "width", "short_side", "max_side", "expected"),
    [
        (480, 640, 600, 1000, (600, 800)),
        (640, 480, 600, 1000, (800, 600)),
        (500, 500, 600, 1000, (600, 600)),
        (427, 640, 600, 1000, (600, 899)),  # 899.3
        (300, 500, 600, 1000, (600, 1000)),  # just at the cap
        (600, 1000, 600, 1000, (600, 1000)),
        (299, 500, 600, 1000, (598, 1000)),  # 1003.3 would exceed it
        (59, 640, 600, 1000, (92, 1000)),  # 92.2
        (640, 59, 600, 1000, (1000, 92)),
        (1200, 2000, 600, 1000, (600, 1000)),
        (1200, 2001, 600, 1000, (600, 1000)),  # 1000.5 rounds to even: within the cap
        (1200, 2002, 600, 1000, (599, 1000)),  # 1001 is not
        (480, 640, 800, 1333, (800, 1067)),
        (1, 3000, 600, 1000, (1, 1000)),  # never nothing
    ],
)
def test_resized_size(height: int, width: int, short_side: int, max_side: int, expected: tuple[int, int]) -> None:
    assert resized_size(height, width, short_side, max_side) == expected
    assert resize_short_side(noise(height, width), short_side, max_side).shape == (*expected, 3)


def test_resizing_is_bilinear_between_pixel_centres() -> None:
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, 2:] = 200
    resized = resize_short_side(image, 4, 8)
    assert resized.dtype == np.uint8
    assert resized[0, :, 0].tolist() == [0, 0, 0, 50, 150, 200, 200, 200]


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(20, 30)
    assert resize_short_side(image, 20, 100) is image


def test_boxes_follow_a_rectangle_through_resize_and_flip() -> None:
    """A filled rectangle is found again exactly where its box says."""
    image = np.zeros((60, 100, 3), np.uint8)
    x1, y1, x2, y2 = 10, 20, 35, 50
    image[y1:y2, x1:x2] = 255
    for factor in (1, 3):
        resized = flip_image(resize_short_side(image, 60 * factor, 1000).copy())
        boxes = scale_boxes(np.array([[x1, y1, x2, y2]], np.float32), factor, factor)
        rows, columns = np.nonzero(resized[:, :, 0] > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert flip_boxes(boxes, resized.shape[1]).tolist() == [found]


def test_flipping_twice_is_the_identity() -> None:
    image = noise(7, 9)
    assert np.array_equal(flip_image(flip_image(image.copy())), image)
    assert np.array_equal(flip_image(image.copy())[:, 0], image[:, -1])
    assert np.array_equal(flip_image(image.copy()[1:, 1:]), image[1:, 1:][:, ::-1]), "parts of an image, too"
    boxes = np.array([[0.25, 1.0, 8.5, 6.0], [3.0, 0.0, 9.0, 7.0]], np.float32)
    assert np.array_equal(flip_boxes(flip_boxes(boxes, 9), 9), boxes)
    assert flip_boxes(boxes, 9).tolist() == [[0.5, 1.0, 8.75, 6.0], [0.0, 0.0, 6.0, 7.0]]


def test_scaling_has_an_axis_each_and_no_boxes_stay_none() -> None:
    boxes = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    assert scale_boxes(boxes, 2, 0.5).tolist() == [[2.0, 1.0, 6.0, 2.0]]
    none = np.zeros((0, 4), np.float32)
    assert scale_boxes(none, 2, 2).shape == flip_boxes(none, 5).shape == (0, 4)
    assert scale_boxes(boxes, 1 / 3, 7).dtype == flip_boxes(boxes, 5).dtype == np.float32


def test_reading_gives_rgb(tmp_path: Path) -> None:
    image = noise(11, 13)
    (tmp_path / "a.png").write_bytes(encode(image, ".png"))
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    grey = cv2.imencode(".png", image[:, :, 0])[1].tobytes()
    (tmp_path / "grey.png").write_bytes(grey)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(image[:, :, :1], 3, axis=2))


def test_exif_orientation_is_ignored() -> None:
    """Annotations are made on pixels as stored; a tag asking for a quarter turn must not move them."""
    jpeg = encode(noise(16, 32), ".jpg")
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    obeyed = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert obeyed is not None and obeyed.shape == (32, 16, 3), "the tag is well-formed"
    image = decode(turned)
    assert image is not None and image.shape == (16, 32, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str, kept: float) -> None:
    whole = encode(noise(64, 64), suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole)
    assert is_readable(path)
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=rf"cannot decode image .*a\{suffix}"):
        read_image(path)
    assert not is_readable(path)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    assert decode(encode(noise(16, 16), ".jpg") + b"\0" * 100) is not None


def test_missing_files_and_folders_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read image .*absent\.jpg: No such file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(UserError, match="cannot read image"):
        read_image(tmp_path)
    assert not is_readable(tmp_path / "absent.jpg")
