"""Settings as text: resolved YAML with the origin of each value, and a JSON schema for editors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml

from dcn_det.config.load import to_plain
from dcn_det.config.run import RunConfig
from dcn_det.config.schema import Config
from dcn_det.config.source import DEFAULT, Dumper

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
            yield f"{indent}{key}: {_flow(value)}", f"{prefix}{key}"


def _flow(value: object) -> str:
    """Formats a value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
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


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of config files, for editors that complete and check YAML."""
    schema = Config.model_json_schema()
    path = {"type": "string"}
    schema["properties"]["base"] = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Files on which this one is based, relative to it.",
    }
    return schema
