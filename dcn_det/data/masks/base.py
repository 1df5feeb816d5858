"""Interface of the kinds of images with masks: one split of a data set, for training, evaluation and checks."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_det.categories import Category
from dcn_det.config.segmentation_data import MaskDataConfig
from dcn_det.data.findings import Findings
from dcn_det.data.masks.reading import Values
from dcn_det.data.subset import choose
from dcn_det.errors import UserError
from dcn_det.images import header_size
from dcn_det.progress import Count

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        name: unique in its split; results of the image have it as file name, without suffix.
        image: path relative to ``data.root``.
        mask: path relative to ``data.root``; None if the image has no mask.
    """

    name: str
    image: str
    mask: str | None


@dataclass(frozen=True, eq=False)
class MaskIndex:
    """Images of a split and their masks.

    Attributes:
        source: files or folder that list the images, for messages.
        root: folder of all paths.
        categories: classes by label; an id is the value in the files of the data set.
        values: what the values in the masks mean.
        names, images: bytes (N,), see :class:`Pair`. Arrays, whose memory processes share.
        masks: bytes (N,), or (0,) if the images have no masks.
        image_ids: int64 (N,), positions in the whole split, which do not change if parts of it are used.
        landscape: bool (N,), whether images are at least as wide as high; all True if that was not asked for.
        report: one line with the numbers of images and classes.
    """

    source: str | Path
    root: Path
    categories: tuple[Category, ...]
    values: Values
    names: NDArray[np.bytes_]
    images: NDArray[np.bytes_]
    masks: NDArray[np.bytes_]
    image_ids: Tensor
    landscape: Tensor
    report: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def annotated(self) -> bool:
        """Whether the images have masks."""
        return len(self.masks) > 0

    def name(self, i: int) -> str:
        """Returns the name of image ``i`` in results; may have folders."""
        return os.fsdecode(self.names[i].item())

    def file_name(self, i: int) -> str:
        """Returns the path of image ``i``, relative to ``root``."""
        return os.fsdecode(self.images[i].item())

    def mask_name(self, i: int) -> str:
        """Returns the path of the mask of image ``i``, relative to ``root``."""
        return os.fsdecode(self.masks[i].item())

    def fingerprint(self) -> str:
        """Returns a hexadecimal hash of classes and paths of all images and masks."""
        digest = hashlib.sha256()
        for category in self.categories:
            digest.update(f"{category.id} {category.name}\0".encode())
        for part in (self.images, self.masks):
            digest.update(str(part.dtype).encode() + part.tobytes())
        return digest.hexdigest()[:32]


class MaskFormat(ABC):
    """One split of a data set.

    Args:
        data: the settings.
        split: ``train`` or ``test``; this section of ``data`` is not null.
    """

    paths: Any
    """Settings of the split: the section ``data.train`` or ``data.test``."""

    def __init__(self, data: MaskDataConfig, split: Split) -> None:
        self.data = data
        self.split = split
        self.root = Path(data.root)
        self.paths = getattr(data, split)

    def prepare(self, progress: Count | None = None) -> None:
        """Checks that the data set exists; creates it if the format can.

        Args:
            progress: called with the number of images written and their total number.

        Raises:
            UserError: ``data.root`` does not exist.
        """
        if not self.root.is_dir():
            raise UserError(f"data.root: folder {self.root} does not exist; see datasets/README.md for the layout")

    @property
    def source(self) -> str | Path:
        """Files or folder that list the images, for messages; ``data.root`` unless overridden."""
        return self.root

    @property
    @abstractmethod
    def categories(self) -> tuple[Category, ...]:
        """Classes by label; an id is the value in the files of the data set."""

    @property
    def ignored(self) -> tuple[int, ...]:
        """Values in the masks of pixels without a class."""
        return (255,)

    @property
    def values(self) -> Values:
        """What the values in the masks mean."""
        return Values([category.id for category in self.categories], self.ignored)

    @abstractmethod
    def pairs(self, findings: Findings) -> Sequence[Pair]:
        """Lists the images and the masks that they should have.

        Args:
            findings: receives problems of entries that cannot be used, which are left out.

        Raises:
            UserError: a list or a folder is missing; the message gives the setting.
        """

    def read(self, findings: Findings) -> list[Pair]:
        """Returns the images and masks that exist, in order of their names.

        If none of the images of a test split has a mask, they are returned without masks.

        Args:
            findings: receives the problems of those that cannot be used; they are left out.

        Raises:
            UserError: see :meth:`pairs`.
        """
        pairs = sorted(self.pairs(findings), key=lambda pair: pair.name)
        findings.images = len(pairs)
        exists = _listing(self.root)
        masked = [pair.mask is not None and exists(pair.mask) for pair in pairs]
        if self.split == "test" and not any(masked):
            pairs = [Pair(pair.name, pair.image, None) for pair in pairs]
        kept: dict[str, Pair] = {}
        for pair, with_mask in zip(pairs, masked):
            if not exists(pair.image):
                findings.error("image missing", pair.image)
            elif pair.mask is None and self.split == "train":
                findings.error("mask missing", f"of {pair.image}")
            elif pair.mask is not None and not with_mask:
                findings.error("mask missing", pair.mask)
            elif pair.name in kept:
                findings.error("name used twice", f"{kept[pair.name].image} and {pair.image}")
            else:
                kept[pair.name] = pair
        return list(kept.values())

    def index(self) -> MaskIndex:
        """Reads the split into an index and selects the images of ``part`` and ``data.fraction``.

        Raises:
            UserError: an image or a mask is missing, or no image is selected; see :meth:`pairs`.
        """
        findings = Findings(self.source, fixable=False)
        pairs = self.read(findings)
        findings.refuse()
        if not pairs:
            raise UserError(f"{self.source}: no images")
        names = [pair.name for pair in pairs]
        part = self.paths.part
        kept, note = choose(
            names, part, self.data.fraction, self.data.part_seed, f"data.{self.split}.part", self.source
        )
        rows = np.flatnonzero(kept)
        chosen = [pairs[i] for i in rows]
        masks = [os.fsencode(pair.mask) for pair in chosen if pair.mask is not None]
        landscape = torch.ones(len(chosen), dtype=torch.bool)
        if self.split == "train" and self.data.aspect_grouping:
            landscape = torch.from_numpy(_landscape([self.root / pair.image for pair in chosen]))
        masked = "" if masks else " without masks"
        counts = f"{len(chosen)} of {len(pairs)} images{masked}, {len(self.categories)} classes"
        return MaskIndex(
            source=self.source,
            root=self.root,
            categories=self.categories,
            values=self.values,
            names=np.array([os.fsencode(pair.name) for pair in chosen]),
            images=np.array([os.fsencode(pair.image) for pair in chosen]),
            masks=np.array(masks, dtype=np.bytes_),
            image_ids=torch.from_numpy(rows),
            landscape=landscape,
            report="; ".join([f"{self.source}: {counts}", *([note] if note else [])]),
        )


def _landscape(paths: Sequence[Path]) -> NDArray[np.bool_]:
    """Returns whether images are at least as wide as high; True for those without a readable header."""

    def of(path: Path) -> bool:
        size = header_size(path)
        return size is None or size[1] >= size[0]

    with ThreadPoolExecutor(8) as pool:
        return np.fromiter(pool.map(of, paths), np.bool_, len(paths))


def _listing(root: Path) -> Callable[[str], bool]:
    """Returns a function that tells whether a path below ``root`` exists.

    Listing each folder once is much faster than a request per file, especially on network file systems.
    """
    listings: dict[str, frozenset[str]] = {}

    def exists(path: str) -> bool:
        inner, _, file = path.rpartition("/")
        if inner not in listings:
            found = os.scandir(root / inner) if (root / inner).is_dir() else ()
            listings[inner] = frozenset(entry.name for entry in found)
        return file in listings[inner]

    return exists
