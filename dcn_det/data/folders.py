"""Images in one folder per class, for classification."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from dcn_det.categories import Category
from dcn_det.data.findings import first_few
from dcn_det.data.sampler import Draw
from dcn_det.errors import UserError, did_you_mean
from dcn_det.exif import Exif
from dcn_det.images import MAX_PIXELS, SUFFIXES, read_annotated
from dcn_det.structures import ImageInfo, LabelBatch

Transform = Callable[[Tensor], Tensor]
"""Maps pixels (uint8, (3, H, W), RGB) to pixels of the network's input; may draw from torch's global generator."""


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """Images of a split and their classes.

    Attributes:
        folder: has one folder per class.
        categories: classes by label, in the order of their names; ids are labels.
        names: bytes (N,), paths relative to ``folder``. One array, whose memory processes share.
        labels: int64 (N,).
    """

    folder: Path
    categories: tuple[Category, ...]
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def file_name(self, i: int) -> str:
        """Returns the path of image ``i``, relative to ``folder``."""
        return os.fsdecode(self.names[i].item())

    @property
    def report(self) -> str:
        """One line with the numbers of images and classes."""
        return f"{self.folder}: {len(self)} images, {len(self.categories)} classes"

    def fingerprint(self) -> str:
        """Returns a hexadecimal hash of classes and paths of all images."""
        digest = hashlib.sha256()
        for category in self.categories:
            digest.update(os.fsencode(category.name) + b"\0")
        digest.update(str(self.names.dtype).encode() + self.names.tobytes())
        return digest.hexdigest()[:32]


def read_folders(folder: Path, setting: str, classes: Sequence[str] | None = None) -> FolderIndex:
    """Lists the images in one folder per class, at any depth below it; other files are ignored.

    Args:
        folder: the split.
        setting: setting that names it, for messages.
        classes: names by label; folders of some of them may be missing. None uses the names of the folders, sorted.

    Raises:
        UserError: a folder is missing, without images or not among ``classes``, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{setting}: folder {folder} does not exist; see datasets/README.md for the layout")
    found = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not found:
        raise UserError(f"{setting}: {folder} has no folders; the images of each class belong into a folder of its own")
    names = found if classes is None else list(classes)
    unknown = [name for name in found if name not in set(names)]
    if unknown:
        raise UserError(
            f"{setting}: {len(unknown)} of {len(found)} classes in {folder} are not among the training classes: "
            f"{first_few(unknown)}{did_you_mean(unknown[0], names)}"
        )
    labels = {name: label for label, name in enumerate(names)}
    files: list[bytes] = []
    owners: list[NDArray[np.int64]] = []
    empty = []
    for name in found:
        inside = sorted(_images(folder, name))
        files += inside
        owners.append(np.full(len(inside), labels[name], dtype=np.int64))
        if not inside:
            empty.append(name)
    if empty:
        raise UserError(
            f"{setting}: {len(empty)} of {len(found)} class folders in {folder} contain no images "
            f"({', '.join(sorted(SUFFIXES))}): {first_few(empty)}"
        )
    categories = tuple(Category(label, name) for label, name in enumerate(names))
    return FolderIndex(folder, categories, np.array(files), np.concatenate(owners))


def _images(folder: Path, name: str) -> Iterator[bytes]:
    """Yields the paths of the images below the folder ``name``, relative to ``folder``."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename}: {error.strerror}")

    for parent, _, files in os.walk(folder / name, onerror=refuse, followlinks=True):
        below = os.path.relpath(parent, folder)
        for file in files:
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith("."):
                yield os.fsencode(f"{below}/{file}")


def training_transform(
    size: int, scale: tuple[float, float], ratio: tuple[float, float], flip: bool
) -> Callable[[Tensor], Tensor]:
    """Returns random crops of ``size`` x ``size`` pixels (Szegedy et al., CVPR 2015), half of them mirrored.

    Args:
        size: side of the result, in pixels.
        scale: smallest and largest area of a crop, as a fraction of the image.
        ratio: smallest and largest width / height of a crop.
        flip: whether to mirror.
    """
    crop = v2.RandomResizedCrop(size, scale=scale, ratio=ratio, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop


def evaluation_transform(size: int, resize: int) -> Callable[[Tensor], Tensor]:
    """Returns the center crop of ``size`` x ``size`` pixels after resizing the shorter side to ``resize``."""
    return v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])


class FolderDataset(Dataset[tuple[Tensor, ImageInfo]]):
    """Images and labels for a classifier.

    Args:
        index: the images.
        transform: all results have the same size.
        max_pixels: maximum number of pixels of an image, see ``read_image``.
        exif: orientation of the images, see :func:`dcn_det.images.read_annotated`.
    """

    def __init__(
        self, index: FolderIndex, transform: Transform, max_pixels: int = MAX_PIXELS, exif: Exif = "auto"
    ) -> None:
        self.index = index
        self.transform = transform
        self.max_pixels = max_pixels
        self.exif: Exif = exif

    @property
    def image_ids(self) -> Tensor:
        """int64 (N,), positions."""
        return torch.arange(len(self))

    @property
    def landscape(self) -> Tensor:
        """bool (N,), all True: examples have the same size."""
        return torch.ones(len(self), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, ImageInfo]:
        """Loads an image, uint8 (3, size, size) RGB, changed at random as the seed of the draw determines.

        Raises:
            UserError: the file is missing or damaged.
        """
        name = self.index.file_name(draw.image)
        image = read_annotated(f"{self.index.folder}/{name}", None, self.exif, self.max_pixels)
        with _seeded(draw.seed):
            pixels = self.transform(torch.from_numpy(image).permute(2, 0, 1))
        height, width = pixels.shape[1:]
        info = ImageInfo(draw.image, name, image.shape[0], image.shape[1], height, width, seed=draw.seed)
        return pixels, info

    def batch(self, draws: Sequence[Draw]) -> LabelBatch:
        """Loads the images of a batch; raises like indexing."""
        examples = [self[draw] for draw in draws]
        labels = torch.from_numpy(self.index.labels[[draw.image for draw in draws]])
        return LabelBatch(torch.stack([pixels for pixels, _ in examples]), [info for _, info in examples], labels)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator, from which torchvision's transforms draw, and restores it after the block.

    ``torch.manual_seed`` would also seed the generators of GPUs.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
