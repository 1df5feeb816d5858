"""Images and objects as read by a data format, before settings such as ``empty_images`` are applied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcn_det.categories import Category
from dcn_det.data.findings import first_few
from dcn_det.errors import UserError, did_you_mean, shown

Row = dict[str, Any]


@dataclass(frozen=True)
class ObjectRecord:
    """An annotated object.

    Attributes:
        label: index into the classes.
        box: x1, y1, x2, y2, half-open, in pixels counted from 0; may be degenerate or partly outside its image.
        crowd: whether this is a crowd (COCO) or a difficult object (Pascal VOC). It is not a training target, and
            evaluation counts it neither as missed nor as a wrong detection.
    """

    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """An image and its objects.

    Attributes:
        image_id: unique within the data set.
        file_name: path relative to the image folder.
        height, width: pixels.
        objects: may be empty.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[ObjectRecord, ...] = ()


@dataclass(frozen=True)
class Written:
    """Rows of COCO annotation files, including keys that ``Records`` has no column for, such as segmentations.

    Attributes:
        images, annotations: rows in the order of the columns.
        places: (M,), position of each annotation in its file.
        files: the annotation files.
        origins: (N,), position in ``files`` of the file of each image and of its annotations.
    """

    images: list[Row]
    annotations: list[Row]
    places: NDArray[np.int64]
    files: tuple[str, ...]
    origins: NDArray[np.int64]

    def select(self, rows: NDArray[np.int64], picked: NDArray[np.int64]) -> Written:
        """Returns the images ``rows`` and the annotations ``picked``."""
        images, annotations = [self.images[i] for i in rows], [self.annotations[i] for i in picked]
        return replace(
            self, images=images, annotations=annotations, places=self.places[picked], origins=self.origins[rows]
        )


@dataclass(frozen=True)
class Records:
    """All images and objects of a split, as columns.

    Attributes:
        source: files or folder of the annotations, for messages.
        categories: categories by label.
        image_ids: int64 (N,), unique.
        names: N file names, relative to the image folder.
        sizes: int64 (N, 2), height and width in pixels.
        owners: int64 (M,), row of the image of each object.
        boxes: float64 (M, 4), half-open xyxy in pixels; may be degenerate or partly outside.
        labels: int64 (M,), indices into ``categories``.
        crowd: bool (M,), see ``ObjectRecord``.
        written: rows of the annotation file; None for other formats than COCO's.
        notes: messages about data left out or assumed, one line each.
    """

    source: str | Path
    categories: tuple[Category, ...]
    image_ids: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]
    owners: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    written: Written | None = None
    notes: tuple[str, ...] = field(default=())

    def place(self, row: int) -> str:
        """Returns the position of object ``row`` in the annotations, for messages."""
        if self.written is not None:
            number = self.written.annotations[row].get("id")
            place = f"annotations[{self.written.places[row]}]" + (f" (id {number})" if type(number) is int else "")
            return self.of_file(int(self.owners[row]), place)
        owner = self.owners[row]
        return f"{self.names[owner]} object {1 + int((self.owners[:row] == owner).sum())}"

    def of_file(self, image: int, text: str) -> str:
        """Returns ``text`` about an image, preceded by the name of its annotation file if there are several."""
        if self.written is None or len(self.written.files) == 1:
            return text
        return f"{self.written.files[self.written.origins[image]]}: {text}"

    def select(self, images: NDArray[np.bool_] | None = None, objects: NDArray[np.bool_] | None = None) -> Records:
        """Returns the selected images (N,) and the selected objects (M,) in these images; None selects all."""
        kept_images = np.ones(len(self.names), np.bool_) if images is None else images
        kept = kept_images[self.owners] if objects is None else objects & kept_images[self.owners]
        if kept_images.all() and kept.all():
            return self
        rows, picked = np.flatnonzero(kept_images), np.flatnonzero(kept)
        return replace(
            self,
            image_ids=self.image_ids[rows],
            names=[self.names[i] for i in rows],
            sizes=self.sizes[rows],
            owners=(np.cumsum(kept_images) - 1)[self.owners[picked]],
            boxes=self.boxes[picked],
            labels=self.labels[picked],
            crowd=self.crowd[picked],
            written=self.written.select(rows, picked) if self.written is not None else None,
        )

    def noted(self, *notes: str) -> Records:
        """Returns the records with ``notes`` added."""
        return replace(self, notes=(*self.notes, *notes)) if notes else self


def named_together(paths: Sequence[Path]) -> str | Path:
    """Returns the name of several files in messages."""
    return paths[0] if len(paths) == 1 else ", ".join(map(str, paths))


def join(parts: Sequence[Records]) -> Records:
    """Combines the images and objects of several annotation files in COCO's format, with the same categories.

    Args:
        parts: records with ``written``; the names of their images are relative to the same folder.

    Raises:
        UserError: two files have different categories.
    """
    if len(parts) == 1:
        return parts[0]
    for part in parts[1:]:
        _check_categories(parts[0], part)
    written = [part.written for part in parts if part.written is not None]
    starts = np.cumsum([0, *(len(part.names) for part in parts)])
    return Records(
        source=", ".join(str(part.source) for part in parts),
        categories=parts[0].categories,
        image_ids=np.concatenate([part.image_ids for part in parts]),
        names=[name for part in parts for name in part.names],
        sizes=np.concatenate([part.sizes for part in parts]),
        owners=np.concatenate([part.owners + start for part, start in zip(parts, starts)]),
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        written=Written(
            [row for each in written for row in each.images],
            [row for each in written for row in each.annotations],
            np.concatenate([each.places for each in written]),
            tuple(file for each in written for file in each.files),
            np.repeat(np.arange(len(parts)), [len(part.names) for part in parts]),
        ),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _check_categories(first: Records, other: Records) -> None:
    ours, theirs = ({each.id: each.name for each in part.categories} for part in (first, other))
    for ident in sorted(ours.keys() | theirs.keys()):
        if ours.get(ident) != theirs.get(ident):
            names = [shown(each[ident]) if ident in each else "missing" for each in (ours, theirs)]
            raise UserError(
                f"category {ident} is {names[0]} in {first.source}, but {names[1]} in {other.source}; files that are "
                "combined need the same categories with the same ids"
            )


def with_own_ids(records: Records) -> Records:
    """Gives new ids to images whose id belongs to an earlier image with another file name."""
    first: dict[int, str] = {}
    ids, following = records.image_ids.copy(), int(records.image_ids.max(initial=0)) + 1
    for row, (ident, name) in enumerate(zip(records.image_ids.tolist(), records.names)):
        if first.setdefault(ident, name) != name and following < 2**63:
            ids[row], following = following, following + 1
    return replace(records, image_ids=ids)


def image_id(name: str, file: str) -> int:
    """Returns an id for an image of a format without ids.

    Args:
        name: if it consists of digits, they are the id.
        file: path relative to the data set; otherwise, its hash is the id, in 52 bits (exact in JSON readers that use
            float64).
    """
    digits = name.replace("_", "")
    if digits.isascii() and digits.isdigit() and len(digits) < 16:
        return int(digits)
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big") >> 12


def pack(images: Sequence[ImageRecord], classes: Sequence[str], source: str | Path) -> Records:
    """Packs images into columns.

    Args:
        images: images in any order.
        classes: class names by label; category ids count from 1 in this order.
        source: see ``Records``.
    """
    objects = [(row, each) for row, image in enumerate(images) for each in image.objects]
    return Records(
        source=source,
        categories=tuple(Category(i, name) for i, name in enumerate(classes, start=1)),
        image_ids=np.array([image.image_id for image in images], np.int64),
        names=[image.file_name for image in images],
        sizes=np.array([(image.height, image.width) for image in images], np.int64).reshape(-1, 2),
        owners=np.array([row for row, _ in objects], np.int64),
        boxes=np.array([each.box for _, each in objects], np.float64).reshape(-1, 4),
        labels=np.array([each.label for _, each in objects], np.int64),
        crowd=np.array([each.crowd for _, each in objects], np.bool_),
    )


def only_classes(records: Records, classes: Sequence[str], setting: str = "data.classes") -> Records:
    """Renumbers labels in the order of ``classes`` and leaves out objects of other classes.

    Args:
        records: images and objects.
        classes: unique class names.
        setting: setting that lists them, for messages.

    Raises:
        UserError: a class is not among the categories of the annotations.
    """
    names = [category.name for category in records.categories]
    absent = [name for name in classes if name not in names]
    if absent:
        near = did_you_mean(absent[0], names)
        raise UserError(
            f"{setting}: not among the {len(names)} categories of {records.source}: {first_few(absent)}{near}"
        )
    return _relabel(records, classes)


def match_classes(records: Records, classes: Sequence[str], known: str) -> Records:
    """Renumbers labels to those of a detector trained on ``classes``, matched by name.

    A class that is not in the annotations becomes a category with ``annotated`` false; results of it are not written.
    Categories that are not among ``classes`` are ignored if they have no objects.

    Args:
        records: images and objects.
        classes: unique class names.
        known: origin of ``classes``, for messages.

    Raises:
        UserError: objects of other classes are annotated.
    """
    names = [category.name for category in records.categories]
    if names == list(classes):
        return records
    used = {names[label] for label in np.unique(records.labels)}
    unknown = [name for name in names if name in used and name not in classes]
    if unknown or not set(names) & set(classes):
        which = unknown or names
        near = did_you_mean(which[0], [name for name in classes if name not in names])
        raise UserError(f"{records.source}: classes that {known} does not have: {first_few(which)}{near}")
    absent = [name for name in classes if name not in names]
    unused = [name for name in names if name not in classes]
    matched = _relabel(records, classes)
    return matched.noted(
        *([f"classes without annotations here: {first_few(absent)}"] if absent else []),
        *([f"unused categories, ignored: {first_few(unused)}"] if unused else []),
        *([] if absent or unused else ["categories matched by name: their order differs"]),
    )


def _relabel(records: Records, classes: Sequence[str]) -> Records:
    by_name = {category.name: category for category in records.categories}
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place.get(category.name, -1) for category in records.categories], np.int64)[records.labels]
    categories = tuple(by_name.get(name) or Category(-1, name, annotated=False) for name in classes)
    kept = replace(records, labels=labels, categories=categories).select(objects=labels >= 0)
    left_out = len(labels) - len(kept.labels)
    return kept.noted(f"objects of other classes, left out: {left_out}") if left_out else kept


def to_coco(records: Records) -> dict[str, Any]:
    """Returns the content of a COCO annotation file.

    Annotation ids count from 1. ``iscrowd`` and ``area`` are always present; ``area`` is that of the box unless
    annotated. Other keys of COCO annotations are kept.
    """
    written = records.written
    corners = records.boxes
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    ids = np.array([each.id for each in records.categories], np.int64)
    columns = zip(
        records.image_ids[records.owners].tolist(),
        ids[records.labels].tolist(),
        np.hstack([corners[:, :2], sides]).tolist(),
        sides.prod(axis=1).tolist(),
        records.crowd.astype(int).tolist(),
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [{"id": number, **dict(zip(keys, row))} for number, row in enumerate(columns, start=1)]
    rows = zip(records.image_ids.tolist(), records.names, records.sizes.tolist())
    images: list[Row] = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, name, (height, width) in rows
    ]
    if written is not None:
        images = [{**row, **image} for row, image in zip(written.images, images)]
        for number, row in enumerate(written.annotations):
            box, area = row["bbox"], row.get("area")
            exact = {"bbox": box, "area": box[2] * box[3] if area is None else area}
            annotations[number] = {**row, **annotations[number], **exact}
    return {
        "images": images,
        "categories": [{"id": each.id, "name": each.name} for each in records.categories if each.annotated],
        "annotations": annotations,
    }
