"""As much of the Hugging Face Hub as its library needs to make a model, commit files to it and load them again.

It cannot show what the real Hub does on top: accounts and their rights, limits, and Xet, the transfer of large files
that the library prefers where hf_xet is installed; here large files go by the LFS protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """The Hub of one account.

    token: the only one that may write.
    lfs: whether safetensors files travel as large ones.
    """

    daemon_threads = True

    def __init__(self, token: str, *, lfs: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.lfs = token, lfs
        self.models: dict[str, dict[str, bytes]] = {}  # id -> path -> content
        self.visibility: dict[str, str | None] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.seen: list[str] = []  # "METHOD path" of every request
        self.sent = 0  # bytes of files

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            return self.create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if asked := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            return self.preupload(asked[1], json.loads(body))
        if asked := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            return self.batch(json.loads(body))
        if asked := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            return self.commit(asked[1], [json.loads(line) for line in body.splitlines()])
        return self.answer(404, {})

    def create(self, asked: dict[str, Any]) -> None:
        model = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{model}"
        if model in self.server.models:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.server.models[model] = {}
        # huggingface_hub asks for a private model in one way up to 1.3 and in another since.
        self.server.visibility[model] = "private" if asked.get("private") else asked.get("visibility")
        return self.answer(200, {"url": url, "name": model})

    def preupload(self, model: str, asked: dict[str, Any]) -> None:
        if model not in self.server.models:
            return self.answer(404, {})
        files = []
        for file in asked["files"]:
            large = self.server.lfs and file["path"].endswith(".safetensors")
            files.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
        return self.answer(200, {"files": files})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}}
            for item in asked["objects"]
        ]
        return self.answer(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        content = self.body()
        oid = self.path.removeprefix("/large/")
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer(422, {})
        self.server.large[oid] = content
        return self.answer(200, {})

    def commit(self, model: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.models[model][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.models[model][value["path"]] = self.server.large[value["oid"]]
        url = f"{self.server.url}/{model}/commit/{COMMIT}"
        return self.answer(200, {"commitUrl": url, "commitOid": COMMIT})

    def do_HEAD(self) -> None:
        self.read(body=False)

    def do_GET(self) -> None:
        self.read(body=True)

    def read(self, *, body: bool) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if (asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path)) and asked[
            1
        ] in self.server.models:
            return self.answer(200, {"id": asked[1], "sha": COMMIT, "siblings": []})
        tree_of = rf"/api/models/(.+)/tree/(?:main|{COMMIT})"
        if (asked := re.fullmatch(tree_of, path)) and asked[1] in self.server.models:
            files = self.server.models[asked[1]].items()
            tree = [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files]
            return self.answer(200, tree)
        if asked := re.fullmatch(rf"/(.+)/resolve/(?:main|{COMMIT})/(.+)", path):
            data = self.server.models[asked[1]].get(asked[2])
            if data is None:
                return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}, body=body)
            headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT}
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                data = data[int(part[1]) : int(part[2]) + 1]
            self.server.sent += len(data) if body else 0
            return self.answer(206 if part else 200, data, headers, body=body)
        return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}, body=body)

    def body(self) -> bytes:
        self.server.seen.append(f"{self.command} {self.path}")
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, code: int, content: Any, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Silence."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
