"""The task of a config: its model's kind belongs to one of the classes of settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcn_det.config.classifier import ClassificationConfig
from dcn_det.config.load import load_as, plain_as, read_as, settings_of
from dcn_det.config.run import RunConfig
from dcn_det.config.schema import Config
from dcn_det.config.segmentation import SegmentationConfig

SCHEMAS: tuple[type[RunConfig], ...] = (Config, ClassificationConfig, SegmentationConfig)
"""Classes of settings, one for each task; a config without ``model.kind`` is of the first."""


def schema_of(kind: object) -> type[RunConfig]:
    """Returns the class of the settings whose models include a kind, or one with the most similar name.

    The class then refuses a kind that it does not have, with its place and the kinds that it has.
    """
    known = {name: schema for schema in reversed(SCHEMAS) for name in _kinds(schema)}
    near = difflib.get_close_matches(str(kind), known, 1)
    return known[near[0]] if near else SCHEMAS[0]


def _kinds(schema: type[RunConfig]) -> list[str]:
    return list(schema.variants("model")) or [str(schema.default_kind("model"))]


def load_any(path: str | Path, *overrides: str | Mapping[str, Any]) -> RunConfig:
    """Reads the settings of any task; see :func:`dcn_det.config.load_config` for arguments and errors."""
    root = read_as(RunConfig, path, *overrides)
    return load_as(schema_of(_kind(root.plain())), path, *overrides)


def as_any(config: RunConfig | str | Path, overrides: Mapping[str, Any]) -> RunConfig:
    """Returns the settings of any task, given or read from a YAML file, with others laid over them."""
    return (
        settings_of(type(config), config, overrides) if isinstance(config, RunConfig) else load_any(config, overrides)
    )


def any_from_plain(plain: object, source: str = "settings") -> RunConfig:
    """Returns the settings of any task from plain containers; see :func:`dcn_det.config.from_plain`."""
    return plain_as(schema_of(_kind(plain)), plain, source)


def _kind(plain: object) -> object:
    model = plain.get("model") if isinstance(plain, dict) else None
    return model.get("kind") if isinstance(model, dict) else None
