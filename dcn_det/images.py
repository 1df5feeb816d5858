"""Reading, writing and drawing on images. All are uint8 (H, W, 3) RGB."""

from __future__ import annotations

import colorsys
import os
import stat
import struct
import warnings
from collections.abc import Sequence
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError
from dcn_det.exif import Exif, applies, by_pillow, orientation, turned
from dcn_det.files import write_bytes

Image = NDArray[np.uint8]

_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)  # from OpenCV 4.11 on
_JPEG_QUALITY = 92
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_HEADER = 1 << 16
"""Bytes that nearly always have the size of a JPEG or PNG file."""

MAX_PIXELS = 2**27
"""Largest image that is decoded unless said otherwise: 134 million pixels, 403 MB as RGB."""
SUFFIXES = {".avif", ".bmp", ".gif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}
"""Suffixes of image files, in lower case."""


class ImageTooLarge(UserError):
    """An image has more pixels than ``data.max_pixels``."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS, upright: bool = False) -> Image:
    """Reads an image file as 8-bit RGB.

    Args:
        path: JPEG, PNG or another format that OpenCV decodes.
        max_pixels: larger images are refused before they are decoded.
        upright: whether to apply the EXIF orientation, as viewers do.

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        ImageTooLarge: the file states more pixels.
        UserError: the file is missing, truncated or not an image.
    """
    return image_of(file_content(path), path, max_pixels, upright)


def read_annotated(
    path: str | Path, size: tuple[int, int] | None, exif: Exif = "auto", max_pixels: int = MAX_PIXELS
) -> Image:
    """Reads an image in the orientation that its annotations refer to.

    Args:
        path, max_pixels: see :func:`read_image`.
        size: height and width that the annotations state; None if they state none.
        exif: ``apply`` the EXIF orientation, ``ignore`` it, or ``auto``: apply it if that gives the stated size, and
            the stored image has another; or if no size is stated.

    Returns:
        uint8 (H, W, 3), contiguous; may still differ from the stated size.

    Raises:
        UserError: see :func:`read_image`.
    """
    data = file_content(path)
    stored = stated_size(data) if exif == "auto" and size is not None else None
    return image_of(data, path, max_pixels, applies(exif, stored, size))


def image_of(data: bytes, path: str | Path, max_pixels: int = MAX_PIXELS, upright: bool = False) -> Image:
    """Like :func:`read_image`, for the content of a file; ``path`` is its name in messages."""
    image = decode(data, max_pixels, upright)
    if image is None:
        size = stated_size(data)
        if size is not None and size[0] * size[1] > max_pixels:
            raise ImageTooLarge(
                f"image {path} has {size[1]}x{size[0]} pixels, more than {max_pixels} (data.max_pixels)"
            )
        raise UserError(f"cannot decode image {path}: {len(data)} bytes, truncated or not an image")
    return image


def _open(path: str, flags: int) -> int:
    """Opens a file without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def file_content(path: str | Path) -> bytes:
    """Returns the content of an image file; raises a UserError if it cannot be read."""
    try:
        # FileIO is faster than Path.read_bytes, by 1% of the time per image.
        with FileIO(path, opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"cannot read image {path}: not a regular file")
            return file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read image {path}: {getattr(error, 'strerror', None) or error}") from error


def is_readable(path: str | Path, max_pixels: int = MAX_PIXELS) -> bool:
    """Returns whether ``read_image`` would succeed; decodes JPEG at an eighth of the size, which is faster."""
    try:
        data = file_content(path)
    except UserError:
        return False
    reduced = data.startswith(_JPEG)  # OpenCV fails to reduce other formats below one pixel
    return _decode(data, cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR, max_pixels) is not None


def decode(data: bytes, max_pixels: int = MAX_PIXELS, upright: bool = False) -> Image | None:
    """Decodes an image file's content to uint8 (H, W, 3) RGB; None if it is damaged, too large or not an image."""
    image = _decode(data, cv2.IMREAD_COLOR if _RGB is None else _RGB, max_pixels)
    if image is not None and _RGB is None:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    if image is None or not upright:
        return image
    return turned(image, orientation(data))


def _decode(data: bytes, flags: int, max_pixels: int) -> NDArray[np.uint8] | None:
    # OpenCV 4 fills the missing part of a truncated JPEG with gray and returns it. In a complete one, the
    # end-of-image marker (FF D9) follows the last start-of-scan marker (FF DA). It is nearly always at the very end,
    # where it is found without a search.
    suspect = data.startswith(_JPEG) and not data.endswith(b"\xff\xd9")
    truncated = suspect and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if truncated or not data:
        return None
    size = stated_size(data)
    if size is not None and size[0] * size[1] > max_pixels:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    return _by_pillow(data, size, flags) if image is None else np.asarray(image, dtype=np.uint8)


def _by_pillow(data: bytes, size: tuple[int, int] | None, flags: int) -> NDArray[np.uint8] | None:
    """Decodes what OpenCV cannot, such as CMYK in TIFF; ``flags`` determine the order of the channels."""
    if size is None or data.startswith((_JPEG, _PNG)):
        return None
    image = by_pillow(data, lambda opened: np.asarray(opened.convert("RGB")))
    if image is None:
        return None
    return image if flags == _RGB else np.ascontiguousarray(image[..., ::-1])


def image_size(path: str | Path, upright: bool = False) -> tuple[int, int] | None:
    """Returns height and width of an image file in pixels, as stored or upright; None if it cannot be read."""
    try:
        data = file_content(path)
    except UserError:
        return None
    size = stated_size(data)
    if size is None:
        image = decode(data)
        size = None if image is None else (image.shape[0], image.shape[1])
    return size[::-1] if size is not None and upright and orientation(data) >= 5 else size


def header_size(path: str | Path) -> tuple[int, int] | None:
    """Like :func:`image_size`, but reads only the beginning of a file whose header is there."""
    try:
        with FileIO(path, opener=_open) as file:
            data = file.read(_HEADER)
    except (OSError, ValueError):
        return None
    return (stated_size(data) if data.startswith((_JPEG, _PNG)) else None) or image_size(path)


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width that the header of a JPEG, PNG, BMP, WebP, TIFF, ... states; None if it has none.

    Reading a header takes microseconds, and a file of some kilobytes can state billions of pixels.
    """
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    from PIL import Image as PillowImage  # only for rare formats: its import and its reader take longer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(BytesIO(data)) as opened:
                return opened.height, opened.width
    except PillowImage.DecompressionBombError:
        return MAX_PIXELS, MAX_PIXELS
    except Exception:  # not an image, in one of many ways
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width from the first start-of-frame segment (ITU-T T.81, B.1.1.4 and B.2.2)."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return height, width
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no length follows
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def as_rgb(image: Any) -> Image:
    """Converts an image in any common form to uint8 (H, W, 3) RGB.

    Args:
        image: a path (str or Path; turned upright by its EXIF orientation), a PIL image of any mode, a uint8 array
            (H, W, 3) RGB, or a uint8 tensor (3, H, W) or (H, W, 3) RGB on any device.

    Raises:
        UserError: the file cannot be read, or is not an image.
        ValueError: another shape or dtype.
        TypeError: another type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), upright=True)
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # PIL, without importing it
        image = np.asarray(image.convert("RGB"))
    elif hasattr(image, "detach"):  # a tensor, without importing torch
        image = image.detach().cpu().numpy()
        if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
            image = image.transpose(1, 2, 0)
    elif not isinstance(image, np.ndarray):
        raise TypeError(f"expected a path, a PIL image, an array or a tensor, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"expected a uint8 RGB image of shape (H, W, 3), got {image.dtype} of shape {image.shape}")
    return np.ascontiguousarray(image)


def write_image(path: str | Path, image: Image) -> None:
    """Writes an image atomically, in the format of the path's suffix (``.jpg``, ``.png``, ...).

    Raises:
        UserError: OpenCV cannot write that format.
        OSError: the file cannot be written.
    """
    path = Path(path)
    try:
        jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if jpeg else []
        good, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        good = False
    if not good:
        raise UserError(f"{path}: cannot write images of type '{path.suffix}'; use .jpg or .png")
    write_bytes(path, data.tobytes())


def voc_palette() -> NDArray[np.uint8]:
    """Returns the colors of Pascal VOC's masks, uint8 (256, 3) RGB.

    The bits of an index are dealt to red, green and blue in turn, from the highest bit of the color down (function
    ``VOClabelcolormap`` of the development kit).
    """
    indices = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((indices >> 3 * bit + channel & 1) << 7 - bit).astype(np.uint8)
    return colors


def index_png(indices: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """Encodes indices as PNG: with a palette, or as 8-bit gray.

    Args:
        indices: uint8 (H, W).
        palette: colors of the indices, uint8 (256, 3) RGB; None for gray.
    """
    from PIL import Image as PillowImage  # OpenCV cannot write palettes

    image = PillowImage.fromarray(np.ascontiguousarray(indices))
    if palette is not None:
        image.putpalette(palette.tobytes())
    content = BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def write_indices(path: str | Path, indices: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> None:
    """Writes a PNG file with a palette, atomically.

    Args:
        path: ends with ``.png``.
        indices: uint8 (H, W).
        palette: colors of the indices, uint8 (256, 3) RGB; None for those of Pascal VOC.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes(path, index_png(indices, voc_palette() if palette is None else palette))


def color(label: int) -> tuple[int, int, int]:
    """Returns a vivid RGB color (0-255) per class; adjacent labels differ most (golden-ratio steps of the hue)."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.85, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


_FAR = 2**15
"""Coordinates beyond this are drawn there: OpenCV takes 32-bit integers, and lines in fractions of a pixel."""


def draw_boxes(
    image: Image,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> Image:
    """Draws boxes with captions on a copy of an image.

    Args:
        image: uint8 (H, W, 3) RGB; not modified.
        boxes: (N, 4) half-open xyxy, in pixels of ``image``.
        labels: class index of each box.
        names: class names.
        scores: score of each box, appended to its caption.

    Returns:
        uint8 (H, W, 3) RGB copy of the image with the boxes.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    size = max(min(height, width), 1)
    thick = max(1, round(size / 300))
    font_scale = max(0.35, size / 1000)
    for index in range(len(labels) - 1, -1, -1):  # the best score comes first and is drawn on top
        x1, y1, x2, y2 = (round(min(max(float(v), -_FAR), _FAR)) for v in boxes[index])
        paint = color(labels[index])
        cv2.rectangle(canvas, (x1, y1), (max(x2 - 1, x1), max(y2 - 1, y1)), paint, thick)
        caption = names[labels[index]] + (f": {scores[index]:.2f}" if scores is not None else "")
        (text_width, text_height), base = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, font_scale, 1)
        left = min(max(x1, 0), max(width - text_width - 2, 0))
        bottom = y1 if y1 - text_height - base - 2 >= 0 else min(y1 + text_height + base + 2, height - 1)
        cv2.rectangle(canvas, (left, bottom - text_height - base - 2), (left + text_width + 2, bottom), paint, -1)
        luminance = 0.299 * paint[0] + 0.587 * paint[1] + 0.114 * paint[2]
        ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
        cv2.putText(
            canvas,
            caption,
            (left + 1, bottom - base),
            cv2.FONT_HERSHEY_SIMPLEX,
            font_scale,
            ink,
            1,
            cv2.LINE_AA,
        )
    return canvas


def sheet(images: Sequence[np.ndarray], columns: int, margin: int = 4) -> np.ndarray:
    """Arranges images in a grid on a white background.

    Args:
        images: uint8 (H, W, 3) RGB, of any sizes; every cell fits the largest height and width.
        columns: number of columns.
        margin: pixels between cells and around the grid.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    height = max(image.shape[0] for image in images) + margin
    width = max(image.shape[1] for image in images) + margin
    rows = -(-len(images) // columns)
    canvas = np.full((rows * height + margin, columns * width + margin, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = margin + index // columns * height, margin + index % columns * width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
