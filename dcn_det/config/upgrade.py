"""Settings written for an earlier version of the schema, brought to the present one."""

from __future__ import annotations

from dcn_det.config.schema import VERSION
from dcn_det.config.source import Item, KeyPath

RENAMED: dict[str, str] = {}
"""Keys of version 1 by their dotted path, with their path in version 2."""


def upgrade(root: Item) -> Item:
    """Return the settings of a file or a checkpoint as the present version writes them.

    Settings of the present version, and those that state none, are returned as they are.
    """
    if not isinstance(root.value, dict) or "version" not in root.value or root.value["version"].value != 1:
        return root
    root = Item({**root.value, "version": Item(VERSION, root.value["version"].origin)}, root.origin)
    for old, new in RENAMED.items():
        root = _moved(root, tuple(old.split(".")), tuple(new.split(".")))
    for split in ("train", "test"):
        # One block had the keys of all data formats; those of others were null.
        for key in ("images", "annotations", "sets"):
            path = ("data", split, key)
            if _get(root, path) is not None and root.along(path)[-1].value is None:
                root = _without(root, path)
    return root


def _get(root: Item, path: KeyPath) -> Item | None:
    found = root.along(path)
    return found[-1] if len(found) > len(path) else None


def _moved(root: Item, old: KeyPath, new: KeyPath) -> Item:
    item = _get(root, old)
    return root if item is None else _with(_without(root, old), new, item)


def _without(item: Item, path: KeyPath) -> Item:
    assert isinstance(item.value, dict)
    value = dict(item.value)
    if len(path) == 1:
        del value[str(path[0])]
    else:
        value[str(path[0])] = _without(value[str(path[0])], path[1:])
    return Item(value, item.origin)


def _with(item: Item, path: KeyPath, new: Item) -> Item:
    if not path:
        return new
    value = dict(item.value) if isinstance(item.value, dict) else {}
    below = value.get(str(path[0]), Item({}, new.origin))
    return Item({**value, str(path[0]): _with(below, path[1:], new)}, item.origin)
