"""Settings: schema, and reading from YAML files and overrides."""

from dcn_det.config.load import as_config, from_plain, load_as, load_config, settings_of, to_plain, with_values
from dcn_det.config.registry import (
    BACKBONES,
    DETECTORS,
    FORMATS,
    SEGMENTERS,
    register_backbone,
    register_detector,
    register_format,
    register_masks,
    register_segmenter,
)
from dcn_det.config.run import RunConfig
from dcn_det.config.schema import Config
from dcn_det.config.show import differences, json_schema, print_config
from dcn_det.config.tasks import any_from_plain, as_any, load_any
from dcn_det.config.upgrade import upgrade_plain

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "FORMATS",
    "SEGMENTERS",
    "Config",
    "RunConfig",
    "any_from_plain",
    "as_any",
    "as_config",
    "differences",
    "from_plain",
    "json_schema",
    "load_any",
    "load_as",
    "load_config",
    "print_config",
    "register_backbone",
    "register_detector",
    "register_format",
    "register_masks",
    "register_segmenter",
    "settings_of",
    "to_plain",
    "upgrade_plain",
    "with_values",
]
