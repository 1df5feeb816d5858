"""Output to the terminal: safe to print whatever names contain, and no reason to end a run if it is lost."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dcn_det.errors import printable


class Console(io.TextIOWrapper):
    """A text stream over the bytes of another one that escapes control characters and what the encoding lacks.

    Args:
        stream: the other stream; it stays open.
        label: name of the stream in errors.
    """

    def __init__(self, stream: TextIO, label: str) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=bool(stream.line_buffering),
            write_through=getattr(stream, "write_through", False),
        )
        self._stream = stream  # it would close the bytes if it was collected
        self._label = label

    def write(self, text: str) -> int:
        with self._named():
            return super().write("\r".join(map(printable, text.split("\r"))))  # progress bars return the carriage

    def flush(self) -> None:
        with self._named():
            super().flush()

    def close(self) -> None:
        """Flushes, and leaves the other stream open."""
        with contextlib.suppress(OSError, ValueError):
            super().flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._label) from None


def use_console() -> None:
    """Replaces the standard streams by consoles; what is written to closed ones is discarded.

    Closed descriptors are opened on the null device: the next file, such as a log, would get their numbers, and
    libraries print to them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115 - open until the end
        stream = getattr(sys, name)
        if number and hasattr(stream, "buffer") and not isinstance(stream, Console):
            setattr(sys, name, Console(stream, f"<{name}>"))


def print_line(text: str, stream: TextIO | None) -> str | None:
    """Prints text and a newline, and flushes.

    Returns:
        None, or the problem if the stream is lost: its disk is full, or its reader has gone. Later output to it is
        discarded.
    """
    if stream is None:  # closed before Python started
        return None
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except (OSError, ValueError) as error:
        discard(stream)
        return str(getattr(error, "strerror", None) or error)
    return None


def discard(stream: TextIO) -> None:
    """Discards what is written to a stream from now on, and what it still buffers."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
