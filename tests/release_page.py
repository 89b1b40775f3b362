"""A release page on 127.0.0.1 with one file, and what may go wrong with it; the fixture is in conftest.py."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ARCHIVE = "/releases/download/v0.2.0/WI_768-tiny-pretrained.tar.gz"
OTHER = "/somewhere/else.tar.gz"


@dataclass
class Publisher:
    """A release page with one archive, and what is to go wrong with it."""

    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    cuts: list[int] = field(default_factory=list)  # bytes of the body after which the connection ends, one a request
    hang_after: int | None = None
    slow: threading.Event = field(default_factory=threading.Event)  # hang until it is set
    redirect: str | None = None
    length: bool = True
    part: str = "bytes {start}-{last}/{total}"
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.seen.append((request.path, wanted))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
        elif self.redirect is not None and request.path == ARCHIVE:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            self.send(request, wanted)

    def send(self, request: http.server.BaseHTTPRequestHandler, wanted: str | None) -> None:
        body, total = self.content, len(self.content)
        if wanted and self.ranges and request.headers.get("If-Range") == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            body = body[start:]
            request.send_response(206)
            request.send_header("Content-Range", self.part.format(start=start, last=total - 1, total=total))
        else:
            request.send_response(200)
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Type", "application/octet-stream")
        request.end_headers()
        if self.hang_after is not None:
            request.wfile.write(body[: self.hang_after])
            request.wfile.flush()
            self.slow.wait(30)
            request.wfile.write(body[self.hang_after :])
        else:
            request.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)
        request.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no news."""


@contextmanager
def serving() -> Iterator[Publisher]:
    """Serves within a ``with``."""
    state = Publisher()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *given: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    state.slow.set()
    server.shutdown()
    server.server_close()
