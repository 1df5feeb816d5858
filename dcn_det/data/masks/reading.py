"""Reading of masks: PNG files with an index per pixel, and MATLAB files of the Semantic Boundaries Dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.config.segmentation_data import IGNORED
from dcn_det.data.findings import first_few
from dcn_det.errors import UserError
from dcn_det.exif import Exif
from dcn_det.files import read_bytes
from dcn_det.images import MAX_PIXELS, Image, read_annotated

Mask = NDArray[np.uint8]
"""Class of each pixel, (H, W); 255 where there is none."""

_FORBIDDEN = -1
_INDEX_MODES = {"P": "palette", "L": "gray", "1": "black and white"}
_COLOR_MODES = ("RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "PA", "RGBX")


class MaskProblem(UserError):
    """A mask cannot be used.

    Args:
        kind: the kind of problem, which many masks may share.
        name: file of the mask.
        detail: more about this mask.
    """

    def __init__(self, kind: str, name: str, detail: str = "") -> None:
        super().__init__(f"{name}: {kind}" + (f": {detail}" if detail else ""))
        self.kind = kind
        self.example = name + (f" ({detail})" if detail else "")


class Values:
    """What the values in the masks of a data set mean.

    Args:
        classes: value of each class, by label.
        ignored: values of pixels without a class.
    """

    def __init__(self, classes: Sequence[int], ignored: Sequence[int] = (IGNORED,)) -> None:
        labels = np.full(256, _FORBIDDEN, dtype=np.int16)
        labels[list(ignored)] = IGNORED
        labels[list(classes)] = np.arange(len(classes))
        self.forbidden: NDArray[np.bool_] = labels == _FORBIDDEN
        self.table = np.where(self.forbidden, IGNORED, labels).astype(np.uint8)
        self._same = bool((self.table == np.arange(256))[~self.forbidden].all())

    def labels(self, mask: NDArray[np.uint8], name: str) -> Mask:
        """Returns the class of each pixel.

        Args:
            mask: uint8 (H, W), values as stored.
            name: of the mask, for messages.

        Raises:
            MaskProblem: a value stands for no class, or no pixel has a class.
        """
        # Faster than NumPy's bincount, which converts to 64 bits first.
        present = cv2.calcHist([mask], [0], None, [256], [0, 256]).ravel() > 0
        if wrong := np.flatnonzero(present & self.forbidden).tolist():
            raise MaskProblem("mask with values that are no class", name, f"value {first_few(wrong)}")
        if not (present & (self.table != IGNORED)).any():
            raise MaskProblem("mask without a labelled pixel", name)
        return mask if self._same else np.asarray(cv2.LUT(mask, self.table), dtype=np.uint8)


def read_mask(path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Reads the values of a mask as stored.

    Args:
        path: an 8-bit PNG file, gray or with a palette, whose colors are not used; or a file of the Semantic Boundaries
            Dataset, ``.mat``.
        max_pixels: larger masks are refused before they are decoded.

    Returns:
        uint8 (H, W).

    Raises:
        MaskProblem: the file is missing, damaged, or not a mask.
    """
    name = str(path)
    if not Path(path).exists():
        raise MaskProblem("mask missing", name)
    try:
        data = read_bytes(path)
    except UserError as error:
        raise MaskProblem("mask unreadable or truncated", name, str(error)) from error
    if name.lower().endswith(".mat"):
        return _from_matlab(data, name)
    from PIL import Image as PillowImage  # OpenCV turns palettes into colors

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(BytesIO(data), formats=("PNG",)) as opened:
                if opened.width * opened.height > max_pixels:
                    raise MaskProblem("mask too large", name, f"{opened.width}x{opened.height} pixels")
                if opened.mode in _COLOR_MODES:
                    raise MaskProblem("mask in colors instead of class indices", name, f"mode {opened.mode}")
                if opened.mode not in _INDEX_MODES:
                    raise MaskProblem("mask not in 8 bits per pixel", name, f"mode {opened.mode}")
                return np.array(opened, dtype=np.uint8)
    except MaskProblem:
        raise
    except Exception as error:  # damaged in one of many ways
        raise MaskProblem("mask unreadable or truncated", name) from error


def _from_matlab(data: bytes, name: str) -> NDArray[np.uint8]:
    """Reads the variable ``GTcls``, a structure whose field ``Segmentation`` has the class of each pixel."""
    from scipy.io import loadmat  # takes long to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = loadmat(BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        mask = np.asarray(found)
        if mask.ndim != 2 or mask.dtype != np.uint8 or not mask.size:
            raise ValueError(f"{mask.dtype} of shape {mask.shape}")
    except Exception as error:  # damaged in one of many ways
        raise MaskProblem("mask unreadable or truncated", name) from error
    return np.ascontiguousarray(mask)


def read_pair(
    image: str, mask: str, values: Values, max_pixels: int = MAX_PIXELS, exif: Exif = "auto"
) -> tuple[Image, Mask]:
    """Reads an image and its mask, and checks that they fit.

    Args:
        image, mask: paths.
        values: what the values in the mask mean.
        max_pixels: maximum number of pixels of either.
        exif: orientation of the image that the mask has, see :func:`dcn_det.images.read_annotated`.

    Returns:
        uint8 (H, W, 3) RGB, and the class of each pixel, uint8 (H, W), 255 where there is none.

    Raises:
        UserError: the image or the mask cannot be used.
    """
    labels = values.labels(read_mask(mask, max_pixels), mask)
    height, width = labels.shape
    pixels = read_annotated(image, (height, width), exif, max_pixels)
    check_size(labels, pixels.shape[:2], mask)
    return pixels, labels


def check_size(mask: Mask, size: tuple[int, ...], name: str) -> None:
    """Checks that a mask has the height and width of its image.

    Raises:
        MaskProblem: it has not.
    """
    (height, width), (rows, columns) = mask.shape, size
    if (height, width) != (rows, columns):
        raise MaskProblem("mask size differs from the image", name, f"{width}x{height}, not {columns}x{rows}")
