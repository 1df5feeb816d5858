"""From YAML files and overrides to a ``Config`` whose every value knows where it was set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dcn_det.config.imports import import_modules
from dcn_det.config.problems import user_error
from dcn_det.config.schema import Config
from dcn_det.config.source import DEFAULT, Item, KeyPath, label, merge, parse, parse_overrides
from dcn_det.config.upgrade import upgrade
from dcn_det.errors import UserError, did_you_mean

Origins = dict[str, str]
"""Where each value was set: from its dotted key to ``FILE:LINE``, ``override`` or ``default``.

A list of plain values is one value."""

NOT_INHERITED = ("name", "expected")
"""Keys that describe one file: what is built on it is another experiment, with numbers of its own."""

OVERLAY = "overlay"
"""The override that names a file to lay over the config, where others name a setting."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads settings from a YAML file, the files it is based on, and overrides.

    A file may name others under ``base:``, one path or a list, relative to itself. They are laid over each
    other in that order, and the file over them:

    * Blocks merge by key; lists and single values replace.
    * Naming another ``kind`` for ``train.optimizer`` or ``train.schedule`` starts that block afresh, and so does
      one for ``model``, but for its backbone and RPN.
    * Giving ``train.epochs`` replaces an inherited ``train.iterations``, and the other way round.
    * ``name`` and ``expected`` are not inherited; ``name`` is the file's stem where none is given.

    Args:
        path: the YAML file.
        overrides: ``key=value`` settings laid over the file, with dotted keys and values in YAML, such as
            ``train.optimizer.lr=1e-3``. ``overlay=FILE`` lays another file over the first, such as another schedule;
            single settings go over all files.

    Raises:
        UserError: a file cannot be read or is no YAML mapping, bases form a cycle, an override is malformed,
            or values are wrong. Wrong values are all reported, one line each.
    """
    return load_with_origins(path, overrides)[0]


def load_with_origins(path: str | Path, overrides: Iterable[str] = ()) -> tuple[Config, Origins]:
    """Like ``load_config``, and tells where every value was set."""
    path = Path(path)
    root = _read(path, ())
    files, values = _split(overrides)
    for file in files:
        over = _read(file, ())
        root = _lay(root, Item(_without_own(over), over.origin))
    root = _lay(root, parse_overrides(values), Path.cwd())
    assert isinstance(root.value, dict)
    name = root.value.get("name")
    if name is None or name.value == "":
        root.value["name"] = Item(path.stem, DEFAULT)
    config = _validate(root)
    return config, {".".join(map(str, key)): _origin(root, key) for key, _ in leaves(to_plain(config))}


def _split(overrides: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The files to lay over the config, and the single settings."""
    files, values = [], []
    for text in overrides:
        key, _, value = text.partition("=")
        if key.strip() != OVERLAY:
            values.append(text)
        elif not value.strip():
            raise UserError(f"override '{text}': expected {OVERLAY}=FILE, a YAML file of settings")
        else:
            files.append(Path(value.strip()))
    return files, values


def _read(path: Path, below: tuple[Path, ...]) -> Item:
    """The file's settings over those of its bases; ``below`` are the files that led here."""
    source = label(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
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
        merged = _lay(merged, _read_base(path, base, (*below, path)))
    return _lay(merged, Item(own, item.origin), path.parent)


def _lay(lower: Item, upper: Item, folder: Path | None = None) -> Item:
    """Lays settings over others, and their imports behind the others' imports.

    With ``folder``, ``upper`` comes from there and its modules are imported first: they may register what it names.
    """
    assert isinstance(lower.value, dict) and isinstance(upper.value, dict)
    if folder is not None:
        import_modules(upper.value.get("imports"), folder)
    merged = merge(lower, upper, Config)
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
        if not isinstance(base.value, str) or not base.value:
            raise UserError(
                f"{base.origin}: base: wrong value; allowed: a path relative to this file, or a list of them"
            )
    return bases


def _read_base(path: Path, base: Item, chain: tuple[Path, ...]) -> Item:
    target = path.parent / str(base.value)
    if target.resolve() in [p.resolve() for p in chain]:
        raise UserError(f"{base.origin}: base: a cycle: {' -> '.join(label(p) for p in (*chain, target))}")
    try:
        item = _read(target, chain)
    except UserError as error:
        if str(error).startswith(f"{label(target)}: "):
            raise UserError(f"{base.origin}: base: {error}") from None
        raise
    return Item(_without_own(item), item.origin)


def _without_own(item: Item) -> dict[str, Item]:
    """A file's settings without those that speak of that file alone."""
    assert isinstance(item.value, dict)
    return {key: value for key, value in item.value.items() if key not in NOT_INHERITED}


def _validate(root: Item, hint: str = "") -> Config:
    """``hint`` is added where a kind is unknown."""
    try:
        return Config.model_validate(root.plain())
    except ValidationError as error:
        raise user_error(error, root, hint) from None


def to_plain(config: Config) -> dict[str, Any]:
    """The settings as dicts, lists and single values, for checkpoints and JSON; see ``from_plain``."""
    return config.model_dump(mode="json")


def from_plain(plain: object, source: str = "settings") -> Config:
    """Settings from plain containers, of this version or an earlier one.

    Modules under ``imports`` are not imported, since a file of weights must not run code: kinds that they register are
    unknown unless something else has imported them.

    Args:
        plain: what ``to_plain`` gave.
        source: what messages call it, such as the checkpoint's path.

    Raises:
        UserError: a value is wrong.
    """
    root = _with_origin(plain, source)
    if not isinstance(root.value, dict):
        raise UserError(f"{source}: no settings: expected a mapping")
    root = upgrade(root)
    return _validate(root, _hint(root))


def _hint(root: Item) -> str:
    """Where kinds may come from that stored settings name and nothing has registered."""
    assert isinstance(root.value, dict)
    names = root.value["imports"].plain() if "imports" in root.value else None
    if not names or not isinstance(names, list):
        return ""
    return f"; these settings import {', '.join(map(str, names))}: give a config that does (imports: ...)"


def _with_origin(plain: Any, origin: str) -> Item:
    if isinstance(plain, dict):
        return Item({str(key): _with_origin(value, origin) for key, value in plain.items()}, origin)
    if isinstance(plain, list | tuple):
        return Item([_with_origin(value, origin) for value in plain], origin)
    return Item(plain, origin)


def leaves(plain: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """The values in plain settings with their key paths; a list of plain values is one value."""
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
