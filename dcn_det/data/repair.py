"""Repairs of COCO annotation files that need no guessing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcn_det.data.rules import is_id


def repaired(document: Any) -> Any:
    """Returns the content of a COCO annotation file with values of the right types.

    Ids written as text or decimals become integers: the same numbers if they stay unique, new numbers otherwise.
    Numbers written as text become numbers, and class names written as numbers become text. Annotations are numbered
    from 1. Other values are returned unchanged.

    Args:
        document: content of the file; not modified.
    """
    if not isinstance(document, dict):
        return document
    result = dict(document)
    for section in ("images", "categories", "annotations"):
        if isinstance(result.get(section), list):
            result[section] = [dict(row) if isinstance(row, dict) else row for row in result[section]]
    _repair_ids(result, "images", "image_id")
    _repair_ids(result, "categories", "category_id")
    _convert(result, "images", {"height": _integer, "width": _integer})
    _convert(result, "categories", {"name": _text})
    _convert(result, "annotations", {"bbox": _box, "iscrowd": _integer, "area": _number})
    for number, row in enumerate(_dicts(result, "annotations"), start=1):
        row["id"] = number
    return result


def _dicts(document: dict[str, Any], section: str) -> list[dict[str, Any]]:
    rows = document.get(section)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _repair_ids(document: dict[str, Any], section: str, reference: str) -> None:
    rows = _dicts(document, section)
    if all(is_id(row.get("id")) for row in rows):
        known: dict[str, int] = {str(row["id"]): row["id"] for row in rows}
    else:
        keys = [_key(row.get("id")) for row in rows]
        numbers = [_integer(key) for key in keys]
        kept = all(is_id(number) for number in numbers) and len(set(numbers)) == len(set(keys))
        known = {}
        for key, number in zip(keys, numbers):
            if key is not None:
                known.setdefault(key, number if kept else len(known) + 1)
        for row, key in zip(rows, keys):
            if key is not None:
                row["id"] = known[key]
    for row in _dicts(document, "annotations"):
        if not is_id(row.get(reference)) or row[reference] not in known.values():
            row[reference] = known.get(_key(row.get(reference)) or "", row.get(reference))


def _key(value: object) -> str | None:
    """Returns an id as text: the same for an integer, the equal decimal and the equal text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    return str(value) if is_id(value) else None


def _convert(document: dict[str, Any], section: str, rules: dict[str, Callable[[Any], Any]]) -> None:
    for row in _dicts(document, section):
        for key, rule in rules.items():
            if key in row:
                row[key] = rule(row[key])


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _integer(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = _number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> Any:
    return str(value) if is_id(value) or isinstance(value, float) else value


def _box(value: Any) -> Any:
    return [_number(side) for side in value] if isinstance(value, list) else value
