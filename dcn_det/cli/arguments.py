"""Types of command-line arguments."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dcn_det.errors import UserError

LARGEST = 10**9


def positive(text: str) -> int:
    """Parses an integer of at least 1."""
    return _integer(text, 1)


def natural(text: str) -> int:
    """Parses an integer of at least 0."""
    return _integer(text, 0)


def number(text: str) -> float:
    """Parses a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text[:40]}', expected a finite number")
    return value


def seconds(text: str) -> float:
    """Parses a duration from above 0 to a day."""
    value = number(text)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{value:g}, expected seconds above 0, at most 86400")
    return value


def png(text: str) -> Path:
    """Parses the name of a PNG file."""
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"'{text[:40]}', expected a file name that ends with .png")
    return Path(text)


def require_files(args: argparse.Namespace, *names: str) -> None:
    """Checks options that name files to write, before work begins.

    Args:
        args: parsed arguments.
        names: of the options, such as ``save``.

    Raises:
        UserError: one of them is an existing folder.
    """
    for name in names:
        path = getattr(args, name)
        if path is not None and path.is_dir():
            raise UserError(f"--{name}: '{path}' is a folder; give the name of a file")


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not least <= value <= LARGEST:
        raise argparse.ArgumentTypeError(f"'{text[:40]}', expected an integer from {least} to {LARGEST}")
    return value
