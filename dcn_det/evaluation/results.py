"""COCO-format results: writing detections, and reading results back with every entry checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from dcn_det.errors import UserError
from dcn_det.structures import Category, Detections

Result = dict[str, Any]
"""``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or ``segmentation``."""


def to_coco_results(detections: Detections, image_id: int, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Detections of one image as COCO results.

    Args:
        detections: boxes half-open xyxy in pixels of the original image.
        image_id: the image's id in the annotation file.
        categories: the data set's, in the order of the labels.

    Returns:
        One dict a detection with ``bbox`` (x, y, width, height), where width is ``x2 - x1``.

    Raises:
        UserError: a box or score is not finite.
    """
    boxes, scores = detections.boxes.detach().double(), detections.scores.detach().double()
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise UserError(f"image {image_id}: the detector returned boxes or scores that are not finite")
    return [
        {
            "image_id": image_id,
            "category_id": categories[label].id,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), detections.labels.tolist())
    ]


def write_json(path: str | Path, content: object) -> None:
    """Writes a JSON file whole or not at all; missing folders are made.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
        OSError: with the file's name.
    """
    path = Path(path)
    text = json.dumps(content, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: it is not JSON.
        OSError: it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None


def check_results(
    results: object,
    images: Mapping[int, tuple[int, int]],
    categories: Container[int],
    iou_type: str,
    source: str = "results",
) -> list[Result]:
    """Makes sure that every entry can be evaluated.

    Args:
        results: a list of dicts; it may be empty.
        images: height and width by image id.
        categories: the category ids there are.
        iou_type: ``bbox`` or ``segm``.
        source: what messages call the results.

    Returns:
        ``results``.

    Raises:
        UserError: one line for each kind of problem, with the first entry that has it and how many do.
    """
    if not isinstance(results, list):
        hint = "; this looks like a ground-truth file" if isinstance(results, dict) and "images" in results else ""
        raise UserError(f"{source}: expected a list of results, got {_kind(results)}{hint}")
    first: dict[str, str] = {}
    count: dict[str, int] = {}
    for index, entry in enumerate(results):
        found = _problem(entry, images, categories, iou_type)
        if found is not None:
            kind, text = found
            first.setdefault(kind, f"entry {index}: {text}")
            count[kind] = count.get(kind, 0) + 1
    if first:
        lines = [
            f"{source}: {text}" + (f" ({count[kind]} of {len(results)} entries)" if count[kind] > 1 else "")
            for kind, text in first.items()
        ]
        raise UserError("\n".join(lines))
    return results


def _problem(
    entry: object, images: Mapping[int, tuple[int, int]], categories: Container[int], iou_type: str
) -> tuple[str, str] | None:
    """The kind of the first problem of an entry and what to say about it."""
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    if not isinstance(entry, dict):
        return "type", f"expected an object, got {_kind(entry)}"
    for key in ("image_id", "category_id", shape, "score"):
        if key not in entry:
            return f"no {key}", f"has no '{key}'"
    image_id, category_id, score = entry["image_id"], entry["category_id"], entry["score"]
    if not isinstance(image_id, Integral) or image_id not in images:
        return "image", f"image_id {image_id!r} is not in the ground truth; is it that of another split?"
    if not isinstance(category_id, Integral) or category_id not in categories:
        return (
            "category",
            f"category_id {category_id!r} is not in the ground truth; labels must be mapped to its ids",
        )
    if not is_number(score):
        return "score", f"score must be a finite number, got {score!r}"
    if iou_type == "bbox":
        return box_problem(entry["bbox"])
    return _mask_problem(entry["segmentation"], images[int(image_id)])


def is_number(value: object) -> bool:
    """Whether this is a finite number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def box_problem(box: object) -> tuple[str, str] | None:
    """What is wrong with a COCO box (x, y, width, height), as the kind of problem and a text."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return "box", f"bbox must be 4 finite numbers [x, y, width, height], got {str(box)[:60]}"
    if box[2] < 0 or box[3] < 0:
        return "size", f"bbox [x, y, width, height] has a negative size: {list(box)}; is it [x1, y1, x2, y2]?"
    return None


def _mask_problem(mask: object, size: tuple[int, int]) -> tuple[str, str] | None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes) or "size" not in mask:
        return "mask", "segmentation must be a compressed RLE {size: [height, width], counts: string}"
    if mask["size"] not in (size, list(size)):
        return (
            "mask size",
            f"segmentation is for size {mask['size']}, the image is {list(size)} (height, width)",
        )
    if rle_length(mask["counts"]) != size[0] * size[1]:
        return (
            "mask counts",
            f"segmentation's counts do not cover the {size[0]} x {size[1]} image: damaged RLE",
        )
    return None


def rle_length(counts: str | bytes) -> int:
    """How many pixels a compressed COCO RLE covers, or -1 if it is malformed.

    pycocotools does not check this, and never returns from comparing masks of unequal length. Runs are
    written in groups of 5 bits, lowest first, as characters from "0" on; bit 5 marks that more follow, bit 4
    of the last is the sign. From the fourth run on, the difference to the run two before is written.
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


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
