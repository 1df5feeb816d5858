"""Reading YAML files and overrides into a ``Config`` that knows the origin of every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dcn_det.config.imports import import_modules
from dcn_det.config.problems import user_error
from dcn_det.config.run import RunConfig
from dcn_det.config.schema import Config
from dcn_det.config.section import unusable
from dcn_det.config.source import (
    DEFAULT,
    OVERRIDE,
    Item,
    KeyPath,
    from_mapping,
    label,
    merge,
    parse,
    parse_overrides,
    with_origin,
)
from dcn_det.config.upgrade import upgrade
from dcn_det.errors import UserError, did_you_mean

NOT_INHERITED = ("name", "expected")
"""Keys that describe a single file: a config based on it is another experiment with other results."""

LARGEST = 4 << 20
"""Bytes of a config file."""
DEEPEST = 50
"""Files that are based on each other in a chain."""

C = TypeVar("C", bound=RunConfig)

_Known = dict[Path, Item]

OVERLAY = "overlay"
"""The override that names a file to lay over the config, instead of a setting."""


def load_config(path: str | Path, *overrides: str | Mapping[str, Any]) -> Config:
    """Reads settings from a YAML file, the files it is based on, and overrides.

    A file may name others under ``base:``, one path or a list, relative to itself. They are laid over each
    other in that order, and the file over them:

    * Blocks merge by key; lists and single values replace.
    * Another ``kind`` for a block discards its other keys, except for keys that both kinds inherit from a common
      section, such as ``data.resize``; a model of another kind also keeps its RPN.
    * ``train.epochs`` replaces an inherited ``train.iterations``, and vice versa.
    * ``imports`` add up: the modules of the bases, then those of the file.
    * ``name`` and ``expected`` are not inherited; the default of ``name`` is the file's stem.

    Args:
        path: the YAML file.
        overrides: settings laid over the file, the last one on top. Either ``key=value``, with a dotted key and a value
            in YAML, such as ``train.optimizer.lr=1e-3``, or a mapping from such keys, or nested ones, to plain values.
            The key ``overlay`` names a file to lay over the first one, such as another schedule; single settings
            go over all files.

    Returns:
        The settings; their ``origins`` tell where each was set.

    Raises:
        UserError: a file cannot be read or is not a YAML mapping, bases form a cycle, a module cannot be imported, an
            override is malformed, or values are wrong. All wrong values are reported, one line each.
    """
    return load_as(Config, path, *overrides)


def load_as(schema: type[C], path: str | Path, *overrides: str | Mapping[str, Any]) -> C:
    """Like :func:`load_config`, for the settings of any task: ``schema`` is their class."""
    root = read_as(schema, path, *overrides)
    assert isinstance(root.value, dict)
    name = root.value.get("name")
    if name is None or name.value == "":
        root.value["name"] = Item(Path(path).stem, DEFAULT)
    return _validate(root, schema)


def read_as(schema: type[RunConfig], path: str | Path, *overrides: str | Mapping[str, Any]) -> Item:
    """Returns settings as they are written, merged as :func:`load_config` says, without checking their values."""
    path = Path(path)
    files, values = _split(overrides)
    known: _Known = {}
    root = _read(path, (), known, schema)
    for file in files:
        over = _read(file, (), known, schema)
        root = _lay(root, Item(_without_own(over), over.origin), schema)
    return _lay(root, parse_overrides(values), schema, Path.cwd())


def _split(
    overrides: Sequence[str | Mapping[str, Any]],
) -> tuple[list[Path], list[str | Mapping[str, Any]]]:
    """Separates the files to lay over the config from the single settings."""
    files: list[Path] = []
    values: list[str | Mapping[str, Any]] = []
    for override in overrides:
        if isinstance(override, Mapping):
            values.append({key: value for key, value in override.items() if key != OVERLAY})
            file = override.get(OVERLAY)
        elif isinstance(override, str):
            key, _, file = override.partition("=")
            if key.strip() != OVERLAY:
                values.append(override)
                continue
        else:
            raise TypeError(f"an override is a string or a mapping, not {type(override).__name__}")
        if file is not None:
            files.append(_overlay(file))
    return files, values


def _overlay(file: object) -> Path:
    if not isinstance(file, str | Path) or not str(file).strip() or unusable(str(file)):
        raise UserError(f"override '{OVERLAY}={file}': expected {OVERLAY}=FILE, a YAML file of settings")
    return Path(str(file).strip())


def _read(path: Path, below: tuple[Path, ...], known: _Known, schema: type[RunConfig]) -> Item:
    """Returns the settings of a file over those of its bases.

    Args:
        path: the file.
        below: the files that led here.
        known: settings of files read before; one that many are based on is read once.
        schema: class of all settings.
    """
    key = path.parent.resolve() / path.name
    if key not in known:
        known[key] = _read_new(path, below, known, schema)
    return known[key]


def _read_new(path: Path, below: tuple[Path, ...], known: _Known, schema: type[RunConfig]) -> Item:
    source = label(path)
    if len(below) >= DEEPEST:
        raise UserError(f"{source}: more than {DEEPEST} files are based on each other")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{source}: larger than {LARGEST >> 20} MiB, not a config")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"{source}: no such file{did_you_mean(path.name, siblings)}") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    item = upgrade(parse(text, source))
    if not isinstance(item.value, dict):
        found = "nothing" if item.value is None else "a list" if isinstance(item.value, list) else "a value"
        raise UserError(f"{item.origin}: the file holds {found}; settings are written as 'key: value'")
    own = dict(item.value)
    merged = Item({}, item.origin)
    for base in _bases(own.pop("base", None)):
        merged = _lay(merged, _read_base(path, base, (*below, path), known, schema), schema)
    return _lay(merged, Item(own, item.origin), schema, path.parent)


def _lay(lower: Item, upper: Item, schema: type[RunConfig], folder: Path | None = None) -> Item:
    """Lays settings over others, and their imports behind the others' imports.

    With ``folder``, the folder of ``upper``, its modules are imported first: they may register kinds that it uses.
    """
    assert isinstance(lower.value, dict) and isinstance(upper.value, dict)
    if folder is not None:
        import_modules(upper.value.get("imports"), folder)
    merged = merge(lower, upper, schema)
    first, second = lower.value.get("imports"), upper.value.get("imports")
    assert isinstance(merged.value, dict)
    if first and second and isinstance(first.value, list) and isinstance(second.value, list):
        seen = [item.value for item in first.value]
        new = [item for item in second.value if item.value not in seen]
        merged.value["imports"] = Item([*first.value, *new], second.origin)
    return merged


def _bases(item: Item | None) -> list[Item]:
    if item is None:
        return []
    bases = item.value if isinstance(item.value, list) else [item]
    for base in bases:
        if not isinstance(base.value, str) or not base.value or unusable(base.value):
            raise UserError(
                f"{base.origin}: base: wrong value; allowed: a path relative to this file, or a list of them"
            )
    return bases


def _read_base(path: Path, base: Item, chain: tuple[Path, ...], known: _Known, schema: type[RunConfig]) -> Item:
    target = path.parent / str(base.value)
    if target.resolve() in [p.resolve() for p in chain]:
        raise UserError(f"{base.origin}: base: a cycle: {' -> '.join(label(p) for p in (*chain, target))}")
    try:
        item = _read(target, chain, known, schema)
    except UserError as error:
        if str(error).startswith(f"{label(target)}: "):
            raise UserError(f"{base.origin}: base: {error}") from None
        raise
    return Item(_without_own(item), item.origin)


def _without_own(item: Item) -> dict[str, Item]:
    """Returns a file's settings without those that describe this file only."""
    assert isinstance(item.value, dict)
    return {key: value for key, value in item.value.items() if key not in NOT_INHERITED}


def _validate(root: Item, schema: type[C], hint: str = "") -> C:
    """Returns the config with its origins; ``hint`` follows an unregistered kind in messages."""
    try:
        config = schema.model_validate(root.plain())
    except ValidationError as error:
        raise user_error(error, root, schema, hint) from None
    return config.with_origins({_dotted(key): _origin(root, key) for key, _ in leaves(to_plain(config))})


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Returns the settings as dicts, lists and single values, for checkpoints and JSON; see ``from_plain``."""
    return config.model_dump(mode="json")


def from_plain(plain: object, source: str = "settings") -> Config:
    """Returns the settings of a detector from plain containers, of this version or an earlier one.

    Modules under ``imports`` are not imported, since a file of weights must not run code: the kinds that they register
    are unknown unless they are imported otherwise.

    Args:
        plain: result of ``to_plain``.
        source: its name in messages and origins, such as the checkpoint's path.

    Raises:
        UserError: a value is wrong.
    """
    return plain_as(Config, plain, source)


def plain_as(schema: type[C], plain: object, source: str = "settings") -> C:
    """Like :func:`from_plain`, for the settings of any task: ``schema`` is their class."""
    root = with_origin(plain, source)
    if not isinstance(root.value, dict):
        raise UserError(f"{source}: no settings: expected a mapping")
    root = upgrade(root, stored=True)
    return _validate(root, schema, _hint(root))


def with_values(config: C, values: Mapping[str, Any], source: str) -> C:
    """Returns a config with other values for some of its keys; the others keep their origins.

    Args:
        config: the settings.
        values: plain values by dotted key.
        source: their name in messages and origins.

    Raises:
        UserError: the values are wrong, or contradict the others.
    """
    schema = type(config)
    own = _with_origins(to_plain(config), config.origins)
    return _validate(merge(own, from_mapping(values, source), schema), schema)


def as_config(config: Config | str | Path, **overrides: Any) -> Config:
    """Returns settings with others laid over them.

    Args:
        config: settings, or their YAML file.
        **overrides: blocks (``train={"iterations": 100}``) or dotted keys (``**{"train.iterations": 100}``).

    Raises:
        UserError: see :func:`load_config`.
    """
    return settings_of(Config, config, overrides)


def settings_of(schema: type[C], config: C | str | Path, overrides: Mapping[str, Any]) -> C:
    """Like :func:`as_config`, for the settings of any task: ``schema`` is their class."""
    if not isinstance(config, RunConfig):
        return load_as(schema, config, overrides)
    return with_values(config, overrides, OVERRIDE) if overrides else config


def _with_origins(plain: Any, origins: Mapping[str, str], path: KeyPath = ()) -> Item:
    origin = origins.get(_dotted(path), DEFAULT)
    if isinstance(plain, dict):
        return Item({key: _with_origins(value, origins, (*path, key)) for key, value in plain.items()}, origin)
    if isinstance(plain, list):
        return Item([_with_origins(value, origins, (*path, index)) for index, value in enumerate(plain)], origin)
    return Item(plain, origin)


def _hint(root: Item) -> str:
    """Tells where unregistered kinds in stored settings may come from."""
    assert isinstance(root.value, dict)
    names = root.value["imports"].plain() if "imports" in root.value else None
    if not names or not isinstance(names, list):
        return ""
    return f"; these settings import {', '.join(map(str, names))}: give a config that does (imports: ...)"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def leaves(plain: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yields the values in plain settings with their key paths; a list of plain values is one value."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from leaves(value, (*path, key))
    elif isinstance(plain, list) and any(isinstance(value, dict) for value in plain):
        for index, value in enumerate(plain):
            yield from leaves(value, (*path, index))
    else:
        yield path, plain


def _origin(root: Item, path: KeyPath) -> str:
    found = root.along(path)
    return found[-1].origin if len(found) == len(path) + 1 else DEFAULT
