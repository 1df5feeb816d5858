"""COCO's JSON files in the places where tools write them.

``annotations/instances_train2017.json`` next to ``train2017/`` (COCO), ``train/_annotations.coco.json`` (Roboflow),
``annotations/instances_default.json`` and ``images/`` (CVAT), ``result.json`` and ``images/`` (Label Studio).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dcn_det.data.findings import first_few
from dcn_det.data.layouts.tree import Layout, Role, Tree, role_of
from dcn_det.errors import UserError
from dcn_det.files import read_bytes, read_json

_SAMPLE = 500
"""Image names that are looked for to find the folder of the images."""


@dataclass(frozen=True)
class _Document:
    """An annotation file: path, number of its images, and folder of the images."""

    path: str
    images: int
    folder: str

    @property
    def split(self) -> dict[str, Any]:
        return {"images": self.folder, "annotations": self.path}


def find(tree: Tree) -> Layout | None:
    """Returns the COCO annotations in a folder, or None.

    Raises:
        UserError: the images of none of the annotation files are in the folder.
    """
    documents, lost = [], []
    for path in tree.files(".json"):
        content = _content(tree, path)
        if content is None:
            continue
        names = [row["file_name"] for row in content["images"] if isinstance(row.get("file_name"), str)]
        folder = _image_folder(names, path, tree)
        if folder is None:
            lost.append(f"{path} (such as {first_few(names, 1)})")
            continue
        documents.append(_Document(path, len(content["images"]), folder))
    if not documents:
        if lost:
            raise UserError(f"{tree.root}: has none of the images listed in {first_few(lost, 2)}")
        return None
    return _layout(documents, lost)


def _layout(documents: Sequence[_Document], lost: Sequence[str]) -> Layout:
    splits: dict[Role, _Document] = {}
    for document in sorted(documents, key=_preference):
        role = role_of(document.path)
        if role is not None:
            splits.setdefault(role, document)
    whole = splits.get("train") or min(documents, key=_preference)
    used = list(splits.values()) if "train" in splits else [whole]
    unused = [each.path for each in documents if each not in used]
    notes = [f"COCO files that are not used: {first_few(unused)}"] if unused else []
    notes += [f"images not found, so not used: {first_few(lost)}"] if lost else []
    return Layout(
        kind="coco",
        what=f"COCO annotations: {first_few([each.path for each in used])}",
        images=sum(each.images for each in used),
        splits={role: each.split for role, each in splits.items()} if "train" in splits else {},
        whole=whole.split,
        notes=tuple(notes),
    )


def _preference(document: _Document) -> tuple[bool, int, str]:
    """Boxes of things before other kinds of annotations of the same images (keypoints), and complete files first."""
    return not PurePosixPath(document.path).name.startswith("instances"), -document.images, document.path


def _content(tree: Tree, path: str) -> Any:
    """Returns the content of a file of annotated boxes in COCO's format; None for any other file."""
    file = tree.root / path
    if not all(key in read_bytes(file) for key in (b'"images"', b'"annotations"', b'"categories"', b'"bbox"')):
        return None
    content = read_json(file)
    if not isinstance(content, dict):
        return None
    lists = [content.get(key) for key in ("images", "annotations", "categories")]
    if not all(isinstance(each, list) and each and isinstance(each[0], dict) for each in lists):
        return None
    return {**content, "images": [row for row in content["images"] if isinstance(row, dict)]}


def _image_folder(names: Sequence[str], path: str, tree: Tree) -> str | None:
    """Returns the folder to which image names are relative: the one in which most of them are; None if none is there.

    Of several, the one of the same split is preferred, then the one of the annotation file.
    """
    votes: Counter[str] = Counter()
    for name in names[:: max(1, len(names) // _SAMPLE)]:
        plain = PurePosixPath(name).as_posix()
        for image in tree.images_by_name.get(PurePosixPath(name).name, ()):
            if image == plain or image.endswith(f"/{plain}"):
                votes[image[: -len(plain)].rstrip("/") or "."] += 1
    own, role = PurePosixPath(path).parent.as_posix(), role_of(path)
    ranked = sorted(votes, key=lambda each: (-votes[each], role_of(each) != role, each != own, each))
    return ranked[0] if ranked else None
