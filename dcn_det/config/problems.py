"""Error messages about settings: one line per problem, with its place, the allowed values and the nearest match."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dcn_det.config.registry import OneOf, Registry
from dcn_det.config.section import Section
from dcn_det.config.source import Item, KeyPath, kind_of
from dcn_det.config.upgrade import RENAMED
from dcn_det.errors import UserError, did_you_mean

LISTED = 19
"""Largest number of lines of a message."""

_NOUNS: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
}
_WHAT = {
    "literal_error": "unknown choice",
    "union_tag_invalid": "unknown choice",
    "greater_than": "out of range",
    "greater_than_equal": "out of range",
    "less_than": "out of range",
    "less_than_equal": "out of range",
    "finite_number": "out of range",
    "too_short": "wrong length",
    "too_long": "wrong length",
    "string_too_short": "wrong length",
}


class _Place(NamedTuple):
    path: KeyPath
    form: Any
    """The expected type, as written in the schema; None if the schema has no such place."""
    section: type[Section]
    """The innermost block that contains it."""


def user_error(error: ValidationError, root: Item, schema: type[Section], hint: str = "") -> UserError:
    """Describes each problem that pydantic found in ``root`` on one line.

    Args:
        error: raised by pydantic.
        root: the settings.
        schema: class of all settings.
        hint: follows an unregistered kind.
    """
    problems = error.errors(include_url=False)
    # A list is also too short for pydantic if its elements are wrong.
    above = {each["loc"][:depth] for each in problems for depth in range(len(each["loc"]))}
    lines = [
        _line(each, root, schema, hint) for each in problems if each["type"] != "too_short" or each["loc"] not in above
    ]
    lines = list(dict.fromkeys(lines))
    if len(lines) > LISTED:
        lines = [*lines[: LISTED - 1], f"{root.origin}: {len(lines) - LISTED + 1} more settings are wrong"]
    return UserError("\n".join(lines))


def _line(problem: Any, root: Item, schema: type[Section], hint: str) -> str:
    kind = str(problem["type"])
    place = _locate(problem["loc"], root, schema)
    path = place.path
    hint = hint if kind == "union_tag_invalid" and _registry(place.form) else ""
    if _is_union(place.form):
        kind = "none of its types fits"
    elif kind == "union_tag_invalid":
        path, place = (*path, "kind"), place._replace(form=Literal[tuple(_choices(place.form))])
    elif kind == "missing" and isinstance(path[-1], int):
        kind, place = "too_short", _locate(problem["loc"][:-1], root, schema)
        path = place.path
    items = root.along(path)
    where = ": ".join([items[-1].origin, _dotted(path)] if path else [items[-1].origin])
    if kind == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    if kind == "extra_forbidden":
        return f"{where}: {_unknown_key(path, place.section, items, schema)}"
    if kind == "missing":
        return f"{where}: missing; give {describe(place.form)}"
    value = items[-1].plain()
    what = _WHAT.get(kind, "wrong value")
    return f"{where}: {what} (got {_show(value)}); allowed: {_allowed(value, place.form)}{hint}"


def _unknown_key(path: KeyPath, section: type[Section], items: list[Item], schema: type[Section]) -> str:
    key = str(path[-1])
    if _dotted(path) in RENAMED:
        return f"was renamed to '{RENAMED[_dotted(path)]}'"
    allowed = list(section.model_fields)
    hint = did_you_mean(key, allowed)
    if "." in key:
        hint = "; dotted keys are for the command line, in a file blocks are nested"
    elif not hint:
        elsewhere = list(dict.fromkeys(p for p in _key_paths(schema) if p.rpartition(".")[2] == key))
        # The key of another kind of the same block is not at another place.
        hint = f"; did you mean '{elsewhere[0]}'?" if len(elsewhere) == 1 and elsewhere[0] != _dotted(path) else ""
    kind = kind_of(items[-2]) if len(items) > 1 else None
    return f"unknown key{f' for kind {kind}' if kind else ''}; allowed: {', '.join(allowed)}{hint}"


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _key_paths(section: type[Section]) -> Iterator[str]:
    for key, field in section.model_fields.items():
        yield key
        for inner in dict.fromkeys(_sections(form_of(field))):
            yield from (f"{key}.{path}" for path in _key_paths(inner))


def _allowed(value: object, form: Any) -> str:
    text = describe(form)
    if not isinstance(value, str):
        return text
    if _bare(form) is bool and value.lower() in ("yes", "no", "on", "off"):
        return f"{text}; did you mean '{'true' if value.lower() in ('yes', 'on') else 'false'}'?"
    return text + did_you_mean(value, _choices(form))


def _locate(loc: KeyPath, root: Item, schema: type[Section]) -> _Place:
    """Follows a pydantic location, which also names the members of unions that are not registries, in the schema."""
    path: KeyPath = ()
    section: type[Section] = schema
    form: Any = schema
    for part in loc:
        bare = _bare(form)
        if registry := _registry(form):
            bare = registry.sections.get(_kind_at(root, path, section))
        if isinstance(bare, type) and issubclass(bare, Section):
            section = bare
            path = (*path, part)
            form = form_of(section.model_fields[str(part)]) if part in section.model_fields else None
        elif get_origin(bare) is tuple and isinstance(part, int):
            path = (*path, part)
            form = get_args(bare)[0]
        elif members := [s for s in _sections(form) if get_args(s.model_fields["kind"].annotation)[0] == part]:
            form = members[0]
        else:
            break
    return _Place(path, form, section)


def _kind_at(root: Item, path: KeyPath, section: type[Section]) -> str:
    """Returns the kind of the block at ``path``, a key of ``section``."""
    items = root.along(path)
    given = kind_of(items[-1]) if len(items) > len(path) else None
    return str(given or section.default_kind(str(path[-1])))


def form_of(field: FieldInfo) -> Any:
    """Returns the type of a key with its constraints, as written in the schema."""
    parts = (field.annotation, *field.metadata)
    return Annotated[parts] if field.metadata else field.annotation


def _members(form: Any) -> tuple[Any, ...]:
    return get_args(form) if get_origin(form) in (Union, UnionType) else (form,)


def _is_union(form: Any) -> bool:
    """Returns whether several types are allowed; pydantic then reports a problem with each of them."""
    return len(_members(_bare(form))) > 1 and not _sections(_bare(form))


def _registry(form: Any) -> Registry[Any] | None:
    marks = get_args(form)[1:] if get_origin(form) is Annotated else ()
    return next((mark.registry for mark in marks if isinstance(mark, OneOf)), None)


def _sections(form: Any) -> list[type[Section]]:
    """Returns the sections that a value can have."""
    if registry := _registry(form):
        return list(dict.fromkeys(registry.sections.values()))
    members = _members(get_args(form)[0] if get_origin(form) is Annotated else form)
    return [m for m in members if isinstance(m, type) and issubclass(m, Section)]


def _bare(form: Any) -> Any:
    """Returns the type without its constraints and without ``None``."""
    if get_origin(form) is Annotated:
        return _bare(get_args(form)[0])
    members = [m for m in _members(form) if m is not NoneType]
    return _bare(members[0]) if len(members) == 1 and members[0] is not form else form


def _choices(form: Any) -> list[str]:
    if get_origin(form) is Literal:
        return [v for v in get_args(form) if isinstance(v, str)]
    if registry := _registry(form):
        return list(registry.sections)
    if get_origin(form) is Annotated:
        return _choices(get_args(form)[0])
    sections = _sections(form)
    if len(sections) > 1:
        return [choice for section in sections for choice in _choices(section.model_fields["kind"].annotation)]
    return [choice for member in _members(form) if member is not form for choice in _choices(member)]


def describe(form: Any, constraints: tuple[Any, ...] = (), plural: bool = False) -> str:
    """Describes a type of the schema, such as ``a list of 3 numbers > 0``."""
    if _registry(form):
        return f"a block with kind: {' or '.join(_choices(form))}"
    if get_origin(form) is Annotated:
        inner, *metadata = get_args(form)
        flat = [c for m in metadata for c in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return describe(inner, (*constraints, *flat), plural)
    if get_origin(form) is Literal:
        return ", ".join(map(str, get_args(form)))
    if get_origin(form) is tuple:
        args = get_args(form)
        count = "" if args[-1] is ... else f"{len(args)} "
        least = "non-empty " if _bound("min_length", constraints) else ""
        return f"a {least}list of {count}{describe(args[0], plural=True)}"
    if form is NoneType:
        return "null"
    if form is bool:
        return "true or false"
    if form in _NOUNS:
        least = "non-empty " if _bound("min_length", constraints) else ""
        article, noun = _NOUNS[form][0].split(" ")
        words = f"{least}{_NOUNS[form][1]}" if plural else f"{'a' if least else article} {least}{noun}"
        return words + _range(constraints)
    members = _members(form)
    if len(_sections(form)) > 1:
        return f"a block with kind: {' or '.join(_choices(form))}"
    if len(members) > 1:
        return ", or ".join(describe(member) for member in members)
    return f"blocks with the keys {', '.join(form.model_fields)}" if plural else "a block of keys"


def _bound(name: str, constraints: tuple[Any, ...]) -> Any:
    return next((getattr(c, name) for c in constraints if getattr(c, name, None) is not None), None)


def _range(constraints: tuple[Any, ...]) -> str:
    ge, gt, le, lt, pattern = (_bound(name, constraints) for name in ("ge", "gt", "le", "lt", "pattern"))
    if ge is not None and le is not None:
        return f" from {ge} to {le}"
    bounds = [f"{sign} {value}" for sign, value in ((">=", ge), (">", gt), ("<=", le), ("<", lt)) if value is not None]
    return (" " + " and ".join(bounds) if bounds else "") + (f" matching {pattern}" if pattern else "")


def _show(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a block"
    if isinstance(value, str):
        return f"the string {value[:60]!r}"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
