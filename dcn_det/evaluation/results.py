"""Results in COCO's format: checks of entries, and columns of checked results."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Integral
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcn_det.data.rules import is_number
from dcn_det.errors import UserError, shown
from dcn_det.files import kind_of, without_collecting

Result = dict[str, Any]
"""``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or ``segmentation``."""


@dataclass(frozen=True)
class ResultTable:
    """Checked results as columns, which take about 1/10 of the memory of dicts.

    Attributes:
        image_ids, category_ids: int64 (N,).
        scores: float64 (N,).
        boxes: float64 (N, 4), x, y, width, height in pixels; empty if there are masks.
        masks: N masks in COCO's compressed run-length encoding (RLE), or None.
        notes: messages about entries left out, one line each.
    """

    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: list[dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)


def check_results(
    results: object,
    images: Mapping[int, tuple[int, int]],
    categories: Container[int],
    iou_type: str,
    source: str = "results",
) -> ResultTable:
    """Checks that every entry can be evaluated, and returns the entries as columns.

    Exact repetitions of earlier entries are left out, and a note is added: they occur when an image is tested twice.

    Args:
        results: dicts, see ``Result``; may be empty.
        images: height and width by image id.
        categories: ids of the categories.
        iou_type: ``bbox`` or ``segm``.
        source: name of the results, for messages.

    Raises:
        UserError: an entry cannot be evaluated. The message has a line for each kind of problem, with the first entry
            and the number of entries.
    """
    if not isinstance(results, list | Iterator):
        hint = "; this looks like a ground-truth file" if isinstance(results, dict) and "images" in results else ""
        raise UserError(f"{source}: expected a list of results, got {kind_of(results)}{hint}")
    with without_collecting():
        parts = _checked_parts(iter(results), images, categories, iou_type, source)
    return _without_repetitions(_join(parts, iou_type))


_CHUNK = 20_000


def _checked_parts(
    entries: Iterator[Any],
    images: Mapping[int, tuple[int, int]],
    categories: Container[int],
    iou_type: str,
    source: str,
) -> list[ResultTable]:
    problems = _Problems(source)
    parts: list[ResultTable] = []
    while chunk := list(islice(entries, _CHUNK)):
        part = _columns(chunk, iou_type)
        if part is None or not _acceptable(part, images, categories, iou_type):
            problems.look(chunk, lambda entry: _problem(entry, images, categories, iou_type))
            part = _columns(chunk, iou_type, strict=False) if not problems.first else None
        problems.seen += len(chunk)
        if part is not None:
            parts.append(part)
    problems.refuse()
    return parts


class _Problems:
    """Problems of entries, by kind."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.seen = 0
        self.first: dict[str, str] = {}
        self.count: dict[str, int] = {}

    def look(self, chunk: list[Any], problem: Callable[[object], tuple[str, str] | None]) -> None:
        for index, entry in enumerate(chunk, start=self.seen):
            found = problem(entry)
            if found is not None:
                kind, text = found
                self.first.setdefault(kind, f"entry {index}: {text}")
                self.count[kind] = self.count.get(kind, 0) + 1

    def refuse(self) -> None:
        lines = []
        for kind, text in self.first.items():
            count = self.count[kind]
            lines.append(f"{self.source}: {text}" + (f" ({count} of {self.seen} entries)" if count > 1 else ""))
        if lines:
            raise UserError("\n".join(lines))


def _columns(chunk: list[Any], iou_type: str, strict: bool = True) -> ResultTable | None:
    """Returns entries as columns, or None if keys, types or lengths differ from those of valid JSON entries.

    Args:
        chunk: the entries.
        iou_type: ``bbox`` or ``segm``.
        strict: whether numbers of other types, such as NumPy's, give None; if not, the entries must be valid.
    """
    pick = itemgetter("image_id", "category_id", "score", "bbox" if iou_type == "bbox" else "segmentation")
    try:
        images, categories, scores, shapes = zip(*map(pick, chunk))
        boxes = list(chain.from_iterable(shapes)) if iou_type == "bbox" else []
        fits = not boxes or set(map(len, shapes)) == {4}
    except (TypeError, KeyError):
        return None
    if strict:
        numbers = set(map(type, scores)) | set(map(type, boxes))
        fits = fits and {*map(type, images), *map(type, categories)} == {int} and numbers <= {int, float}
        if not fits:
            return None
    try:
        return ResultTable(
            np.array(images, np.int64),
            np.array(categories, np.int64),
            np.array(scores, np.float64),
            np.array(boxes, np.float64).reshape(-1, 4),
            list(shapes) if iou_type == "segm" else None,
        )
    except (OverflowError, ValueError, TypeError):
        return None


def _acceptable(
    part: ResultTable, images: Mapping[int, tuple[int, int]], categories: Container[int], iou_type: str
) -> bool:
    """Returns whether all entries are valid; False for masks, which are checked one by one."""
    known = all(i in images for i in np.unique(part.image_ids).tolist()) and all(
        i in categories for i in np.unique(part.category_ids).tolist()
    )
    sound = np.isfinite(part.scores).all() and np.isfinite(part.boxes).all() and (part.boxes[:, 2:] >= 0).all()
    return bool(known and sound and iou_type == "bbox")


def _join(parts: Sequence[ResultTable], iou_type: str) -> ResultTable:
    empty = ResultTable(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 4)))
    parts = parts or [empty]
    return ResultTable(
        np.concatenate([part.image_ids for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        [mask for part in parts for mask in part.masks or ()] if iou_type == "segm" else None,
    )


def _without_repetitions(table: ResultTable) -> ResultTable:
    columns = [table.image_ids, table.category_ids, table.scores.view(np.int64)]
    columns += [np.ascontiguousarray(column).view(np.int64) for column in table.boxes.T if table.masks is None]
    if table.masks is not None:
        columns.append(np.array([hash(mask["counts"]) for mask in table.masks], np.int64))
    key = np.zeros(len(table), np.uint64)
    for column in columns:
        key = (key ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    if not (np.diff(key[order]) == 0).any():
        return table
    seen: dict[tuple[Any, ...], int] = {}
    rows = list(zip(*(column.tolist() for column in columns)))
    for index, row in enumerate(rows):
        seen.setdefault(row, index)
    kept = np.array(sorted(seen.values()))
    again = next(i for i, row in enumerate(rows) if seen[row] != i)
    count = len(rows) - len(kept)
    note = f"entries that repeat another exactly, left out: {count} (entry {again} repeats entry {seen[rows[again]]})"
    return ResultTable(
        table.image_ids[kept],
        table.category_ids[kept],
        table.scores[kept],
        table.boxes[kept] if table.masks is None else table.boxes,
        [table.masks[i] for i in kept.tolist()] if table.masks is not None else None,
        (note,),
    )


def _problem(
    entry: object, images: Mapping[int, tuple[int, int]], categories: Container[int], iou_type: str
) -> tuple[str, str] | None:
    """Returns the first problem of an entry as its kind and a message, or None."""
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    if not isinstance(entry, dict):
        return "type", f"expected an object, got {kind_of(entry)}"
    for key in ("image_id", "category_id", shape, "score"):
        if key not in entry:
            return f"no {key}", f"has no '{key}'"
    image_id, category_id, score = entry["image_id"], entry["category_id"], entry["score"]
    if not isinstance(image_id, Integral) or image_id not in images:
        return "image", f"image_id {shown(image_id)} is not in the ground truth; are the results for another split?"
    if not isinstance(category_id, Integral) or category_id not in categories:
        return (
            "category",
            f"category_id {shown(category_id)} is not in the ground truth; labels must be converted to category ids",
        )
    if not is_number(score):
        return "score", f"score must be a finite number, got {shown(score)}"
    if iou_type == "bbox":
        return box_problem(entry["bbox"])
    return _mask_problem(entry["segmentation"], images[int(image_id)])


def box_hints(table: ResultTable, images: Mapping[int, tuple[int, int]]) -> list[str]:
    """Returns notes on boxes that seem to be in another format, for which all metrics would be near 0."""
    if table.masks is not None or not len(table):
        return []
    ids = np.array(sorted(images), np.int64)
    sizes = np.array([images[ident] for ident in ids.tolist()], np.float64)[np.searchsorted(ids, table.image_ids)]
    ends = table.boxes[:, :2] + table.boxes[:, 2:]
    beyond = int((ends > sizes[:, ::-1] + 1).any(axis=1).sum())
    if (ends <= 1).all():
        return ["all boxes are within the first pixel; are they relative to the image size? Expected pixels"]
    if beyond > len(table) / 2:
        return [f"boxes that exceed their image: {beyond} of {len(table)}; are they [x1, y1, x2, y2]?"]
    return []


def box_problem(box: object) -> tuple[str, str] | None:
    """Returns the problem of a COCO box (x, y, width, height) as its kind and a message, or None."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return "box", f"bbox must be 4 finite numbers [x, y, width, height], got {shown(box)}"
    if box[2] < 0 or box[3] < 0:
        return "size", f"bbox [x, y, width, height] has a negative size: {list(box)}; is it [x1, y1, x2, y2]?"
    return None


def _mask_problem(mask: object, size: tuple[int, int]) -> tuple[str, str] | None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes) or "size" not in mask:
        return "mask", "segmentation must be a compressed RLE {size: [height, width], counts: string}"
    if mask["size"] not in (size, list(size)):
        return (
            "mask size",
            f"segmentation has size {mask['size']}, but the image {list(size)} (height, width)",
        )
    if rle_length(mask["counts"]) != size[0] * size[1]:
        return (
            "mask counts",
            f"damaged RLE: the counts of the segmentation do not add up to {size[0]} x {size[1]} pixels",
        )
    return None


def rle_length(counts: str | bytes) -> int:
    """Returns the number of pixels of a compressed COCO RLE, or -1 if it is malformed.

    pycocotools does not check this, and comparing masks of different lengths never returns. Each run is written in
    groups of 5 bits, lowest first, as characters from "0" on. Bit 5 marks that another group follows, and bit 4 of the
    last group is the sign. From the fourth run on, the difference from the second-to-last run is written.
    """
    text = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = character - 48
        if not 0 <= code < 64:
            return -1
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        if runs[-1] < 0:
            return -1
        value = shift = 0
    return -1 if shift else sum(runs)
