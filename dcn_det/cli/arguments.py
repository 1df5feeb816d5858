"""Parsers of commands, and types of their arguments."""

from __future__ import annotations

import argparse
import math
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcn_det.errors import UserError

LARGEST = 10**9
COLUMNS = 80
"""Columns of help; fewer in a narrower terminal."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose help fits :data:`COLUMNS` and ends with examples.

    Args:
        prog: name of the command, such as ``dcn-det train``.
        description: what it does.
        notes: paragraphs after the options, with empty lines between them; lines after a space stay as they are.
        examples: command lines, each of at most ``COLUMNS - 2`` characters; a long one continues after a backslash.
        options: other arguments of ``argparse.ArgumentParser``.
    """

    def __init__(
        self, prog: str, description: str = "", notes: str = "", examples: Sequence[str] = (), **options: Any
    ) -> None:
        listed = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {each}" for each in examples)])
        epilog = "\n\n".join(each for each in (notes, listed if examples else "") if each)
        super().__init__(prog, description=description, epilog=epilog, formatter_class=_Formatter, **options)


class _Formatter(argparse.HelpFormatter):
    """Keeps paragraphs apart, and lines that begin with a space as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(shutil.get_terminal_size().columns, COLUMNS) - 1)

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        for each in self._iter_indented_subactions(action):  # argparse measures these without their indent
            length = len(self._format_action_invocation(each)) + self._current_indent
            self._action_max_length = max(self._action_max_length, length)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for paragraph in text.split("\n\n"):
            head, *rest = paragraph.split("\n")
            if any(line.startswith(" ") for line in rest):
                lines += [textwrap.fill(head, width), *rest, ""]
            else:
                lines += [textwrap.fill(" ".join(paragraph.split()), width), ""]
        return "\n".join(lines[:-1])


def listing(title: str, entries: Mapping[str, str]) -> str:
    """Returns a paragraph for ``notes`` of :class:`Parser`: a title, and a line for each name and its description."""
    width = max(map(len, entries))
    lines = [
        textwrap.fill(text, COLUMNS - 1, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4))
        for name, text in entries.items()
    ]
    return "\n".join([f"{title}:", *lines])


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a config and of settings that override it."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the config")


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


def place(text: str) -> str:
    """Returns what may name a file, a pattern, an address or a camera; for completion, it is a file."""
    return text


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
