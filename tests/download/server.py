"""A server that behaves as badly as real ones."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Site:
    """Files by path, and what goes wrong.

    Attributes:
        files: content by path.
        drop_after: bytes after which each connection is closed; None sends everything.
        ranges: whether ranges are honoured.
        sized: whether the size is stated.
        failures: statuses to answer with first, one per request.
        requests: ``path`` or ``path range`` of every request.
    """

    files: dict[str, bytes]
    drop_after: int | None = None
    ranges: bool = True
    sized: bool = True
    failures: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    address: str = ""


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serves a site at ``site.address``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range") or ""
            site.requests.append(f"{self.path} {asked}".strip())
            content = site.files.get(self.path)
            if site.failures or content is None:
                self.send_error(site.failures.pop(0) if site.failures else 404)
                return
            found = re.fullmatch(r"bytes=(\d+)-", asked) if site.ranges else None
            start = int(found[1]) if found else 0
            if found and start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.sized:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if site.drop_after is None else start + site.drop_after
            self.wfile.write(content[start:end])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site.address = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
