"""A server on this machine that gives a folder to those who know its password, or who bring its signature."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD, SIGNATURE = "mary", "pl4nted-Passw0rd", "pl4nted-Signatur3"
SECRETS = (PASSWORD, SIGNATURE, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode().rstrip("="))


class PrivateServer(ThreadingHTTPServer):
    """Answers requests with the password or the signature; signature may be changed while it runs."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.signature = folder, SIGNATURE
        self.refused = 0

    def with_password(self, path: str) -> str:
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.server_port}/{path}"

    def signed(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}?expires=9&sig={self.signature}"

    def plain(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: PrivateServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        knows = self.headers.get("Authorization") == f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
        if not knows and parse_qs(url.query).get("sig") != [self.server.signature]:
            self.server.refused += 1
            return self._status(403)
        path = self.server.folder / url.path.lstrip("/")
        if not path.is_file():
            return self._status(404)
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), len(content) - 1)) if asked else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"1"')
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(part)
        return None

    def _status(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Silence."""


@contextmanager
def private_server(folder: Path) -> Iterator[PrivateServer]:
    server = PrivateServer(folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
