"""Looks at every image and annotation of a split and reports what is wrong with them.

Annotations are read leniently: what would end a training run is counted here, with examples. Whatever their format,
they are checked as rows of COCO's; a row may say in ``_where`` how to name it to people.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dcn_det.errors import UserError
from dcn_det.images import read_image
from dcn_det.progress import Count

Row = dict[str, Any]
EXAMPLES = 5
"""Offenders named for each problem."""
SIZES = (16, 32, 64, 96, 128, 256, 512)
"""Upper edges of the box-size histogram, pixels of the original image (square root of the area)."""

ERRORS = (
    "annotation file missing",
    "annotation file unreadable",
    "image name not made of digits",
    "image missing",
    "image unreadable or truncated",
    "image of another size than stated",
    "image id used twice",
    "annotation id used twice",
    "annotation of an unknown image",
    "annotation of an unknown category",
    "annotation without a usable bbox",
    "box without area",
)
"""What a training run would stop at or leave out; the rest is worth knowing only."""


@dataclass
class Report:
    """What was found in a split.

    Attributes:
        source: where the annotations are.
        problems: what is wrong -> examples of it, all of them.
        classes: objects by category name, unused ones with 0.
        sizes: objects by size, as counts of ``SIZES`` and one more for the larger.
        coverage: for each of these, the best IoU of an anchor with each box, before and after resizing.
        images, objects: how many there are.
        fixed: what can be used, in COCO's format.
    """

    source: str
    problems: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0] * (len(SIZES) + 1))
    coverage: list[list[float]] = field(default_factory=lambda: [[] for _ in range(len(SIZES) + 1)])
    images: int = 0
    objects: int = 0
    fixed: dict[str, Any] = field(default_factory=dict)

    def add(self, problem: str, example: str) -> None:
        self.problems.setdefault(problem, []).append(example)

    @property
    def good(self) -> bool:
        """Whether nothing in ``ERRORS`` was found."""
        return not any(problem in ERRORS for problem in self.problems)

    def text(self) -> str:
        """The report for people."""
        lines = [f"{self.source}: {self.images} images, {self.objects} objects, {len(self.classes)} classes"]
        for problem, examples in sorted(self.problems.items(), key=lambda item: (item[0] not in ERRORS, item[0])):
            kind = "error" if problem in ERRORS else "note "
            more = ", ..." if len(examples) > EXAMPLES else ""
            lines.append(f"  {kind} {problem}: {len(examples)} ({', '.join(examples[:EXAMPLES])}{more})")
        if not self.problems:
            lines.append("  nothing is wrong")
        lines.append("  objects by class")
        width, most = max((len(name) for name in self.classes), default=0), max(self.classes.values(), default=0)
        for name, count in sorted(self.classes.items(), key=lambda item: -item[1]):
            lines.append(f"    {name:<{width}} {count:>8} {_bar(count, most)}")
        lines.append(
            "  objects by size (square root of the area, original pixels), best IoU with an anchor: mean, share >= 0.5"
        )
        edges = [f"< {edge}" for edge in SIZES] + [f">= {SIZES[-1]}"]
        for edge, count, ious in zip(edges, self.sizes, self.coverage):
            covered = f"{np.mean(ious):.2f} {np.mean(np.array(ious) >= 0.5):5.0%}" if ious else "   -     -"
            lines.append(f"    {edge:<6} {count:>8}  {covered}  {_bar(count, max(self.sizes))}")
        return "\n".join(lines)


def _bar(count: int, most: int, width: int = 40) -> str:
    return "#" * round(width * count / max(most, 1))


@dataclass(frozen=True)
class AnchorCheck:
    """How well anchors meet the boxes after resizing.

    Attributes:
        anchors: (levels, A, 4) half-open, of the top-left cell of each feature map.
        strides: of the feature maps, pixels.
        short_side, max_side: of resizing, pixels.
    """

    anchors: NDArray[np.float64]
    strides: tuple[int, ...]
    short_side: int
    max_side: int

    def best_iou(self, box: NDArray[np.float64], height: int, width: int) -> float:
        """The best IoU of any anchor of any cell with a half-open box of an image of that size."""
        scale = self.short_side / min(height, width)
        if round(scale * max(height, width)) > self.max_side:
            scale = self.max_side / max(height, width)
        levels = zip(self.anchors, self.strides, strict=True)
        return max(_best_iou(box * scale, each, stride, height * scale, width * scale) for each, stride in levels)


def _best_iou(
    box: NDArray[np.float64], anchors: NDArray[np.float64], stride: int, height: float, width: float
) -> float:
    sizes = anchors[:, 2:] - anchors[:, :2]
    best_overlap = np.ones(len(sizes))
    for axis, extent in ((0, width), (1, height)):
        cells = np.arange(max(int(extent // stride), 1)) * stride
        start = anchors[:, axis, None] + cells  # anchors x cells: the axes are independent
        end = anchors[:, axis + 2, None] + cells
        overlap = np.minimum(end, box[axis + 2]) - np.maximum(start, box[axis])
        best_overlap *= np.maximum(overlap, 0).max(axis=1)
    union = sizes.prod(axis=1) + (box[2:] - box[:2]).prod() - best_overlap
    return float((best_overlap / union).max())


def check_document(
    document: dict[str, Any],
    folder: Path,
    report: Report,
    anchors: AnchorCheck | None,
    workers: int = 0,
    progress: Count | None = None,
) -> None:
    """Checks images and objects, and fills in the report.

    Args:
        document: lists ``images``, ``annotations`` and ``categories``. An image with ``_unlabelled`` has no annotation
            to state its size or to hold objects; one with ``_bad`` cannot be used.
        folder: what the names of the images are relative to.
        report: may already hold problems found in reading.
        anchors: what boxes are compared with; None for a detector without anchors.
        workers: processes that decode images; 0 uses this one.
        progress: called with images read and images in all.
    """
    categories = {row.get("id"): str(row.get("name")) for row in document["categories"]}
    rows = _check_images(document["images"], folder, report, workers, progress)
    kept = _check_objects(document["annotations"], rows, categories, anchors, report)
    report.images, report.objects = len(document["images"]), len(document["annotations"])
    counts = Counter(categories[row["category_id"]] for row in kept)
    report.classes = {name: counts.get(name, 0) for name in categories.values()}
    for name, count in report.classes.items():
        if count == 0:
            report.add("category without objects", name)
    used = {row["image_id"] for row in kept}
    for image_id, row in rows.items():
        if image_id not in used and "_unlabelled" not in row:
            report.add("image without objects", row.get("_where", str(image_id)))
    good = [row for row in rows.values() if "_bad" not in row]
    good_ids = {row["id"] for row in good}
    report.fixed = document | {
        "images": [_public(row) for row in good],
        "annotations": [_public(row) for row in kept if row["image_id"] in good_ids],
    }


def _public(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("_bad", "_unlabelled", "_where")}


def _check_images(
    rows: list[Row], folder: Path, report: Report, workers: int, progress: Count | None
) -> dict[Any, Row]:
    """Rows by image id, the first of each; ``_bad`` marks those whose file cannot be used."""
    found: dict[Any, Row] = {}
    for row in rows:
        if row.get("id") in found:
            report.add("image id used twice", row.get("_where", str(row.get("id"))))
        else:
            found[row.get("id")] = dict(row)
    paths = [str(folder / str(row.get("file_name"))) for row in found.values()]
    if workers > 0:
        with ProcessPoolExecutor(workers) as pool:
            _judge(found, pool.map(look_at, paths, chunksize=8), report, progress)
    else:
        _judge(found, map(look_at, paths), report, progress)
    return found


def _judge(found: dict[Any, Row], sizes: Any, report: Report, progress: Count | None) -> None:
    for number, (row, size) in enumerate(zip(found.values(), sizes), start=1):
        name = str(row.get("file_name"))
        if isinstance(size, str):
            report.add(size, name)
            row["_bad"] = True
        elif size != (row.get("height"), row.get("width")):
            if "_unlabelled" not in row:
                report.add(
                    "image of another size than stated",
                    f"{name} is {size[1]}x{size[0]}, not {row.get('width')}x{row.get('height')}",
                )
            row["height"], row["width"] = size
        if progress:
            progress(number, len(found))


def look_at(path: str) -> tuple[int, int] | str:
    """Height and width of an image that can be decoded in full, otherwise what is wrong."""
    cv2.setNumThreads(0)
    if not Path(path).is_file():
        return "image missing"
    try:
        height, width = read_image(path).shape[:2]
    except UserError:
        return "image unreadable or truncated"
    return height, width


def _check_objects(
    rows: list[Row], images: dict[Any, Row], categories: dict[Any, str], anchors: AnchorCheck | None, report: Report
) -> list[Row]:
    """The objects that can be used, clipped to their image; crowds are kept as they are."""
    kept, ids, seen = [], set(), set()
    for position, original in enumerate(rows):
        row, name = dict(original), original.get("_where") or f"id {original.get('id', f'at {position}')}"
        if row.get("id") is not None and row["id"] in ids:
            report.add("annotation id used twice", str(row["id"]))
            continue
        ids.add(row.get("id"))
        if row.get("image_id") not in images:
            report.add("annotation of an unknown image", name)
            continue
        if row.get("category_id") not in categories:
            report.add("annotation of an unknown category", name)
            continue
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
            report.add("annotation without a usable bbox", name)
            continue
        image = images[row["image_id"]]
        if not all(isinstance(image.get(side), int) for side in ("height", "width")):
            continue  # neither stated nor found, since the file cannot be used: nothing to hold the box against
        x, y, w, h = map(float, box)
        corners = np.array([x, y, x + w, y + h])
        clipped = np.clip(corners, 0, [image["width"], image["height"]] * 2)
        width, height = clipped[2] - clipped[0], clipped[3] - clipped[1]
        if not np.isfinite(corners).all() or width <= 0 or height <= 0:
            report.add("box without area", name)
            continue
        if np.abs(clipped - corners).max() > 0.01:
            report.add("box partly outside its image", name)
            row["bbox"] = [float(clipped[0]), float(clipped[1]), float(width), float(height)]
        key = (row["image_id"], row["category_id"], *row["bbox"])
        if key in seen:
            report.add("object annotated twice", name)
        seen.add(key)
        kept.append(row)
        if not row.get("iscrowd"):
            bucket = int(np.searchsorted(SIZES, (width * height) ** 0.5, side="right"))
            report.sizes[bucket] += 1
            if anchors is not None:
                report.coverage[bucket].append(anchors.best_iou(clipped, image["height"], image["width"]))
    return kept
