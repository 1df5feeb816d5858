"""Conversion of settings from earlier versions of the schema."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from dcn_det.config.layouts import TORCHVISION, contradictions
from dcn_det.config.run import VERSION
from dcn_det.config.source import Item, KeyPath, with_origin

RENAMED: dict[str, str] = {}
"""Dotted keys of version 1 -> those of version 2."""

_DEFORM = ("model", "backbone", "deform")


def upgrade(root: Item, *, stored: bool = False) -> Item:
    """Returns settings in the form of the present version.

    Args:
        root: settings of a file or a checkpoint; returned unchanged if they are of the present version, or of none.
        stored: whether a network was built from these settings, which are then complete. Version 1 only warned about
            layouts that contradict ``weights: torchvision``; such a network keeps its layout, and its ``weights``
            become ``none``. Masks without a ``mask_scale`` had a factor of 1.
    """
    if not isinstance(root.value, dict) or "version" not in root.value:
        return root
    if root.value["version"].value == 1:
        root = _of_version_1(root, stored)
    return _with_mask_scale(root) if stored else root


def _of_version_1(root: Item, stored: bool) -> Item:
    assert isinstance(root.value, dict)
    root = Item({**root.value, "version": Item(VERSION, root.value["version"].origin)}, root.origin)
    for old, new in RENAMED.items():
        root = _moved(root, tuple(old.split(".")), tuple(new.split(".")))
    # One block had the keys of all data formats; those of the others were null.
    for path in itertools.product(("data",), ("train", "test"), ("images", "annotations", "sets")):
        if _plain(root, path) is None and _get(root, path) is not None:
            root = _without(root, path)
    if stored:
        root = _without_claim(root)
    return root


def _with_mask_scale(root: Item) -> Item:
    path = (*_DEFORM, "mask_scale")
    if _plain(root, (*_DEFORM, "kind")) != "v2" or _get(root, path) is not None:
        return root
    return _with(root, path, Item(1.0, root.origin))


def upgrade_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings stored with weights (by ``to_plain``) in the form of the present version."""
    upgraded: Any = upgrade(with_origin(plain, ""), stored=True).plain()
    return {**upgraded}


def _without_claim(root: Item) -> Item:
    weights, kind = (_plain(root, ("model", "backbone", key)) for key in ("weights", "kind"))
    given = {key: _plain(root, ("model", "backbone", *key.split("."))) for key in TORCHVISION}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    if not contradictions(weights, kind, {key: value for key, value in given.items() if value is not None}):
        return root
    return _with(root, ("model", "backbone", "weights"), Item("none", root.origin))


def _get(root: Item, path: KeyPath) -> Item | None:
    found = root.along(path)
    return found[-1] if len(found) > len(path) else None


def _plain(root: Item, path: KeyPath) -> object:
    item = _get(root, path)
    return None if item is None else item.plain()


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
