"""The files of a folder with annotated images, and the splits that names of files and folders stand for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dcn_det.errors import UserError
from dcn_det.images import SUFFIXES

Role = Literal["train", "val", "test"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "minival", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """Annotated images found in a folder, as settings of a data format.

    Attributes:
        kind: ``data.kind``.
        what: description of what was found.
        images: number of annotated images, to compare formats.
        splits: settings of each split that the files define.
        whole: settings of a split of all images; used if there are no splits.
        classes: class names by label; empty if the format reads them itself.
        extra: other keys of the section ``data``.
        notes: assumptions, one line each.
    """

    kind: str
    what: str
    images: int
    splits: dict[Role, dict[str, Any]]
    whole: dict[str, Any]
    classes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Tree:
    """Files below a folder, as sorted POSIX paths relative to it; hidden files and folders are left out.

    Args:
        root: the folder.

    Raises:
        UserError: it does not exist, or is not a folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder" if not root.exists() else f"{root}: not a folder")
        self.root = root
        self._by_suffix: dict[str, list[str]] = {}
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            base = Path(folder).relative_to(root)
            for name in sorted(files):
                if not name.startswith("."):
                    suffix = PurePosixPath(name).suffix.lower()
                    self._by_suffix.setdefault(suffix, []).append((base / name).as_posix())

    def files(self, *suffixes: str) -> list[str]:
        """Returns the files with one of these suffixes (in lower case), those of the outer folders first."""
        found = [path for suffix in suffixes for path in self._by_suffix.get(suffix, [])]
        return sorted(found, key=lambda path: (path.count("/"), path))

    @cached_property
    def images(self) -> list[str]:
        """All image files."""
        return sorted(self.files(*SUFFIXES))

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """Image files by their name without folders."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            found.setdefault(PurePosixPath(path).name, []).append(path)
        return found


def role_of(path: str) -> Role | None:
    """Returns the split that a relative path stands for: ``train`` for ``annotations/instances_train2017.json``.

    The name of the file decides, then that of the innermost folder.
    """
    for part in reversed(PurePosixPath(path).parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _ROLES:
                return _ROLES[word]
    return None


def by_role(paths: Iterable[str]) -> dict[Role, list[str]]:
    """Returns the paths that stand for splits, by split."""
    found: dict[Role, list[str]] = {}
    for path in paths:
        role = role_of(path)
        if role is not None:
            found.setdefault(role, []).append(path)
    return found


def folders_by_role(files: Sequence[str]) -> dict[Role, list[str]]:
    """Returns the folders that stand for splits, if every file is in one.

    A folder is the part of the path up to the name of the split, as ``images/train`` of ``images/train/a/1.jpg``.
    """
    found: dict[Role, dict[str, None]] = {}
    for file in files:
        parts = PurePosixPath(file).parts[:-1]
        ends = [(place, role) for place, part in enumerate(parts, start=1) if (role := role_of(part)) is not None]
        if not ends:
            return {}
        place, role = ends[-1]
        found.setdefault(role, {})["/".join(parts[:place])] = None
    return {role: list(folders) for role, folders in found.items()}


def single(values: Sequence[str]) -> str | list[str]:
    """Returns the only value of a list, or the list."""
    return values[0] if len(values) == 1 else list(values)
