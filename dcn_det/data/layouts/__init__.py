"""Finding annotated images in a folder, and describing them as settings of a data format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dcn_det.data.layouts import coco, voc, yolo
from dcn_det.data.layouts.tree import Layout, Tree
from dcn_det.errors import UserError

FINDERS: dict[str, Callable[[Tree], Layout | None]] = {"coco": coco.find, "voc": voc.find, "yolo": yolo.find}
"""Functions that look for annotations of a format, by kind of data."""


def find_layouts(root: Path, kind: str = "auto") -> list[Layout]:
    """Returns what is annotated in a folder, in all formats, the one with the most images first.

    Args:
        root: the folder.
        kind: a format to look for, or ``auto`` for all of them.

    Raises:
        UserError: the folder does not exist, or nothing in it is annotated.
    """
    tree = Tree(root)
    found: list[Layout] = []
    problems: list[UserError] = []
    for name, find in FINDERS.items():
        if kind in ("auto", name):
            try:
                layout = find(tree)
            except UserError as error:
                problems.append(error)
            else:
                found += [layout] if layout is not None else []
    if not found:
        raise problems[0] if problems else _nothing(tree, kind)
    return sorted(found, key=lambda layout: -layout.images)


def _nothing(tree: Tree, kind: str) -> UserError:
    expected = {
        "coco": "JSON files with images, annotations and categories (COCO)",
        "voc": "XML files (Pascal VOC)",
        "yolo": "text files of YOLO labels",
    }
    names = list(expected.values()) if kind == "auto" else [expected[kind]]
    there = f"{len(tree.images)} images" if tree.images else "no images"
    return UserError(f"{tree.root}: {there}, but no annotations; looked for {', '.join(names)}")
