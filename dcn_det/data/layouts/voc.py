"""Pascal VOC's XML files in the places where tools write them.

``VOC2007/{Annotations,ImageSets/Main,JPEGImages}`` (Pascal VOC, CVAT), ``train/*.xml`` next to images (Roboflow), or
any folders of XML files and images (LabelImg), with or without text files that list the images of each split.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from dcn_det.data.formats.voc_files import set_names
from dcn_det.data.layouts.tree import Layout, Role, Tree, folders_by_role, role_of
from dcn_det.errors import UserError
from dcn_det.files import read_text, read_xml

_ANNOTATIONS, _IMAGES, _SETS = "Annotations", "JPEGImages", "ImageSets/Main"


def find(tree: Tree) -> Layout | None:
    """Returns the VOC annotations in a folder, or None."""
    found = _Contents(tree)
    if not found.files:
        return None
    splits = _kit_sets(tree, found) or _listed(tree, found) or _folders(found)
    from_zero = found.below_one > 0 or found.fractions > found.boxes / 2
    corners = "half_open" if from_zero else "inclusive"
    why = f"{found.below_one} boxes begin below 1, {found.fractions} of {found.boxes} have decimal points"
    return Layout(
        kind="voc",
        what=f"{len(found.files)} XML files of Pascal VOC",
        images=len(found.files),
        splits=splits if "train" in splits else {},
        whole={"folder": found.folder},
        classes=tuple(sorted(found.classes)),
        extra={"corners": corners},
        notes=(f"corners {corners}: {why}",),
    )


@dataclass
class _Contents:
    """The annotation files of a folder.

    Attributes:
        files: their paths.
        names: image names, without suffix.
        classes: number of objects by class name.
        boxes, below_one, fractions: numbers of boxes, of those whose corners cannot be pixels counted from 1, and of
            those with decimal points. Pascal VOC itself has a few of the latter.
    """

    tree: Tree
    files: list[str] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    boxes: int = 0
    below_one: int = 0
    fractions: int = 0

    def __post_init__(self) -> None:
        paths = self.tree.files(".xml")
        with ThreadPoolExecutor(8) as pool:
            roots = pool.map(self._root, paths)
        for path, root in zip(paths, roots):
            if root is not None and root.tag == "annotation":
                self.files.append(path)
                self._add(root)
        self.names = {PurePosixPath(path).stem for path in self.files}
        self.names |= set(set_names(sorted(self.names)))
        folders = {PurePosixPath(path).parts[0] if "/" in path else "." for path in self.files}
        self.folder = folders.pop() if len(folders) == 1 else "."

    def _root(self, path: str) -> ElementTree.Element | None:
        try:
            return read_xml(self.tree.root / path)
        except UserError:
            return None

    def _add(self, root: ElementTree.Element) -> None:
        for node in root.iterfind("object"):
            name = (node.findtext("name") or "").strip()
            if name:
                self.classes[name] += 1
            corners = [node.findtext(f"bndbox/{key}") or "" for key in ("xmin", "ymin")]
            try:
                values = [float(corner) for corner in corners]
            except ValueError:
                continue
            self.boxes += 1
            self.below_one += min(values) < 1
            self.fractions += any("." in corner for corner in corners)


def _kit_sets(tree: Tree, found: _Contents) -> dict[Role, dict[str, Any]]:
    """Returns the splits that image sets in VOC's layout define, of one year or several."""
    bases = sorted({path.split(f"{_ANNOTATIONS}/")[0] for path in found.files if f"{_ANNOTATIONS}/" in path})
    sets: dict[Role, list[str]] = {}
    for base in bases:
        images = f"{base}{_IMAGES}/"
        kit = any(image.startswith(images) for image in tree.images)
        here: dict[Role, list[str]] = {}
        for path in tree.files(".txt") if kit else ():
            name = PurePosixPath(path).stem.lower()
            role = role_of(name)
            if path.startswith(f"{base}{_SETS}/") and role and name.isalpha() and _names(tree, path) & found.names:
                here.setdefault(role, []).append(path)
        for role, paths in here.items():
            # With a file for validation, trainval contains its images.
            rest = [path for path in paths if "trainval" not in path] if "val" in here else paths
            both = [path for path in paths if "trainval" in path]
            chosen = (both if role == "train" and "val" not in here and both else rest) or paths
            sets.setdefault(role, []).append(chosen[0])
    return _without_repeats(tree, {role: {"sets": paths} for role, paths in sets.items()})


def _listed(tree: Tree, found: _Contents) -> dict[Role, dict[str, Any]]:
    """Returns the splits that text files anywhere define, which list images of the XML files."""
    sets: dict[Role, list[str]] = {}
    for path in tree.files(".txt"):
        role = role_of(PurePosixPath(path).name)
        names = _names(tree, path) if role else set()
        if role and names and len(names & found.names) > len(names) / 2:
            sets.setdefault(role, []).append(path)
    return _without_repeats(tree, {role: {"folder": found.folder, "sets": paths[:1]} for role, paths in sets.items()})


def _folders(found: _Contents) -> dict[Role, dict[str, Any]]:
    folders = folders_by_role(found.files)
    return {role: {"folder": places[0]} for role, places in folders.items() if len(places) == 1}


def _names(tree: Tree, path: str) -> set[str]:
    try:
        return set(set_names(read_text(tree.root / path).splitlines()))
    except UserError:
        return set()


def _without_repeats(tree: Tree, splits: dict[Role, dict[str, Any]]) -> dict[Role, dict[str, Any]]:
    """Leaves the images of the training split out of the others that list some of them."""
    if "train" not in splits:
        return splits
    trained = splits["train"]["sets"]
    known = set().union(*(_names(tree, path) for path in trained))
    for role, split in splits.items():
        if role != "train" and any(known & _names(tree, path) for path in split["sets"]):
            split["without"] = trained
    return splits
