"""The digits: MNIST, read or downloaded, and their random reduction in size."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import mnist

from dcn_det.download.fetch import fetch
from dcn_det.errors import UserError
from dcn_det.files import read_bytes
from dcn_det.mnist.networks import SIZE
from dcn_det.models.transformers import warp

FOLDER = Path("datasets/mnist")
LARGEST_SCALE = 2.5
"""A scaled digit is from once to this many times smaller."""
SHIFT = 0.2
"""Largest shift along each axis, as a fraction of the image before its reduction."""


@dataclass(frozen=True)
class Digits:
    """Images and classes.

    Attributes:
        images: uint8 (N, 1, 28, 28).
        labels: int64 (N,), 0 to 9.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def every(self, step: int) -> Digits:
        """Returns every ``step``-th digit, from the first."""
        return Digits(self.images[::step], self.labels[::step])

    def to(self, device: torch.device) -> Digits:
        """Returns the digits on a device."""
        return Digits(self.images.to(device), self.labels.to(device))


def read(folder: Path, mirrors: list[str] | None = None) -> tuple[Digits, Digits]:
    """Reads MNIST's training and test digits, and downloads what is missing.

    Args:
        folder: contains the four original files, gzipped or not, itself or in ``MNIST/raw``, torchvision's layout.
            Downloaded files are written there, gzipped.
        mirrors: addresses to download from; those of torchvision by default.

    Raises:
        UserError: a file cannot be downloaded or read.
    """
    raw = next((each for each in (folder / "MNIST/raw", folder) if _find(each, mnist.MNIST.resources[0][0])), None)
    raw = raw or folder / "MNIST/raw"
    files = []
    for name, digest in mnist.MNIST.resources:
        if _find(raw, name) is None:
            _download(raw / name, digest, mirrors or mnist.MNIST.mirrors)
        path = _find(raw, name)
        assert path is not None
        files.append(path)
    return _digits(*files[:2]), _digits(*files[2:])


def _find(folder: Path, name: str) -> Path | None:
    """Returns the file in a folder, unpacked or gzipped."""
    return next((path for path in (folder / name.removesuffix(".gz"), folder / name) if path.is_file()), None)


def _download(path: Path, digest: str, mirrors: list[str]) -> None:
    errors = []
    for mirror in mirrors:
        try:
            return fetch(mirror + path.name, path, f"md5:{digest}")
        except UserError as error:
            errors.append(str(error))
    raise UserError(f"MNIST is not in '{path.parent}', and {'; '.join(errors)}; --data gives another folder")


def _digits(images: Path, labels: Path) -> Digits:
    read_images, read_labels = _parsed(images, mnist.read_image_file), _parsed(labels, mnist.read_label_file)
    if read_images.shape != (len(read_labels), SIZE, SIZE) or not len(read_labels) or int(read_labels.max()) > 9:
        raise UserError(
            f"{images}: {tuple(read_images.shape)} pixels for {len(read_labels)} labels; expected MNIST's {SIZE}x{SIZE}"
        )
    return Digits(read_images[:, None], read_labels)


def _parsed(path: Path, parse: Callable[[str], Tensor]) -> Tensor:
    """Parses a file with torchvision's reader, which reads files that are not gzipped."""
    with tempfile.TemporaryDirectory(prefix="dcn_det-mnist-") as folder:
        plain = path
        try:
            if path.suffix == ".gz":
                plain = Path(folder) / path.stem
                plain.write_bytes(gzip.decompress(read_bytes(path)))
            return parse(str(plain))
        except (EOFError, zlib.error, gzip.BadGzipFile, AssertionError, KeyError, ValueError, RuntimeError, TypeError):
            raise UserError(f"{path}: not a file of MNIST, or damaged; delete it to download it again") from None


def shrunk(images: Tensor, factors: Tensor, shifts: Tensor) -> Tensor:
    """Shrinks digits toward the center, each pixel from the nearest one.

    Args:
        images: (N, 1, H, W), floating point.
        factors: (N,), how many times smaller.
        shifts: (N, 2), along x and y, as fractions of the image before it shrinks; positive ones move to the upper
            left.
    """
    matrices = torch.cat([factors[:, None, None] * torch.eye(2), 2 * shifts[:, :, None]], dim=2)
    return warp(images, matrices.to(images), "nearest")


def scaled(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shrinks and shifts digits at random, uniformly from 1 to :data:`LARGEST_SCALE`, and up to :data:`SHIFT`.

    Keras' ``ImageDataGenerator``, behind the published numbers, differs in one point: it draws a factor for each axis.

    Args:
        images: (N, 1, H, W), floating point.
        generator: on the CPU, so that devices draw the same digits.

    Returns:
        The new images, and the factors (N,).
    """
    factors = 1 + (LARGEST_SCALE - 1) * torch.rand(len(images), generator=generator)
    shifts = SHIFT * (2 * torch.rand(len(images), 2, generator=generator) - 1)
    return shrunk(images, factors, shifts), factors.to(images.device)


SCALE_EDGES = [1 + (LARGEST_SCALE - 1) * step / 6 for step in range(7)]
"""Bounds of the ranges of scale by which accuracy is reported."""


def range_of(scales: Tensor) -> Tensor:
    """Returns the index of each scale's range of :data:`SCALE_EDGES`."""
    steps = len(SCALE_EDGES) - 1
    return ((scales - 1) / (LARGEST_SCALE - 1) * steps).floor().long().clamp(0, steps - 1)
