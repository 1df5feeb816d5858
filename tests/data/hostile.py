"""Seeded mutations of JSON-like documents: what exports, scripts and accidents do to annotation files."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e10, 1e308,
    float("nan"), float("inf"), "", " ", "0", "1", "cat", "x" * 300, "\x1b[31mred", "a\0b", "\ud800", "$\\frac{$",
    "../../etc/passwd", "/etc/passwd", "a\\..\\..\\b", "\u202egnp.jpg", [], {}, [1], [None], {"id": 1}, [[[[[]]]]],
    [1, 2, 3, 4], ["1", "2", "3", "4"], [1e308, 1e308, 1e308, 1e308], [5, 5, -3, 4], [0, 0, 0, 0],
)  # fmt: skip


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the places of all values inside a document."""
    found = [prefix] if prefix else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*prefix, key))
    return found


def _parent(document: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        document = document[key]
    return document


def _replace(document: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    _parent(document, place)[place[-1]] = copy.deepcopy(rng.choice(VALUES))


def _remove(document: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    del _parent(document, place)[place[-1]]


def _repeat(document: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    parent = _parent(document, place)
    if isinstance(parent, list):
        parent.append(copy.deepcopy(parent[place[-1]]))
    else:
        parent[f"{place[-1]}_"] = parent[place[-1]]


def _swap(document: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    other = rng.choice(paths(document))
    _parent(document, place)[place[-1]] = copy.deepcopy(_parent(document, other)[other[-1]])


def _as_text(document: Any, place: tuple[Any, ...], rng: random.Random) -> None:
    parent = _parent(document, place)
    value = parent[place[-1]]
    parent[place[-1]] = str(value) if isinstance(value, int | float) else [value]


MUTATIONS: tuple[Callable[[Any, tuple[Any, ...], random.Random], None], ...] = (
    _replace, _replace, _replace, _remove, _repeat, _swap, _as_text,
)  # fmt: skip


def mutated(document: Any, seed: int) -> Any:
    """Returns a copy of a document with one to three mutations."""
    rng = random.Random(seed)
    result = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = paths(result)
        if places:
            rng.choice(MUTATIONS)(result, rng.choice(places), rng)
    return result
