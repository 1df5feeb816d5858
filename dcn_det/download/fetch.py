"""Resumable download of one file over HTTP."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from dcn_det.errors import UserError
from dcn_det.progress import Progress

TIMEOUT = 60.0
"""Seconds without data after which a connection counts as lost."""
PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds to wait before each new attempt; data received in between starts the sequence anew."""

_CHUNK = 1 << 20
_MIB = 1 << 20


class _Lost(Exception):
    """The connection was lost, or the server is busy: another attempt may succeed."""


class _Unreachable(_Lost):
    """No connection could be made."""


def fetch(url: str, path: Path, digest: str) -> None:
    """Downloads a file, and continues where an interrupted download ended.

    Data is written to ``<name>.part`` next to the file, which is renamed when it is complete and verified. With a
    server that ignores ranges, it starts from the beginning. Lost connections are replaced; a connection that cannot be
    made at all is an error at once.

    Args:
        url: address, ``http`` or ``https``.
        path: the file to write; missing folders are created.
        digest: ``algorithm:hexadecimal``, with one of hashlib's algorithms; the hash may be shortened.

    Raises:
        UserError: the file cannot be downloaded, or is not the one with this hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("ab") as file:
            _lock(file, part)
            _receive_all(url, file, path.name)
    except BaseException:
        if not part.stat().st_size:
            part.unlink()
        raise
    try:
        verify(part, digest)
    except UserError as error:
        part.unlink()
        raise UserError(f"{error}; what {url} sent is deleted") from None
    part.replace(path)


def reachable(url: str, timeout: float = 5.0) -> bool:
    """Returns whether a server answers to a request for a file within ``timeout`` seconds; the file is not sent."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def verify(path: Path, digest: str) -> None:
    """Checks the hash of a file.

    Raises:
        UserError: it is another one.
    """
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    if not found.hexdigest().startswith(expected):
        raise UserError(
            f"{path}: not the published file: {algorithm} {found.hexdigest()[: len(expected)]}, expected {expected}"
        )


def _lock(file: IO[bytes], part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{part}: another process is downloading this file") from None
    except OSError:
        pass  # a file system without locks


def _receive_all(url: str, file: IO[bytes], name: str) -> None:
    progress = Progress(f"MiB of {name}", every=5.0)
    attempts = failures = 0
    while True:
        before = file.tell()
        try:
            _receive(url, file, progress)
            return
        except _Lost as error:
            failures = 1 if file.tell() > before else failures + 1
            if failures > len(PAUSES) or (not attempts and isinstance(error, _Unreachable)):
                raise UserError(f"cannot download {url}: {error}") from None
            attempts += 1
            time.sleep(PAUSES[failures - 1])


def _receive(url: str, file: IO[bytes], progress: Progress) -> None:
    """Appends what is missing of a file.

    Raises:
        _Lost: the connection ended early.
        UserError: the server refuses.
    """
    response = _open(url, file)
    if response is None:
        return
    with response:
        total = _total(response, file)
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Lost(_reason(error)) from None
            if not chunk:
                break
            try:
                file.write(chunk)
            except OSError as error:
                raise OSError(error.errno, error.strerror, file.name) from None
            if total is not None:
                progress(file.tell() // _MIB, total // _MIB)
    if total is not None and file.tell() < total:
        raise _Lost(f"the connection ended after {file.tell()} of {total} bytes")


def _open(url: str, file: IO[bytes]) -> http.client.HTTPResponse | None:
    """Requests what is missing of a file; returns None if nothing is."""
    if not re.match(r"https?://[^/\s]", url):
        raise UserError(f"'{url}' is not an address; expected http:// or https://")
    start = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)
        return response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # not satisfiable: nothing is missing, or it is another file
                if _number((error.headers.get("Content-Range") or "").rpartition("/")[2]) == start:
                    return None
                file.truncate(0)
                file.seek(0)
                raise _Lost("the file on the server is another one than before") from None
            status = f"HTTP {error.code} {error.reason}"
        if error.code in (408, 429) or error.code >= 500:
            raise _Lost(status) from None
        raise UserError(f"cannot download {url}: {status}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Unreachable(_reason(error)) from None


def _total(response: http.client.HTTPResponse, file: IO[bytes]) -> int | None:
    """Returns the size of the whole file; if the server sends it from the beginning, empties what is there."""
    start = file.tell()
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range") or "")
        if found is not None and int(found[1]) == start:
            return _number(found[2])
        raise _Lost("the server sent another range than requested")
    file.truncate(0)
    file.seek(0)
    return _number(response.headers.get("Content-Length"))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) or type(reason).__name__
