"""Settings as text: resolved YAML with the origin of each value, differences, and a JSON schema for editors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.json_schema import models_json_schema

from dcn_det.config.load import NOT_INHERITED, leaves, to_plain
from dcn_det.config.run import RunConfig
from dcn_det.config.source import DEFAULT, Dumper
from dcn_det.config.tasks import SCHEMAS

_WIDEST = 64
"""Maximum column of aligned comments; they follow longer lines directly."""


def print_config(config: RunConfig, *, comments: bool = True) -> str:
    """Returns the settings as YAML from which ``load_config`` reads the same settings.

    Args:
        config: the settings.
        comments: add the origin of each value, if the config has origins.
    """
    lines = list(_lines(to_plain(config), "", ""))
    if not comments or not config.origins:
        return "".join(f"{text}\n" for text, _ in lines)
    width = max(len(text) for text, key in lines if key and len(text) <= _WIDEST)
    return "".join(
        f"{text:<{width}}  # {config.origins.get(key, DEFAULT)}\n" if key else f"{text}\n" for text, key in lines
    )


def _lines(block: dict[str, Any], indent: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yields the lines of a block, each with the dotted key of its value, or an empty one."""
    for key, value in block.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:", ""
            yield from _lines(value, indent + "  ", f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{key}:", ""
            for index, entry in enumerate(value):
                inner = _lines(entry, indent + "    ", f"{prefix}{key}.{index}.")
                for number, (text, dotted) in enumerate(inner):
                    yield (text if number else f"{indent}  - {text.lstrip()}"), dotted
        else:
            yield f"{indent}{key}: {flow(value)}", f"{prefix}{key}"


def flow(value: object) -> str:
    """Formats a value on one line of YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.dump(
        [value],
        Dumper=Dumper,
        default_flow_style=True,
        default_style=style,
        width=math.inf,
        allow_unicode=True,
    )
    return text.strip()[1:-1]


def differences(first: RunConfig, second: RunConfig) -> list[tuple[str, str, str]]:
    """Compares all settings of two configs, except for those that describe a file (``name`` and ``expected``).

    Returns:
        Dotted key and both values as YAML, each with its origin, if its config has origins, for every key whose values
        differ. A value is empty if a config has no such key, since another block has another ``kind``.
    """
    values = []
    for config in (first, second):
        plain = {key: value for key, value in to_plain(config).items() if key not in NOT_INHERITED}
        values.append({".".join(map(str, path)): value for path, value in leaves(plain)})
    missing = object()

    def shown(config: RunConfig, key: str, value: object) -> str:
        if value is missing:
            return ""
        return f"{flow(value)}  # {config.origins.get(key, DEFAULT)}" if config.origins else flow(value)

    found = []
    for key in dict.fromkeys([*values[0], *values[1]]):
        pair = [each.get(key, missing) for each in values]
        if pair[0] != pair[1]:
            found.append((key, shown(first, key, pair[0]), shown(second, key, pair[1])))
    return found


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of config files of every task, for editors that complete and check YAML.

    No key is required, since files inherit from others; for the same reason, a block that has kinds and does not name
    one may have the keys of any of them.
    """
    _, whole = models_json_schema([(schema, "validation") for schema in SCHEMAS])
    definitions = whole["$defs"]
    tasks = [definitions.pop(schema.__name__) for schema in SCHEMAS]
    properties: dict[str, Any] = {}
    for key in dict.fromkeys(key for task in tasks for key in task["properties"]):
        forms = [task["properties"][key] for task in tasks if key in task["properties"]]
        members = [member for form in forms for member in form.get("anyOf") or form.get("oneOf") or [_form_alone(form)]]
        unique = [member for index, member in enumerate(members) if member not in members[:index]]
        about = {
            name: forms[0][name]
            for name in ("description", "default")
            if name in forms[0] and all(form.get(name) == forms[0][name] for form in forms)
        }
        properties[key] = {**about, **(unique[0] if len(unique) == 1 else {"anyOf": unique})}
    path = {"type": "string"}
    properties["base"] = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Files on which this one is based, relative to it.",
    }
    root = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dcn_det config", "type": "object"}
    blocks = {name: _for_files(block) for name, block in sorted(definitions.items())}
    closed = {"additionalProperties": False}
    return {**root, "properties": {k: _for_files(v) for k, v in properties.items()}, **closed, "$defs": blocks}


def _form_alone(form: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a value without what describes its key."""
    return {name: value for name, value in form.items() if name not in ("title", "default", "description")}


def _for_files(form: Any) -> Any:
    """Returns a schema of pydantic's without titles and required keys, and with alternatives that may overlap."""
    if isinstance(form, list):
        return [_for_files(each) for each in form]
    if not isinstance(form, dict):
        return form
    result: dict[str, Any] = {}
    for name, value in form.items():
        if name == "properties":
            result[name] = {key: _for_files(each) for key, each in value.items()}
        elif name == "oneOf":
            result["anyOf"] = _for_files(value)
        elif name == "default":
            result |= {} if isinstance(value, dict) else {name: value}  # its keys have their own defaults
        elif name not in ("title", "required", "discriminator"):
            result[name] = _for_files(value)
    return result
