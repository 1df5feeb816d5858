"""Settings: schema, and reading from YAML files and overrides."""

from dcn_det.config.load import as_config, from_plain, load_as, load_config, settings_of, to_plain, with_values
from dcn_det.config.registry import (
    BACKBONES,
    DETECTORS,
    FORMATS,
    register_backbone,
    register_detector,
    register_format,
)
from dcn_det.config.run import RunConfig
from dcn_det.config.schema import Config
from dcn_det.config.show import json_schema, print_config
from dcn_det.config.upgrade import upgrade_plain

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "FORMATS",
    "Config",
    "RunConfig",
    "as_config",
    "from_plain",
    "json_schema",
    "load_as",
    "load_config",
    "print_config",
    "register_backbone",
    "register_detector",
    "register_format",
    "settings_of",
    "to_plain",
    "upgrade_plain",
    "with_values",
]
