"""EXIF orientation of photos: reading it, and turning images upright."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

T = TypeVar("T")

Exif = Literal["apply", "ignore", "auto"]
"""Values of ``data.exif``."""

_TAG = 0x0112
_JPEG, _START = b"\xff\xd8", 1 << 17
"""Bytes of a JPEG file that have its EXIF block, if there is one: it is in the first or second segment."""


def orientation(source: str | Path | bytes) -> int:
    """Returns the EXIF orientation of an image, 1 to 8; 1 (upright) where there is none.

    It is 1 for TIFF, where orientation is part of the format, so that OpenCV and Pillow decode images upright.

    Args:
        source: the file, or its content.
    """
    if isinstance(source, bytes) and source.startswith(_JPEG) and b"Exif\0" not in source[:_START]:
        return 1  # most images, without the time to open them
    found = by_pillow(source, lambda opened: 1 if opened.format == "TIFF" else opened.getexif().get(_TAG, 1))
    return found if found is not None and found in range(1, 9) else 1


def by_pillow(source: str | Path | bytes, read: Callable[[PillowImage], T]) -> T | None:
    """Returns what ``read`` finds in an image that Pillow opens; None if it is damaged or Pillow cannot read it.

    Args:
        source: the file, or its content.
        read: is given the image, which is not decoded yet.
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PIL.Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
                return read(opened)
    except Exception:  # Pillow's decoders raise errors of a dozen kinds for damaged files, SyntaxError among them
        return None


def turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns an image turned upright.

    Args:
        image: uint8 (H, W, ...), as stored.
        orientation: 1 to 8 (EXIF 2.32, section 4.6.4, tag 0x0112: where row 0 and column 0 are shown).

    Returns:
        Contiguous uint8 (H, W, ...), or (W, H, ...) for orientations from 5 on.
    """
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def applies(exif: Exif, stored: tuple[int, int] | None, stated: tuple[int, int] | None) -> bool:
    """Returns whether annotations refer to the upright image instead of the stored one.

    Args:
        exif: ``data.exif``.
        stored: height and width of the stored image; None if unknown.
        stated: those in the annotations; None if they state none.
    """
    if exif != "auto":
        return exif == "apply"
    if stated is None:
        return True
    return stored is not None and stored != stated and stored[::-1] == stated
