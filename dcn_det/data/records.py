"""Images and objects as a data format reads them, before any policy on them is applied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcn_det.categories import Category
from dcn_det.errors import UserError

_NAMED = 5
"""Offenders named in a message."""


@dataclass(frozen=True)
class ObjectRecord:
    """An annotated object.

    Attributes:
        label: index into the classes.
        box: x1, y1, x2, y2, half-open, in pixels counted from 0; may be degenerate or partly outside its image.
        crowd: neither a training target, nor an object to find, nor an error when detected: a crowd of COCO, a
            difficult object of Pascal VOC.
    """

    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """An image and its objects.

    Attributes:
        image_id: unique within the data set.
        file_name: relative to the image folder.
        height, width: pixels.
        objects: may be empty.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[ObjectRecord, ...] = ()


@dataclass(frozen=True)
class Records:
    """All images and objects of a split, as columns.

    Attributes:
        source: file or folder of the annotations, for messages.
        categories: by label.
        image_ids: int64 (N,), unique.
        names: N file names, relative to the image folder.
        sizes: int64 (N, 2), height and width in pixels.
        owners: int64 (M,), the row of each object's image.
        boxes: float64 (M, 4), half-open xyxy in pixels; may be degenerate, infinite or partly outside.
        labels: int64 (M,), indices into ``categories``.
        crowd: bool (M,), see ``ObjectRecord``.
    """

    source: Path
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]
    owners: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


def pack(images: Sequence[ImageRecord], classes: Sequence[str], source: Path) -> Records:
    """Packs images into columns.

    Args:
        images: in any order.
        classes: names by label; category ids count from 1 in this order.
        source: see ``Records``.

    Raises:
        UserError: two images have the same id.
    """
    names: dict[int, str] = {}
    for image in images:
        if image.image_id in names:
            both = f"'{names[image.image_id]}' and '{image.file_name}'"
            raise UserError(f"{source}: images {both} have the same id {image.image_id}; list each image once")
        names[image.image_id] = image.file_name
    objects = [(row, each) for row, image in enumerate(images) for each in image.objects]
    return Records(
        source=source,
        categories=tuple(Category(i, name) for i, name in enumerate(classes, start=1)),
        image_ids=np.array(list(names), np.int64),
        names=list(names.values()),
        sizes=np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2),
        owners=np.array([row for row, _ in objects], np.int64),
        boxes=np.array([each.box for _, each in objects], np.float64).reshape(-1, 4),
        labels=np.array([each.label for _, each in objects], np.int64),
        crowd=np.array([each.crowd for _, each in objects], np.bool_),
    )


def to_coco(records: Records) -> dict[str, Any]:
    """Returns the content of a COCO annotation file; ``area`` is that of the box, annotation ids count from 1."""
    corners = records.boxes
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    categories = np.array([category.id for category in records.categories], np.int64)
    columns = zip(
        records.image_ids[records.owners].tolist(),
        categories[records.labels].tolist(),
        np.hstack([corners[:, :2], sides]).tolist(),
        sides.prod(axis=1).tolist(),
        records.crowd.astype(int).tolist(),
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    images = zip(records.image_ids.tolist(), records.names, records.sizes.tolist())
    return {
        "images": [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in images
        ],
        "categories": [{"id": category.id, "name": category.name} for category in records.categories],
        "annotations": [{"id": number, **dict(zip(keys, row))} for number, row in enumerate(columns, start=1)],
    }


def first_few(items: Iterable[object]) -> str:
    """Joins the first few of ``items`` and says how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
