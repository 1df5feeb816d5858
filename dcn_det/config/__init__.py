"""Settings: their schema, and reading them from YAML files and overrides."""

from dcn_det.config.load import Origins, as_config, from_plain, load_config, load_with_origins, to_plain
from dcn_det.config.schema import Config
from dcn_det.config.show import json_schema, print_config

__all__ = [
    "Config",
    "Origins",
    "as_config",
    "from_plain",
    "json_schema",
    "load_config",
    "load_with_origins",
    "print_config",
    "to_plain",
]
