"""Download of small files, such as images, into memory."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request

from dcn_det.errors import UserError

TIMEOUT = 30.0
"""Longest time for the connection, without data, and for the whole file, in seconds."""
LIMIT = 1 << 28
"""Largest file, in bytes."""

_CHUNK = 1 << 16


def is_address(text: str) -> bool:
    """Returns whether a text is an address that :func:`content_of` takes."""
    return re.match(r"https?://[^/\s]", text) is not None


def content_of(url: str, timeout: float = TIMEOUT, limit: int = LIMIT) -> bytes:
    """Returns the content of a file on a server.

    Args:
        url: address, ``http`` or ``https``.
        timeout: longest time for the connection, without data, and for the whole file, in seconds each.
        limit: larger files are refused, in bytes.

    Raises:
        UserError: the file cannot be downloaded in time, or is larger.
    """
    end = time.monotonic() + timeout
    request = urllib.request.Request(url, headers={"User-Agent": "dcn_det"})
    parts: list[bytes] = []
    size = 0
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            stated = response.headers.get("Content-Length") or ""
            if stated.isdigit() and int(stated) > limit:
                raise UserError(f"cannot download {url}: {stated} bytes, more than {limit}")
            while chunk := response.read1(_CHUNK):
                parts.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise UserError(f"cannot download {url}: more than {limit} bytes")
                if time.monotonic() > end:
                    raise UserError(f"cannot download {url}: not complete after {timeout:g} s")
    except urllib.error.HTTPError as error:
        with error:
            raise UserError(f"cannot download {url}: HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download {url}: {reason or type(error).__name__}") from None
    if stated.isdigit() and size < int(stated):
        raise UserError(f"cannot download {url}: the connection ended after {size} of {stated} bytes")
    return b"".join(parts)
