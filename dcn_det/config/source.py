"""Settings as written: values with their origins, read from YAML and merged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from dcn_det.config.section import Section
from dcn_det.errors import UserError

Scalar = str | int | float | bool | None
KeyPath = tuple[str | int, ...]

OVERRIDE = "override"
DEFAULT = "default"

DEEPEST = 50
"""Parts of a dotted key; settings have at most six."""

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Item:
    """A value and its origin: ``FILE:LINE``, ``override`` or ``default``."""

    value: Scalar | dict[str, Item] | list[Item]
    origin: str

    def plain(self) -> object:
        """Returns the value without origins."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def along(self, path: KeyPath) -> list[Item]:
        """Returns this item and those on ``path`` below it, as far as they exist."""
        found = [self]
        for part in path:
            value = found[-1].value
            if isinstance(value, dict) and part in value:
                found.append(value[str(part)])
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                found.append(value[part])
            else:
                break
        return found


class _Loader(yaml.SafeLoader):
    """Loads the core types of YAML 1.2: ``1e-3`` is a number; ``yes``, ``1:30`` and ``2017-01-01`` are strings."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            what = "aliases are not supported: repeat the value, or put it into a file named by 'base'"
            raise yaml.composer.ComposerError(None, None, what, self.peek_event().start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Quotes strings that ``_Loader`` or a YAML 1.1 reader would not read as strings."""


_FLOAT = (
    _TAG + "float",
    re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+.0123456789"),
)
_Loader.yaml_implicit_resolvers = {}
for _resolver in (
    (_TAG + "null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_TAG + "int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    _FLOAT,
):
    _Loader.add_implicit_resolver(*_resolver)
Dumper.add_implicit_resolver(*_FLOAT)


def label(path: Path) -> str:
    """Returns the name of a file in messages: relative to the working directory if it is below it."""
    full = Path(os.path.normpath(Path.cwd() / path))
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def parse(text: str, source: str, *, override: bool = False) -> Item:
    """Reads one YAML document.

    Args:
        text: the document; an empty one is null.
        source: its name in messages: a file, or the override in quotes.
        override: the origin of every value is ``override`` instead of ``source:line``.

    Raises:
        UserError: the text is not YAML, a key is given twice or is not a string, or there are aliases or tags.
    """
    reader = _Reader(source, override)
    try:
        node = _Loader(text).get_single_node()
        return reader.read(node, 1) if node else Item(None, reader.origin(1))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it ends too early"
        raise UserError(f"{reader.where(mark.line + 1 if mark else 1)}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        where = reader.where(text.count("\n", 0, error.position) + 1)
        raise UserError(f"{where}: not valid YAML: the character {error.character:#x}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns the nodes of one document into items."""

    source: str
    override: bool

    def origin(self, line: int) -> str:
        return OVERRIDE if self.override else f"{self.source}:{line}"

    def where(self, line: int) -> str:
        """Returns the beginning of a message."""
        return self.source if self.override else f"{self.source}:{line}"

    def read(self, node: yaml.Node, line: int) -> Item:
        """Returns the item of a node; ``line`` is that of the value's key, to which messages refer."""
        origin = self.origin(line)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Item(self._mapping(node), origin)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Item([self.read(child, _line(child)) for child in node.value], origin)
        if isinstance(node, yaml.ScalarNode):
            return Item(self._scalar(node), origin)
        raise self._error(node, f"the tag '{node.tag}' is not supported: write plain values")

    def _error(self, node: yaml.Node, message: str) -> UserError:
        return UserError(f"{self.where(_line(node))}: {message}")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Item]:
        items: dict[str, Item] = {}
        for key_node, value_node in node.value:
            if key_node.tag != _TAG + "str":
                raise self._error(key_node, "a key must be a word; put it in quotes if it is meant as one")
            key = str(key_node.value)
            if key in items:
                raise self._error(key_node, f"the key '{key}' is given twice (first: {items[key].origin})")
            items[key] = self.read(value_node, _line(key_node))
        return items

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            raise self._error(node, f"'{text[:40]}' cannot be read as {kind}") from None
        raise self._error(node, f"the tag '{node.tag}' is not supported: write plain values")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def parse_overrides(overrides: Iterable[str | Mapping[str, Any]]) -> Item:
    """Reads settings in either form into one block; later ones take precedence.

    Args:
        overrides: texts ``key=value``, with a dotted key and a value in YAML, or mappings from keys, dotted or not, to
            plain values or mappings.

    Raises:
        UserError: there is no ``=``, a key is empty or not a string, or a value is not YAML.
    """
    root = Item({}, OVERRIDE)
    for override in overrides:
        if isinstance(override, str):
            key, equals, value = override.partition("=")
            if not equals or not all(key.strip().split(".")) or key.count(".") >= DEEPEST:
                raise UserError(f"override '{override}': expected key=value, such as train.batch_size=2")
            item = _nested(key, parse(value, f"override '{override}'", override=True), OVERRIDE)
        else:
            item = from_mapping(override, OVERRIDE)
        root = merge(root, item, None)
    return root


def from_mapping(settings: Mapping[str, Any], origin: str) -> Item:
    """Returns a block of plain values by key, dotted or nested; later ones take precedence.

    Raises:
        UserError: a key is empty or not a string.
    """
    root = Item({}, origin)
    for key, value in settings.items():
        item = from_mapping(value, origin) if isinstance(value, Mapping) else with_origin(value, origin)
        root = merge(root, _nested(key, item, origin), None)
    return root


def _nested(key: str, item: Item, origin: str) -> Item:
    """Returns the block with ``item`` at a dotted key."""
    parts = key.strip().split(".") if isinstance(key, str) else [""]
    if not all(parts) or len(parts) > DEEPEST:
        raise UserError(f"{origin}: wrong key '{key}'; allowed: dotted keys such as train.batch_size")
    for part in reversed(parts):
        item = Item({part: item}, origin)
    return item


def with_origin(plain: Any, origin: str) -> Item:
    """Returns plain containers and values as items of one origin; paths become strings."""
    if isinstance(plain, dict):
        return Item({str(key): with_origin(value, origin) for key, value in plain.items()}, origin)
    if isinstance(plain, list | tuple):
        return Item([with_origin(value, origin) for value in plain], origin)
    return Item(os.fspath(plain) if isinstance(plain, os.PathLike) else plain, origin)


def merge(lower: Item, upper: Item, section: type[Section] | None) -> Item:
    """Lays ``upper`` over ``lower``: blocks merge by key, everything else is replaced.

    Two rules discard inherited keys that no longer apply. If a block has kinds with their own keys (such as
    ``train.optimizer``), another ``kind`` discards all keys except for those that both kinds inherit from a common
    section and those that its class declares ``lasting``. If a block has alternatives (``train.iterations`` or
    ``train.epochs``), giving one discards the inherited other.

    Args:
        lower, upper: the settings.
        section: class of the block; None if unknown.
    """
    if not isinstance(lower.value, dict) or not isinstance(upper.value, dict):
        return upper
    merged = dict(lower.value)
    for group in section.alternatives if section else ():
        if any(key in upper.value and upper.value[key].value is not None for key in group):
            for key in group:
                merged.pop(key, None)
    for key, item in upper.value.items():
        if key in merged:
            below = _lasting(section, key, item, merged[key])
            item = merge(below, item, _section_at(section, key, merged[key], item))
        merged[key] = item
    return Item(merged, upper.origin)


def kind_of(item: Item) -> Scalar | dict[str, Item] | list[Item]:
    """Returns the ``kind`` that a block gives, or ``None``."""
    return item.value["kind"].value if isinstance(item.value, dict) and "kind" in item.value else None


def _lasting(section: type[Section] | None, key: str, upper: Item, lower: Item) -> Item:
    """Returns the part of the lower block ``key`` to keep: all, unless the upper one has another kind."""
    variants = section.variants(key) if section else {}
    if section is None or not variants or kind_of(upper) in (None, kind_of(lower) or section.default_kind(key)):
        return lower
    old, new = (variants.get(str(kind_of(item) or section.default_kind(key))) for item in (lower, upper))
    if new is None or not isinstance(lower.value, dict):
        return upper
    lasting = [name for name in new.lasting if name in new.model_fields]
    if old is not None:
        lasting += [name for name in new.model_fields if name != "kind" and new.inherits(name, old)]
    return Item({name: value for name, value in lower.value.items() if name in lasting}, lower.origin)


def _section_at(section: type[Section] | None, key: str, lower: Item, upper: Item) -> type[Section] | None:
    """Returns the class of the block ``key`` of ``section`` after ``upper`` is laid over ``lower``."""
    if section is None or key not in section.model_fields:
        return None
    if variants := section.variants(key):
        return variants.get(str(kind_of(upper) or kind_of(lower) or section.default_kind(key)))
    annotation = section.model_fields[key].annotation
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((m for m in members if isinstance(m, type) and issubclass(m, Section)), None)
