"""Rules for usable images and objects, shared by all data formats."""

from __future__ import annotations

import math
import re
from collections import Counter
from numbers import Real
from pathlib import PurePosixPath
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from dcn_det.data.findings import Findings
from dcn_det.data.records import Records
from dcn_det.errors import shown

MAX_SIDE = 2**24
"""Maximum side of an image and maximum coordinate in pixels: float32 represents integers exactly up to here."""

_ORDINARY = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_.() /-]{0,199}")
_LONGEST_NAME, _LONGEST_PATH = 255, 2048
"""Maximum length of a file name in bytes, as in common file systems, and of a path in characters. The limit of paths
is lower than that of file systems, since the image folder is added.
"""


def is_id(value: object) -> bool:
    """Returns whether ``value`` is a 64-bit integer."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: object) -> TypeGuard[float]:
    """Returns whether ``value`` is a finite number and not a bool."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def name_problem(name: object) -> str | None:
    """Returns why ``name`` cannot be the file name of an image, or None if it can.

    Names must stay inside the image folder, so that annotations from untrusted sources cannot make the program read
    other files. Symbolic links inside the folder are followed.
    """
    if type(name) is str and _ORDINARY.fullmatch(name) and ".." not in name:
        return None  # most names; the rest takes ten times as long
    if not isinstance(name, str) or not name.strip():
        return f"{shown(name)} is not a file name"
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{shown(name)} is not valid Unicode"
    if "\0" in name:
        return f"{shown(name)} has a null character"
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if len(name) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        return f"{shown(name)} is too long"
    if name.startswith(("/", "\\")) or ".." in parts:
        return f"{shown(name)} is outside the image folder"
    return None


def screen(records: Records, findings: Findings, labelled: bool = True) -> Records:
    """Reports images and objects that cannot be used, and leaves them out.

    Args:
        records: images and objects as annotated.
        findings: receives errors and notes.
        labelled: whether having no object at all is an error.

    Returns:
        Images with unique ids, names inside the image folder and sides from 1 to ``MAX_SIDE``, and their objects with
        finite boxes. Boxes may still have no area or exceed their image.
    """
    records = _screen_images(records, findings)
    records = _screen_boxes(records, findings)
    if labelled and not (~records.crowd).any():
        crowds = f"all {len(records.crowd)} objects are crowds" if len(records.crowd) else "no objects are annotated"
        findings.error("no usable object", crowds)
    for name, count in Counter(name for name in records.names if name).items():
        if count > 1:
            findings.note("image file under several ids", f"{name} ({count} ids)")
    return records


def _screen_images(records: Records, findings: Findings) -> Records:
    problems = {row: text for row, name in enumerate(records.names) if name and (text := name_problem(name))}
    for text in problems.values():
        findings.error("image without a usable file name", text)
    good = np.ones(len(records.names), np.bool_)
    good[list(problems)] = False
    sized = ((records.sizes >= 1) & (records.sizes <= MAX_SIDE)).all(axis=1)
    for row in np.flatnonzero(good & ~sized):
        height, width = records.sizes[row]
        findings.error("image without a usable size", f"{records.names[row]} is {width}x{height}")
    first = np.zeros(len(good), np.bool_)
    first[np.unique(records.image_ids, return_index=True)[1]] = True
    for row in np.flatnonzero(good & sized & ~first).tolist():
        findings.error("image id used twice", f"{records.image_ids[row]} ({_both(records, row)})")
    return records.select(images=good & sized & first)


def _both(records: Records, row: int) -> str:
    """Names an image, and the earlier one with the same id if they are in different annotation files."""
    rows = [int(np.flatnonzero(records.image_ids == records.image_ids[row])[0]), row]
    places = [records.of_file(each, records.names[each]) for each in rows]
    return " and ".join(places) if places[1] != records.names[row] else places[1]


def _screen_boxes(records: Records, findings: Findings) -> Records:
    boxes = records.boxes
    with np.errstate(invalid="ignore"):
        bounded = np.asarray((np.abs(boxes) <= MAX_SIDE).all(axis=1))  # False for NaN
        positive = np.asarray((boxes[:, 2:] >= boxes[:, :2]).all(axis=1))

    def examples(bad: NDArray[np.bool_]) -> list[str]:
        return [f"{records.place(row)}: {_xywh(boxes[row])}" for row in np.flatnonzero(bad).tolist()]

    findings.keep(bounded, "box with coordinates that are not finite or too large", examples(~bounded))
    findings.keep(positive | ~bounded, "box of negative width or height", examples(~positive & bounded))
    return records.select(objects=bounded & positive)


def _xywh(box: NDArray[np.float64]) -> str:
    x1, y1, x2, y2 = box.tolist()
    return f"x {x1:g}, y {y1:g}, width {x2 - x1:g}, height {y2 - y1:g}"
