"""What errors, warnings and logs have to name, whatever their wording."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dcn_det.errors import UserError


def says(text: str, *parts: object) -> bool:
    """Whether a single line of ``text`` contains every part, in any order; words and numbers only as a whole."""
    return any(all(re.search(_whole(str(part)), line) for part in parts) for line in text.splitlines())


@contextmanager
def refused(
    *parts: object, error: type[Exception] | tuple[type[Exception], ...] = UserError
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expects an error whose message contains every part, as in ``says``."""
    with pytest.raises(error) as caught:
        yield caught
    assert says(str(caught.value), *parts), f"{parts} not in: {caught.value}"


@contextmanager
def warned(*parts: object) -> Iterator[pytest.WarningsRecorder]:
    """Expects a UserWarning whose message contains every part, as in ``says``."""
    with pytest.warns(UserWarning) as caught:
        yield caught
    messages = [str(each.message) for each in caught]
    assert any(says(message, *parts) for message in messages), f"{parts} not in: {messages}"


def _whole(part: str) -> str:
    """A pattern for the part: 3 is in neither 30 nor 0.3, and data.root is not in data.roots."""
    start = r"(?<!\w)(?<!\d\.)" if re.match(r"\w", part) else ""
    end = r"(?!\w)(?!\.\d)" if re.search(r"\w$", part) else ""
    return start + re.escape(part) + end
