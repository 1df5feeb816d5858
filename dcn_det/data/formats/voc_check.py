"""Looks at the images and annotations of Pascal VOC image sets, as ``check.py`` does for COCO's files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

from dcn_det.data.check import AnchorCheck, Report, Row, check_document
from dcn_det.data.formats.voc import is_difficult, list_images, read_box, whole
from dcn_det.errors import UserError
from dcn_det.progress import Count


def check_voc(
    root: Path,
    sets: Sequence[str],
    classes: Sequence[str],
    labelled: bool,
    anchors: AnchorCheck | None,
    workers: int = 0,
    progress: Count | None = None,
) -> Report:
    """Checks the images of some sets, taken together.

    Args:
        root, sets, classes, labelled: see ``voc.read_voc``.
        anchors, workers, progress: see ``check.check_document``.

    Returns:
        A report whose ``fixed`` is in COCO's format: images relative to ``root``, boxes counted from 0, categories
        numbered from 1 in the order of ``classes``, difficult objects as crowds.

    Raises:
        UserError: a set is missing, or all are empty.
    """
    jobs = list_images(root, sets)
    report = Report(f"{root}: {', '.join(sets)}")
    with ThreadPoolExecutor(8) as pool:
        trees = list(pool.map(lambda job: _parse(job[0] / "Annotations" / f"{job[1]}.xml"), jobs))
    numbers = count(1)
    images: dict[int, Row] = {}
    repeated: list[Row] = []
    annotations: list[Row] = []
    for (base, name), tree in zip(jobs, trees):
        where = str((base / "Annotations" / f"{name}.xml").relative_to(root))
        digits = name.replace("_", "")
        if not digits.isdecimal():
            report.add("image name not made of digits", name)
            continue
        image: Row = {"id": int(digits), "file_name": str((base / "JPEGImages" / f"{name}.jpg").relative_to(root))}
        image["_where"] = where
        if image["id"] in images:
            repeated.append(image)
            continue
        images[image["id"]] = image
        if isinstance(tree, str):
            allowed = tree == "annotation file missing" and not labelled
            report.add("image without annotation file" if allowed else tree, where)
            image["_unlabelled"] = True
            if not allowed:
                image["_bad"] = True
            continue
        image |= {key: _side(tree, key, Path(where)) for key in ("height", "width")}
        for place, node in enumerate(tree.iterfind("object"), start=1):
            annotations.append({"id": next(numbers), "image_id": image["id"], **_object(node, classes, where, place)})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    document = {"images": [*images.values(), *repeated], "categories": categories, "annotations": annotations}
    check_document(document, root, report, anchors, workers, progress)
    for row in report.fixed["annotations"]:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    return report


def _parse(path: Path) -> ElementTree.Element | str:
    """The file's root, otherwise what is wrong with it."""
    if not path.is_file():
        return "annotation file missing"
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return "annotation file unreadable"


def _object(node: ElementTree.Element, classes: Sequence[str], where: str, place: int) -> Row:
    """An object as COCO has it; without what cannot be read."""
    name = (node.findtext("name") or "").strip()
    row: dict[str, Any] = {
        "iscrowd": int(is_difficult(node)),
        "_where": f"{where} object {place}" + (f" '{name}'" if name not in classes else ""),
    }
    if name in classes:
        row["category_id"] = classes.index(name) + 1
    try:
        x1, y1, x2, y2 = read_box(node, Path(where))
    except UserError:
        return row
    return row | {"bbox": [x1, y1, x2 - x1, y2 - y1]}


def _side(tree: ElementTree.Element, key: str, path: Path) -> int | None:
    try:
        return whole(tree, f"size/{key}", path)
    except UserError:
        return None
