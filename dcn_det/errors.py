"""The errors a user can cause, and the nearest-match hint they carry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one line: what is wrong, where, and the nearest valid choice. Command-line tools print it
    without a traceback and exit with code 2.
    """


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the closest of ``allowed``, or an empty string when none is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
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
