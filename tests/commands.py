"""Command lines of help and documentation, checked with the parsers of the commands."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcn_det.config import load_any

ROOT = Path(__file__).resolve().parents[1]


def check(parsers: Mapping[str, argparse.ArgumentParser], line: Sequence[str]) -> None:
    """Parses the arguments of ``dcn-det``; configs of the project that they name must exist and accept the settings.

    Args:
        parsers: of all commands by name.
        line: words after ``dcn-det``; the working directory is the root of the project.
    """
    name = " ".join(line[:2]) if " ".join(line[:2]) in parsers else line[0]
    assert name in parsers, f"no command {name}"
    arguments = list(line[len(name.split()) :])
    if {"--help", "--version"} & set(arguments):
        return
    parser = parsers[name]
    try:
        args = parser.parse_args(arguments) if line[0] == "config" else parser.parse_intermixed_args(arguments)
    except SystemExit:
        raise AssertionError(f"dcn-det {' '.join(line)}: refused") from None
    given = [str(each) for value in vars(args).values() for each in (value if isinstance(value, list) else [value])]
    settings = [each for each in given if "=" in each]
    for config in (each for each in given if each.startswith("configs/") and each.endswith(".yaml")):
        load_any(config, *settings)
