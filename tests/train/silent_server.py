"""A server of shards that accepts requests and never answers, from a moment on that a test chooses."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class SilentServer(ThreadingHTTPServer):
    """Serves the files of a folder in ranges.

    asked: is set once a request will get no answer.
    """

    daemon_threads = True

    def __init__(self, folder: Path, silent: Callable[[], bool]) -> None:
        """silent(): whether the present request gets no answer."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.silent = folder, silent
        self.asked, self.closed = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has ended is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: SilentServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body waits 40 ms for the acknowledgement of its head

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if self.server.silent():
            self.server.asked.set()
            self.server.closed.wait()
            return
        path = self.server.folder / self.path.lstrip("/")
        content = path.read_bytes() if path.is_file() else b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(404 if not path.is_file() else 206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        """Silence."""


@contextmanager
def served(folder: Path, silent: Callable[[], bool]) -> Iterator[SilentServer]:
    with SilentServer(folder, silent) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.closed.set()
            server.shutdown()
