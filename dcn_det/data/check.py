"""Checks of every image and annotation of a split, for ``dcn-det check-dataset``."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.data.anchor_check import SIZES, AnchorCheck
from dcn_det.data.findings import Findings
from dcn_det.data.formats.base import DataFormat
from dcn_det.data.formats.coco import read_document
from dcn_det.data.records import Records, to_coco
from dcn_det.errors import UserError
from dcn_det.exif import Exif, applies, orientation
from dcn_det.images import ImageTooLarge, read_image
from dcn_det.progress import Count

COUNTED = 100
"""Detections per image that COCO's metrics count."""


@dataclass
class Report:
    """Result of a check.

    Attributes:
        findings: errors and notes.
        classes: number of objects by category name, including categories without objects.
        sizes: number of objects by size: one count for each edge of ``SIZES`` and one for larger objects.
        coverage: for each size, the highest IoU of an anchor with each object, on the resized image.
        images, objects: number of annotated images and objects.
        looks: properties of the image files, by name.
        notes: objects, names or categories that reading left out, one line each.
    """

    findings: Findings
    classes: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0] * (len(SIZES) + 1))
    coverage: list[list[float]] = field(default_factory=lambda: [[] for _ in range(len(SIZES) + 1)])
    images: int = 0
    objects: int = 0
    looks: dict[str, Look] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether training and evaluation can use all images and objects."""
        return not self.findings.errors

    def text(self) -> str:
        """Returns the report as text."""
        findings = self.findings
        lines = [f"{findings.source}: {self.images} images, {self.objects} objects, {len(self.classes)} classes"]
        lines += findings.lines(self.notes)
        lines.append("  objects by class")
        width, most = max((len(name) for name in self.classes), default=0), max(self.classes.values(), default=0)
        for name, count in sorted(self.classes.items(), key=lambda item: -item[1]):
            lines.append(f"    {name:<{width}} {count:>8} {bar(count, most)}")
        lines.append(
            "  objects by size (square root of the area, original pixels), best IoU with an anchor: mean, share >= 0.5"
        )
        edges = [f"< {edge}" for edge in SIZES] + [f">= {SIZES[-1]}"]
        for edge, count, ious in zip(edges, self.sizes, self.coverage):
            covered = f"{np.mean(ious):.2f} {np.mean(np.array(ious) >= 0.5):5.0%}" if ious else "   -     -"
            lines.append(f"    {edge:<6} {count:>8}  {covered}  {bar(count, max(self.sizes))}")
        return "\n".join(lines)


def bar(count: int, most: int, width: int = 40) -> str:
    """Returns a bar of a length proportional to ``count``, of ``width`` characters for ``most``."""
    return "#" * round(width * count / max(most, 1))


@dataclass(frozen=True)
class Look:
    """Properties of an image file.

    Attributes:
        problem: why the image cannot be used; None if it can.
        height, width: size as stored, in pixels; 0 if the image cannot be used.
        orientation: EXIF orientation; 1 is upright.
    """

    problem: str | None
    height: int = 0
    width: int = 0
    orientation: int = 1

    def size(self, exif: Exif, stated: tuple[int, int] | None) -> tuple[int, int]:
        """Returns height and width in the orientation in which the image is used, see ``data.exif``.

        Args:
            exif: the setting.
            stated: height and width in the annotations; None if they state none.
        """
        stored = (self.height, self.width)
        return stored[::-1] if self.orientation >= 5 and applies(exif, stored, stated) else stored


def look_at(path: str, max_pixels: int) -> Look:
    """Decodes an image completely and returns its properties."""
    cv2.setNumThreads(0)
    if not Path(path).exists():
        return Look("image missing")
    try:
        height, width = read_image(path, max_pixels).shape[:2]
    except ImageTooLarge:
        return Look("image too large")
    except UserError:
        return Look("image unreadable or truncated")
    return Look(None, height, width, orientation(path))


def check_split(
    split: DataFormat, anchors: AnchorCheck | None, workers: int = 0, progress: Count | None = None
) -> Report:
    """Checks images and objects of a split.

    Errors are problems that make training, testing or evaluation fail or leave something out. Notes are all others.

    Args:
        split: the split; a training split needs annotations.
        anchors: anchors to compare boxes with; None for a detector without anchors.
        workers: processes that decode images; 0 decodes in this process.
        progress: called with the number of images read and their total number.

    Raises:
        UserError: the annotations cannot be read at all.
    """
    report = Report(Findings(split.source))
    records = split.read(report.findings, labelled=split.split == "train")
    report.notes = records.notes
    report.images = max(report.findings.images, len(records.names))
    report.objects = max(report.findings.objects, len(records.labels))
    report.looks = _look(records, split.folder, split.data.max_pixels, workers, progress)
    usable = _judge_images(records, report, split.data.exif)
    _judge_objects(records, usable, anchors, report)
    return report


def _look(records: Records, folder: Path, max_pixels: int, workers: int, progress: Count | None) -> dict[str, Look]:
    names = list(dict.fromkeys(records.names))
    found: dict[str, Look] = {}
    with ExitStack() as stack:
        paths = [str(folder / name) for name in names]
        look = partial(look_at, max_pixels=max_pixels)
        looks: Iterable[Look] = map(look, paths)
        if workers > 0:
            looks = stack.enter_context(ProcessPoolExecutor(workers)).map(look, paths, chunksize=8)
        for number, (name, each) in enumerate(zip(names, looks), start=1):
            found[name] = each
            if progress:
                progress(number, len(names))
    return found


def _judge_images(records: Records, report: Report, exif: Exif) -> NDArray[np.int64]:
    """Reports problems of image files; returns the sizes (N, 2) that are used, or as annotated if unreadable."""
    sizes = records.sizes.copy()
    findings = report.findings
    for row, name in enumerate(records.names):
        look = report.looks[name]
        stated = (int(records.sizes[row, 0]), int(records.sizes[row, 1]))
        used = look.size(exif, stated)
        if look.problem is not None:
            findings.error(look.problem, name)
        elif stated == used[::-1] != used and look.orientation >= 5:
            findings.error("image annotated in its other orientation (EXIF); set data.exif to auto", name)
        else:
            if stated != used:
                example = f"{name} is {used[1]}x{used[0]}, not {stated[1]}x{stated[0]}"
                findings.error("image size differs from the annotation", example)
            elif look.orientation != 1 and not applies(exif, (look.height, look.width), stated):
                findings.note("image rotated by viewers (EXIF orientation), but not in training", name)
            sizes[row] = used
    return sizes


def _judge_objects(records: Records, sizes: NDArray[np.int64], anchors: AnchorCheck | None, report: Report) -> None:
    findings = report.findings
    limits = sizes[records.owners][:, [1, 0, 1, 0]]
    clipped = np.clip(records.boxes, 0, limits)
    sides = clipped[:, 2:] - clipped[:, :2]
    with_area = np.asarray((sides > 0).all(axis=1))
    findings.keep(with_area, "box without area", (records.place(row) for row in np.flatnonzero(~with_area).tolist()))
    beyond = with_area & (np.abs(clipped - records.boxes).max(axis=1, initial=0) > 0.01)
    for row in np.flatnonzero(beyond).tolist():
        findings.note("box partly outside its image", records.place(row))
    keys = zip(records.owners.tolist(), records.labels.tolist(), records.boxes.tolist(), with_area.tolist())
    seen: set[tuple[object, ...]] = set()
    for row, (owner, label, box, good) in enumerate(keys):
        key = (owner, label, *box)
        if key in seen and good:
            findings.note("object annotated twice", records.place(row))
        seen.add(key)
    counts = np.bincount(records.labels[with_area], minlength=len(records.categories)).tolist()
    report.classes = {category.name: count for category, count in zip(records.categories, counts)}
    for name, count in report.classes.items():
        if count == 0:
            findings.note("category without objects", name)
    _judge_counts(records, with_area, report)
    found = with_area & ~records.crowd
    for row in np.flatnonzero(found).tolist():
        bucket = int(np.searchsorted(SIZES, float(sides[row].prod()) ** 0.5, side="right"))
        report.sizes[bucket] += 1
        if anchors is not None:
            height, width = sizes[records.owners[row]].tolist()
            report.coverage[bucket].append(anchors.best_iou(clipped[row], height, width))


def _judge_counts(records: Records, with_area: NDArray[np.bool_], report: Report) -> None:
    images = len(records.names)
    objects = np.bincount(records.owners[with_area], minlength=images)
    crowds = np.bincount(records.owners[with_area & records.crowd], minlength=images)
    for row in np.flatnonzero(objects == crowds):
        kind = "image with crowds only" if objects[row] else "image without objects"
        report.findings.note(kind, records.names[row])
    for row in np.flatnonzero(objects - crowds > COUNTED):
        example = f"{records.names[row]} has {objects[row] - crowds[row]}"
        report.findings.note(f"image with more than {COUNTED} objects, COCO's limit for detections", example)


def fixed_document(split: DataFormat, report: Report) -> dict[str, Any]:
    """Returns the usable part of a split in COCO's format, with values repaired where possible.

    Images that are missing, unreadable or annotated in another orientation than they are used in are left out. Sizes
    become those of the image files. Boxes are clipped to their image; boxes without area are left out.

    Args:
        split: the split.
        report: result of :func:`check_split`.

    Raises:
        UserError: no usable image is left.
    """
    records = split.repaired(Findings(split.source), labelled=split.split == "train")
    looks = [
        report.looks.get(name) or look_at(str(split.folder / name), split.data.max_pixels) for name in records.names
    ]
    stated = [(int(height), int(width)) for height, width in records.sizes]
    used = [look.size(split.data.exif, size) for look, size in zip(looks, stated)]
    sizes = np.array(used, np.int64).reshape(-1, 2)
    turned = np.array([look.orientation >= 5 for look in looks], np.bool_)
    turned &= (records.sizes == sizes[:, ::-1]).all(axis=1) & (records.sizes != sizes).any(axis=1)
    bad = np.array([look.problem is not None for look in looks], np.bool_)
    records = replace(records, sizes=sizes).select(images=~bad & ~turned)
    limits = records.sizes[records.owners][:, [1, 0, 1, 0]]
    clipped = np.clip(records.boxes, 0, limits)
    with_area = np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    records = _with_boxes(records, clipped).select(objects=with_area)
    if not len(records.names):
        raise UserError(f"{split.source}: no usable image is left; nothing is written")
    document = to_coco(records)
    _check_fixed(document, records)
    return document


def _with_boxes(records: Records, boxes: NDArray[np.float64]) -> Records:
    """Replaces boxes; changes rows of the annotation file only where boxes differ by more than rounding."""
    written = records.written
    if written is not None:
        changed = np.abs(boxes - records.boxes).max(axis=1, initial=0) > 0.01
        rows = list(written.annotations)
        for row in np.flatnonzero(changed):
            x1, y1, x2, y2 = boxes[row].tolist()
            rows[row] = {**rows[row], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        written = replace(written, annotations=rows)
    return replace(records, boxes=boxes, written=written)


def _check_fixed(document: dict[str, Any], records: Records) -> None:
    """Checks that ``document`` can be read.

    Raises:
        UserError: it cannot.
    """
    findings = Findings(f"usable part of {records.source}")
    read_document(document, Path(str(findings.source)), findings, labelled=bool(document["annotations"]))
    findings.refuse()
