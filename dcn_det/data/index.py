"""Index of the images and boxes of a data set, in a few tensors.

Loader processes share the memory of tensors. They would copy that of many Python objects, since every access to a
Python object changes its reference count.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_det.categories import Category
from dcn_det.data.findings import first_few
from dcn_det.data.records import Records
from dcn_det.errors import UserError
from dcn_det.images import MAX_PIXELS, is_readable

_TOLERANCE = 0.01
"""Tolerance for coordinates in pixels. A box with a shorter side counts as without area, since resizing or mirroring in
float32 could remove that area; a box that exceeds its image by less does not count as clipped.
"""


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """Images, in ascending order of id, and their annotated objects.

    Data is stored in tensors, whose memory processes can share, and read through NumPy, which is faster for small
    arrays. Views must not be kept: a tensor gets other memory when a loader process receives it.

    Attributes:
        source: files or folder of the annotations, for messages.
        folder: folder of the images.
        categories: categories by label.
        image_ids: int64 (N,).
        sizes: int32 (N, 2), height and width in pixels.
        boxes: float32 (M, 4), half-open xyxy in pixels, inside their image, grouped by image.
        labels: int64 (M,), indices into ``categories``.
        crowd: bool (M,), whether a box covers a group and is not a training target.
        offsets: int64 (N + 1,); the objects of image ``i`` are ``offsets[i]`` to ``offsets[i + 1]``.
        name_bytes: uint8, all file names in UTF-8, concatenated.
        name_offsets: int64 (N + 1,); the name of image ``i`` is ``name_bytes[name_offsets[i] : name_offsets[i + 1]]``.
        report: one line with the numbers of images and boxes used and left out.
        annotated: whether there are annotations to evaluate against.
    """

    source: str | Path
    folder: Path
    categories: tuple[Category, ...]
    image_ids: Tensor
    sizes: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    offsets: Tensor
    name_bytes: Tensor
    name_offsets: Tensor
    report: str
    annotated: bool

    def __len__(self) -> int:
        return self.image_ids.shape[0]

    def image_id(self, i: int) -> int:
        """Returns the id of image ``i``."""
        return int(self.image_ids.numpy()[i])

    def file_name(self, i: int) -> str:
        """Returns the path of image ``i``, relative to ``folder``."""
        start, end = self.name_offsets.numpy()[i : i + 2]
        return self.name_bytes.numpy()[start:end].tobytes().decode()

    def size(self, i: int) -> tuple[int, int]:
        """Returns height and width of image ``i`` as annotated, in pixels."""
        height, width = self.sizes.numpy()[i].tolist()
        return height, width

    def objects(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns copies of the boxes (n, 4) and labels (n,) of image ``i``, without crowds."""
        part = slice(*self.offsets.numpy()[i : i + 2])
        wanted = ~self.crowd.numpy()[part]
        return self.boxes.numpy()[part][wanted], self.labels.numpy()[part][wanted]

    def targets(self, i: int) -> tuple[Tensor, Tensor]:
        """Returns :meth:`objects` as tensors."""
        boxes, labels = self.objects(i)
        return torch.from_numpy(boxes), torch.from_numpy(labels)

    @property
    def landscape(self) -> Tensor:
        """bool (N,), whether images are at least as wide as high."""
        return self.sizes[:, 1] >= self.sizes[:, 0]

    def trained_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns offsets (N + 1,) and labels of the objects that are not crowds, grouped by image."""
        wanted = ~self.crowd.numpy()
        offsets = np.concatenate([[0], np.cumsum(wanted)])[self.offsets.numpy()]
        return offsets.astype(np.int64), self.labels.numpy()[wanted]

    def fingerprint(self) -> str:
        """Returns a hexadecimal hash of ids, sizes, names and objects of all images."""
        digest = hashlib.sha256()
        for part in (self.image_ids, self.sizes, self.boxes, self.labels, self.crowd, self.offsets, self.name_bytes):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:32]


def build_index(
    records: Records,
    folder: Path,
    empty_images: Literal["keep", "skip"] = "keep",
    bad_images: Literal["error", "skip"] = "error",
    max_pixels: int = MAX_PIXELS,
) -> DatasetIndex:
    """Builds an index of the usable images and boxes.

    Boxes are clipped to their image; those without area are left out.

    Args:
        records: images and objects that can be used, see ``dcn_det.data.rules.screen``.
        folder: folder of the images.
        empty_images: whether to keep images that have no boxes except crowds and boxes without area.
        bad_images: ``error`` raises an error for missing files; ``skip`` decodes every image once and leaves out
            missing and unreadable ones.
        max_pixels: images with more pixels count as unreadable.

    Raises:
        UserError: the folder is missing, files are missing and ``bad_images`` is ``error``, or no image is left.
    """
    limits = records.sizes[records.owners][:, [1, 0, 1, 0]].astype(np.float64)
    clipped = np.clip(records.boxes, 0, limits)
    beyond = np.abs(clipped - records.boxes).max(axis=1, initial=0) > _TOLERANCE
    usable = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf) >= _TOLERANCE
    rows = np.flatnonzero(usable)
    targets = np.bincount(records.owners[rows], weights=~records.crowd[rows], minlength=len(records.image_ids))

    bad = _bad_files(folder, records.names, bad_images, max_pixels)
    empty = (targets == 0) & ~bad
    causes = _causes(records, empty)
    kept: NDArray[np.bool_] = ~bad if empty_images == "keep" else ~bad & ~empty
    if not kept.any():
        found = ", ".join(f"{n} {what}" for what, n in [("missing or unreadable", int(bad.sum())), *causes] if n)
        raise UserError(f"no image is left of {len(kept)} in {records.source}: {found} (empty_images: {empty_images})")
    order = np.flatnonzero(kept)
    order = order[np.argsort(records.image_ids[order], kind="stable")]
    place = np.full(len(kept), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = rows[kept[records.owners[rows]]]
    rows = rows[np.argsort(place[records.owners[rows]], kind="stable")]
    names = [records.names[i].encode() for i in order]

    notes = [
        ("crowd boxes, not trained on", int(records.crowd[rows].sum())),
        ("boxes without area, left out", int((~usable).sum())),
        ("boxes clipped to their image", int(beyond[rows].sum())),
        *((f"images {what}, " + ("kept" if empty_images == "keep" else "left out"), count) for what, count in causes),
        ("images missing or unreadable, left out", int(bad.sum())),
    ]
    kept_counts = f"{len(order)} of {len(kept)} images, {len(rows)} boxes, {len(records.categories)} classes"
    return DatasetIndex(
        source=records.source,
        folder=folder,
        categories=records.categories,
        image_ids=torch.from_numpy(records.image_ids[order]),
        sizes=torch.from_numpy(records.sizes[order].astype(np.int32)),
        boxes=torch.from_numpy(clipped[rows].astype(np.float32)),
        labels=torch.from_numpy(records.labels[rows]),
        crowd=torch.from_numpy(records.crowd[rows]),
        offsets=_offsets(np.bincount(place[records.owners[rows]], minlength=len(order))),
        name_bytes=torch.from_numpy(np.frombuffer(b"".join(names), dtype=np.uint8).copy()),
        name_offsets=_offsets(np.array([len(name) for name in names])),
        report="; ".join(
            [
                f"{records.source}: {kept_counts}",
                *(f"{what}: {count}" for what, count in notes if count),
                *records.notes,
            ]
        ),
        annotated=len(records.owners) > 0,
    )


def _causes(records: Records, empty: NDArray[np.bool_]) -> list[tuple[str, int]]:
    """Returns the reasons why images have no object to train on, with the number of images for each."""
    images = len(records.names)
    objects = np.bincount(records.owners, minlength=images)
    crowds = np.bincount(records.owners, weights=records.crowd, minlength=images)
    unlabelled, crowded = empty & (objects == 0), empty & (objects > 0) & (crowds == objects)
    without_area = empty & ~unlabelled & ~crowded
    return [
        ("without objects", int(unlabelled.sum())),
        ("with crowds only", int(crowded.sum())),
        ("with boxes without area only", int(without_area.sum())),
    ]


def _offsets(counts: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _bad_files(folder: Path, names: list[str], policy: Literal["error", "skip"], max_pixels: int) -> NDArray[np.bool_]:
    """Returns whether each file (N,) is missing or, if ``policy`` is ``skip``, cannot be decoded."""
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist")
    # Listing each folder once is much faster than a request per file, especially on network file systems.
    listings: dict[str, frozenset[str]] = {}
    bad = np.zeros(len(names), dtype=np.bool_)
    for row, name in enumerate(names):
        inner, _, file = name.rpartition("/")
        if inner not in listings:
            found = os.scandir(folder / inner) if (folder / inner).is_dir() else ()
            listings[inner] = frozenset(entry.name for entry in found)
        bad[row] = file not in listings[inner]
    if policy == "error":
        if bad.any():
            missing = [names[i] for i in np.flatnonzero(bad)]
            raise UserError(
                f"{len(missing)} of {len(names)} images are missing from {folder}: {first_few(missing)}; "
                "for training, data.bad_images=skip leaves them out"
            )
        return bad
    present = np.flatnonzero(~bad)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bad[present] = [not good for good in pool.map(lambda i: is_readable(folder / names[i], max_pixels), present)]
    return bad
