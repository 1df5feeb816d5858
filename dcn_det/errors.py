"""The errors that a user can cause, and hints to the nearest match."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

MAXIMUM_LENGTH = 1000
"""Characters of a line of an error; the middle of longer ones is left out."""
MAXIMUM_LINES = 30
"""Lines of an error."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, and the nearest valid choice; several problems have one line each.
    Commands print it without a traceback and exit with code 2. Control characters are escaped, and very long messages
    are shortened, since names in files may contain anything.
    """

    def __init__(self, message: str) -> None:
        lines = [_shortened(line) for line in printable(message).split("\n")]
        if len(lines) > MAXIMUM_LINES:
            lines[MAXIMUM_LINES - 1 :] = [f"... and {len(lines) - MAXIMUM_LINES + 1} more"]
        super().__init__("\n".join(lines))


def printable(text: str) -> str:
    """Escapes what can change a terminal or the direction of text, and lone surrogates; keeps newlines and tabs."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def _shortened(line: str) -> str:
    if len(line) <= MAXIMUM_LENGTH:
        return line
    half = MAXIMUM_LENGTH // 2 - 3
    return f"{line[:half]} ... {line[-half:]}"


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest of ``allowed``, or an empty string when none is near."""
    near = difflib.get_close_matches(given[:MAXIMUM_LENGTH], list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def shown(value: object) -> str:
    """Returns ``repr(value)``, shortened; integers of any size and nested values are handled."""
    if isinstance(value, int) and abs(value) >= _LARGE:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # ValueError: a huge integer inside a container
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


_LARGE, _SHOWN = 10**40, 80
