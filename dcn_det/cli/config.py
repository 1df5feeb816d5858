"""``dcn-det config``: prints a config with the origin of every value, or a JSON schema for editors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dcn_det.config import json_schema, load_any, print_config


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dcn-det config",
        description="Print a config with the origin of every value, or the JSON schema of configs.",
    )
    parser.add_argument("config", nargs="?", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")
    parser.add_argument("--json-schema", action="store_true", help="print the JSON schema of configs instead")
    args = parser.parse_args(argv)
    if args.json_schema == (args.config is not None):
        parser.error("give either a config or --json-schema")
    if args.json_schema:
        print(json.dumps(json_schema(), indent=2))
    else:
        print(print_config(load_any(args.config, *args.overrides)), end="")
    return 0
