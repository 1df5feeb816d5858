"""Reading and writing of text and JSON files, with clear errors and atomic writes."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from dcn_det.errors import UserError, did_you_mean


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces ``path`` when the block ends without an error.

    The content is flushed to the disk before the rename, so a crash, a kill or a full disk at any moment leaves either
    the old file or the new one. Missing folders are created.

    Args:
        path: the file to write.

    Yields:
        A binary, seekable file.

    Raises:
        OSError: the file cannot be written. The error names ``path``, even if a library hides the system's error.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = _system_error(error) if isinstance(error, Exception) else None
        if cause is not None:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def _system_error(error: BaseException | None) -> OSError | None:
    """Returns the ``OSError`` behind an error, which torch's writer replaces with its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | Path, content: str) -> None:
    """Writes UTF-8 text atomically; see :func:`replacing`."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, content: object) -> None:
    """Writes a JSON file atomically; see :func:`replacing`.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
    """
    write_text(path, json.dumps(content, allow_nan=False))


def read_bytes(path: str | Path) -> bytes:
    """Reads a regular file; a pipe or a device, which may never end, is refused.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            kind = "a folder" if Path(path).is_dir() else "not a regular file"
            raise UserError(f"{path}: cannot be read: it is {kind}")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_text(path: str | Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def missing_file(path: str | Path) -> UserError:
    """Returns the error for a file that does not exist, with the nearest name in its folder."""
    path = Path(path)
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"{path}: no such file{did_you_mean(path.name, siblings)}")


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    text = read_text(path)
    # Parsing creates millions of objects and no garbage; collection would take two fifths of the time.
    with without_collecting(), _json_errors(path):
        return json.loads(text)


def read_xml(path: str | Path) -> ElementTree.Element:
    """Reads an XML file of any encoding that Python knows; returns its root.

    Raises:
        UserError: the file cannot be read, or is not XML.
    """
    content = read_bytes(path)
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        # The parser knows no multi-byte encodings but Unicode's; annotation tools of East Asia write GBK and others.
        found = re.match(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>""", content)
        try:
            if found is None:
                raise LookupError
            text = content[found.end() :].decode(found[1].decode())
            return ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError, LookupError):
            raise UserError(f"{path}: not XML: {error}") from None


def iterate_json(path: str | Path) -> Iterator[Any]:
    """Yields the elements of a JSON list one at a time, without building the whole list.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not a list.
    """
    text = read_text(path)
    decoder = json.JSONDecoder()
    blank = re.compile(r"[ \t\n\r]*")

    def skip(position: int) -> int:
        found = blank.match(text, position)
        assert found is not None
        return found.end()

    position = skip(0)
    if text[position : position + 1] != "[":
        whole = read_json(path)  # for its errors, and for the type of its content
        hint = "; this looks like a ground-truth file" if isinstance(whole, dict) and "images" in whole else ""
        raise UserError(f"{path}: expected a list of results, got {kind_of(whole)}{hint}")
    position = skip(position + 1)
    closed = text[position : position + 1] == "]"
    while not closed:
        with _json_errors(path):
            element, position = decoder.raw_decode(text, position)
            position = skip(position)
            closed = text[position : position + 1] == "]"
            if not closed and text[position : position + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            if not closed:
                position = skip(position + 1)
        yield element
    with _json_errors(path):
        if skip(position + 1) != len(text):
            raise json.JSONDecodeError("Extra data", text, skip(position + 1))


@contextlib.contextmanager
def _json_errors(path: str | Path) -> Iterator[None]:
    """Turns the parser's errors into ones for users."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError:  # Python refuses to convert integers of more than some thousand digits
        raise UserError(f"{path}: a number has too many digits") from None


def kind_of(value: object) -> str:
    """Returns the JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Disables garbage collection inside the block, for code that creates many objects and no cycles."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
