"""YOLO's text files in the places where tools write them.

``data.yaml`` with ``train/images`` and ``train/labels`` (Roboflow) or ``images/train`` and ``labels/train``
(Ultralytics, CVAT), ``obj.names`` and lists of images (darknet, CVAT), ``classes.txt`` with ``images`` and ``labels``
(Label Studio), or ``classes.txt`` and text files next to the images (LabelImg).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dcn_det.data.formats.yolo import NAMES, label_path, locate, read_description
from dcn_det.data.layouts.tree import Layout, Role, Tree, by_role, folders_by_role, role_of, single
from dcn_det.errors import UserError
from dcn_det.files import read_text

OTHER_NAMES = ("predefined_classes.txt", "labels.txt", "_darknet.labels")
"""Files of class names in addition to ``NAMES``."""
_KEYS: dict[Role, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_LOOKED_AT = 20
"""Label files that are read to tell YOLO's from other text files."""


def find(tree: Tree) -> Layout | None:
    """Returns the YOLO labels in a folder, or None.

    Raises:
        UserError: there are labels, but no class names.
    """
    labelled = [image for image in tree.images if label_path(tree.root / image).is_file()]
    if not labelled or not any(_is_label(label_path(tree.root / image)) for image in labelled[:_LOOKED_AT]):
        return None
    names = _names_file(tree)
    if names is None:
        raise UserError(
            f"{tree.root}: YOLO labels of {len(labelled)} images, but no class names; write them into classes.txt, "
            "one per line, in the order of their ids"
        )
    splits = _described(tree, names) or _lists(tree) or folders_by_role(labelled)
    place = os.path.commonpath([PurePosixPath(image).parent for image in labelled]) or "."
    return Layout(
        kind="yolo",
        what=f"YOLO labels of {len(labelled)} images, class names in {names}",
        images=len(labelled),
        splits={role: {"images": single(places)} for role, places in splits.items()} if "train" in splits else {},
        whole={"images": single(sorted({p for each in splits.values() for p in each}) if splits else [place])},
        extra={} if names in NAMES else {"names": names},
    )


def _is_label(path: Path) -> bool:
    """Whether the first line of a text file consists of the numbers of an object."""
    try:
        line = next((each for each in read_text(path).splitlines() if each.strip()), "")
        return len([float(word) for word in line.split()]) >= 5
    except (UserError, ValueError):
        return False


def _names_file(tree: Tree) -> str | None:
    """Returns the file of class names: a description first, then lists, in the outermost folder that has one."""
    for path in tree.files(".yaml", ".yml"):
        try:
            if "names" in read_description(tree.root / path):
                return path
        except UserError:  # another YAML file
            continue
    lists = [path for path in tree.files(".txt", ".names", ".labels") if _lists_names(PurePosixPath(path).name)]
    return lists[0] if lists else None


def _lists_names(name: str) -> bool:
    return name in NAMES or name in OTHER_NAMES or name.endswith(".names")


def _described(tree: Tree, names: str) -> dict[Role, list[str]]:
    """Returns the places of images that a description names, as far as they exist."""
    if not names.endswith((".yaml", ".yml")):
        return {}
    path = tree.root / names
    description = read_description(path)
    base = description.get("path")
    folders = [path.parent / base] if isinstance(base, str) else []
    folders += [path.parent, tree.root]
    found: dict[Role, list[str]] = {}
    for role, keys in _KEYS.items():
        places: Any = next((description[key] for key in keys if description.get(key)), [])
        located = [_place(each, folders, tree) for each in (places if isinstance(places, list) else [places])]
        if located and all(located):
            found[role] = [each for each in located if each is not None]
    if found.get("train") == found.get("val"):  # as in small examples, which train and test on the same images
        found.pop("val", None)
    return found


def _place(place: Any, folders: Sequence[Path], tree: Tree) -> str | None:
    found = locate(place, *folders) if isinstance(place, str) else None
    if found is None or found == tree.root:
        return None
    relative = os.path.relpath(found, tree.root)
    return None if relative.startswith("..") else Path(relative).as_posix()


def _lists(tree: Tree) -> dict[Role, list[str]]:
    """Returns the text files that list the images of splits."""
    found = by_role(
        path for path in tree.files(".txt") if role_of(PurePosixPath(path).name) and _lists_images(tree, path)
    )
    return {role: paths[:1] for role, paths in found.items()}


def _lists_images(tree: Tree, path: str) -> bool:
    try:
        line = next((each.strip() for each in read_text(tree.root / path).splitlines() if each.strip()), "")
    except UserError:
        return False
    file = tree.root / path
    return PurePosixPath(line).name in tree.images_by_name and locate(line, file.parent, tree.root) is not None
