"""The reference of all keys of configs, from the settings sections and their docstrings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dcn_det.config.problems import describe, form_of
from dcn_det.config.section import Section
from dcn_det.config.show import flow
from dcn_det.config.tasks import SCHEMAS

INTRODUCTION = """\
# All keys of configs

Made by `dcn-det config reference --write` from `dcn_det/config/`; `dcn-det config reference KEY` prints one part.
[README.md](README.md) says where the values of the configs come from.

A block whose keys depend on its `kind` has one table for all kinds; rows that hold for some of them begin with these.
*required* keys have no default. Lengths are in pixels, times in seconds; shares and metrics are fractions of 1.
"""

TASKS = {"Config": "detection", "ClassificationConfig": "classification", "SegmentationConfig": "segmentation"}
"""Names of the tasks by the class of their settings."""


@dataclass(frozen=True)
class Key:
    """A key of a block, as it is described."""

    name: str
    allowed: str
    default: str
    meaning: str


@dataclass
class Block:
    """The keys at one place of configs.

    Args:
        labels: kinds of the block, or of the innermost block around it that has kinds, or tasks.
        has_kinds: whether they are its own kinds.
        about: what the classes of the block say, with the labels for which they say it.
        keys: with the labels for which they are so.
        seen: classes that were added, with their labels.
    """

    labels: list[str] = field(default_factory=list)
    has_kinds: bool = False
    about: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[Key, list[str]] = field(default_factory=dict)
    seen: set[tuple[type[Section], tuple[str, ...]]] = field(default_factory=set)


def blocks() -> dict[str, Block]:
    """Returns all blocks by dotted key, in the order of configs; the outermost one is at an empty key."""
    found: dict[str, Block] = {}
    for schema in SCHEMAS:
        _collect(found, "", schema, TASKS[schema.__name__])
    return found


def reference(prefix: str = "") -> str:
    """Returns the reference in Markdown.

    Args:
        prefix: dotted key; only its block, the blocks below it and the row of the key itself are described. Empty: all.

    Raises:
        KeyError: there is no such key.
    """
    every = blocks()
    if not prefix:
        return "\n".join([INTRODUCTION, *(_text(path, block) for path, block in every.items())])
    texts = [_text(path, block) for path, block in every.items() if path == prefix or path.startswith(f"{prefix}.")]
    if not texts:
        outer, _, name = prefix.rpartition(".")
        block = every[outer]
        keys = {key: labels for key, labels in block.keys.items() if key.name == name}
        if not keys:
            raise KeyError(prefix)
        texts = [_text(outer, Block(block.labels, keys=keys))]
    return "\n".join(texts)


def words_by_key() -> dict[str, list[str]]:
    """Returns all keys that are not blocks by dotted name, without those in lists of blocks, and the values of those
    that allow only some words; the others have none."""
    every, found = blocks(), {}
    for path, block in every.items():
        kinds = {"kind": block.labels} if block.has_kinds else {}
        names = dict.fromkeys(key.name for key in block.keys)
        for name, words in (kinds | {name: _words(block, name) for name in names}).items():
            dotted = f"{path}.{name}".lstrip(".")
            if dotted not in every and "[" not in dotted:
                found[dotted] = words
    return found


def _words(block: Block, name: str) -> list[str]:
    texts = [text for key in block.keys if key.name == name for text in re.split(r", or |, | or ", key.allowed)]
    return list(dict.fromkeys(texts)) if all(re.fullmatch(r"[\w-]+", text) for text in texts) else []


def _collect(found: dict[str, Block], path: str, section: type[Section], *labels: str) -> None:
    """Adds a section at a place, and those below it."""
    block = found.setdefault(path, Block())
    if (section, labels) in block.seen:
        return
    block.seen.add((section, labels))
    _add(block.labels, labels)
    if about := _about(section):
        _add(block.about.setdefault(about, []), labels)
    for name, info in section.model_fields.items():
        below = f"{path}.{name}".lstrip(".")
        if name != "kind" or not block.has_kinds:
            _add(block.keys.setdefault(_key(section, below, info), []), labels)
        if variants := section.variants(name):
            found.setdefault(below, Block(has_kinds=True))
            for inner in dict.fromkeys(variants.values()):
                _collect(found, below, inner, *(kind for kind, each in variants.items() if each is inner))
        elif inner_section := _inner(info.annotation):
            is_list, kinds = _is_list(info.annotation), _only_kind(inner_section) or labels
            _collect(found, f"{below}[]" if is_list else below, inner_section, *kinds)


def _only_kind(section: type[Section]) -> tuple[str, ...]:
    """Returns the kind of a block that has one only, such as the model of a task."""
    info = section.model_fields.get("kind")
    kinds = get_args(info.annotation) if info and get_origin(info.annotation) is Literal else ()
    return kinds if len(kinds) == 1 else ()


def _add(known: list[str], labels: tuple[str, ...]) -> None:
    known += [label for label in labels if label not in known]


def _inner(form: Any) -> type[Section] | None:
    """Returns the section among the types of a value or of the elements of a list."""
    if get_origin(form) in (Union, UnionType, tuple, Annotated):
        return next((inner for each in get_args(form) if (inner := _inner(each))), None)
    return form if isinstance(form, type) and not get_origin(form) and issubclass(form, Section) else None


def _is_list(form: Any) -> bool:
    if get_origin(form) in (Union, UnionType, Annotated):
        return any(_is_list(each) for each in get_args(form))
    return get_origin(form) is tuple


def _about(section: type[Section]) -> str:
    """Returns what a class says about itself, or the nearest class from which it inherits."""
    documented = next((each for each in section.__mro__ if each.__doc__ and each is not Section), Section)
    return "" if documented is Section or not issubclass(documented, Section) else _markdown(documented.__doc__ or "")


def _key(section: type[Section], path: str, info: FieldInfo) -> Key:
    name, inner = path.rpartition(".")[2], _inner(info.annotation)
    if section.variants(name) or (inner and not _is_list(info.annotation)):
        null = ", or null" if NoneType in get_args(info.annotation) else ""
        allowed = f"a [block](#{path.replace('.', '')}){null}"
    else:
        allowed = re.sub(r"(?<= matching )\S+", r"`\g<0>`", describe(form_of(info)))
    return Key(name, allowed, _default(section, name, info), _markdown(info.description or ""))


def _default(section: type[Section], name: str, info: FieldInfo) -> str:
    if info.is_required():
        return "*required*"
    default = info.default
    if isinstance(default, Section):
        values = default.model_dump(mode="json", exclude_defaults=True)
        if section.variants(name):
            values = {"kind": getattr(default, "kind", ""), **values}
        return f"`{flow(values)}`" if values else ""
    return f"`{flow(list(default) if isinstance(default, tuple) else default)}`"


def _markdown(text: str) -> str:
    """Returns a docstring on one line: reStructuredText's literals and roles become those of Markdown."""
    text = " ".join(cleandoc(text).split())
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")


def _text(path: str, block: Block) -> str:
    """Returns the heading, the description and the table of a block."""
    lines = [f"## `{path}`" if path else "## Top level", ""]
    for about, labels in block.about.items():
        lines += [f"{_of(labels, block.labels)}{about}", ""]
    lines += ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    if block.has_kinds:
        lines += [f"| `kind` | {', '.join(block.labels)} | | Kind of the block, on which its other keys depend. |"]
    lines += [_row(key, _of(labels, block.labels)) for key, labels in _sorted(block)]
    return "\n".join([*lines, ""])


def _sorted(block: Block) -> Iterator[tuple[Key, list[str]]]:
    """Yields the keys with variants of the same name next to each other."""
    for name in dict.fromkeys(key.name for key in block.keys):
        yield from ((key, labels) for key, labels in block.keys.items() if key.name == name)


def _of(labels: list[str], every: list[str]) -> str:
    """Returns the labels for which something holds, and a colon; nothing if it holds for all of them."""
    missing = [label for label in every if label not in labels]
    if not missing:
        return ""
    if len(missing) < min(3, len(labels)):
        return f"all but {', '.join(f'`{label}`' for label in missing)}: "
    return f"{', '.join(f'`{label}`' for label in labels)}: "


def _row(key: Key, labels: str) -> str:
    meaning = f"{labels}{key.meaning}".removesuffix(": ")
    cells = (f"`{key.name}`", key.allowed, key.default, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
