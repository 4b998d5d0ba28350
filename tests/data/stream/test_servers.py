"""Servers that sign URLs, redirect, know no ranges or stay silent, proxies, and file systems that read ahead."""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from huggingface_hub import HfFileSystem, constants

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards import remote, retry
from ldm_vae.data.shards.check import check_shards
from ldm_vae.data.shards.index import SourceConfig, load_index, write_index
from ldm_vae.data.shards.retry import Forbidden, Missing, Unreachable
from ldm_vae.data.shards.storage import expand_shards, read_whole
from ldm_vae.data.shards.urls import is_tar, name_of, within
from ldm_vae.data.stream.reader import DataConfig, train_batches
from ldm_vae.errors import UserError
from ldm_vae.passwords import with_secrets, without_secrets
from tests.data.conftest import MakeShards, ReadRange
from tests.interop.hub_server import HubServer

SIGNATURE = "X-Amz-Credential=AKIA%2F20261127&X-Amz-Signature=a%2Bb%3D"


class Server(ThreadingHTTPServer):
    """Serves a folder.

    signed: paths that need the query SIGNATURE, to the letter, or all where it is None.
    ranges: whether it knows ranges.
    moved: another server, to which it redirects.
    failures: how many requests it answers with 503 from now on.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.signed: tuple[str, ...] | None = ()
        self.ranges, self.failures = True, 0
        self.moved: str | None = None
        self.requests: list[str] = []  # the target of every request, as it stands in its first line
        self.sent = 0  # bytes of bodies

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has read enough is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        self.server.requests.append(self.path)
        parts = urlsplit(self.path)
        path = self.server.folder / parts.path.lstrip("/")
        if self.server.failures:
            self.server.failures -= 1
            return self.status(503)
        if self.server.moved is not None:
            return self.status(302, f"{self.server.moved}{self.path}")
        if (self.server.signed is None or parts.path in self.server.signed) and parts.query != SIGNATURE:
            return self.status(403)
        if not path.is_file():
            return self.status(404)
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        first, last = (int(asked[1]), min(int(asked[2]), len(content) - 1)) if asked else (0, len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        for start in range(first, last + 1, 2**14) if body else ():
            part = content[start : min(start + 2**14, last + 1)]
            self.server.sent += len(part)  # before the client can have it, and look
            self.wfile.write(part)
        return None

    def status(self, code: int, location: str | None = None) -> None:
        self.send_response(code)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Silence."""


Serve = Callable[[Path], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(folder: Path) -> Server:
        servers.append(Server(folder))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.0)


@pytest.fixture
def folder(make_shards: MakeShards, tmp_path: Path) -> Path:
    folder = make_shards(tmp_path / "shards", [20, 30])
    write_index(folder)
    return folder


def keys(spec: str, steps: int = 5) -> list[list[str]]:
    image = ImageConfig(crop=4)
    config = DataConfig(train=(SourceConfig(shards=spec),), batch=10, workers=0, image=image, broken_budget=0)
    batches = train_batches(config, load_index(spec), 0, start_step=0, rank=0, world=1, accumulation=1)
    return [next(batches)[0].key for _ in range(steps)]


def test_what_a_url_says() -> None:
    signed = "https://user:pass@host/folder/a.tar?sig=a/b.tar&x=1"
    assert is_tar(signed) and not is_tar("https://host/folder?list=a.tar") and is_tar("dir/a.tar") and is_tar("a?b.tar")
    assert name_of(signed) == "a.tar" and name_of("dir/a?b.tar") == "a?b.tar"
    assert within("https://host/folder/?sig=1", "a.tar") == "https://host/folder/a.tar?sig=1"
    assert within("di?r", "a.tar") == "di?r/a.tar"
    assert without_secrets(signed) == "https://host/folder/a.tar"
    assert expand_shards("https://host/{0..1}.tar?sig=1") == [f"https://host/{n}.tar" for n in range(2)]
    assert [with_secrets(f"https://host/{name}") for name in ("0.tar", "index.json")] == [
        "https://host/0.tar?sig=1",
        "https://host/index.json?sig=1",
    ]


@pytest.mark.parametrize("name", ["/000000.tar", "/{000000..000001}.tar", "", "/"])
def test_signed_urls_are_shards_and_the_signature_is_sent_to_the_letter(folder: Path, serve: Serve, name: str) -> None:
    """The signature opens all of the folder, as those of Azure do: the index and the shards are read with it."""
    server = serve(folder)
    server.signed = None
    here = str(folder / "000000.tar") if name == "/000000.tar" else str(folder)
    spec = f"{server.url}{name}?{SIGNATURE}"
    assert keys(spec) == keys(here)
    assert {urlsplit(target).query for target in server.requests} == {SIGNATURE}
    assert parse_qs(SIGNATURE)["X-Amz-Signature"] == ["a+b="]
    reports = list(check_shards(spec, decode=True, channels=None))
    assert [report.problems for report in reports] == [[]] * len(reports)
    assert not [report.url for report in reports if "?" in report.url]
    assert [shard.name for shard in load_index(spec).shards] == [shard.name for shard in load_index(here).shards]
    assert load_index(spec).fingerprint == load_index(here).fingerprint


def test_a_signature_of_one_file_does_without_the_index(folder: Path, serve: Serve) -> None:
    """As those of S3: nothing beside the shard can be read."""
    server = serve(folder)
    (folder / "index.json").rename(folder.parent / "index.json")
    server.signed = ("/000000.tar", "/index.json")
    assert keys(f"{server.url}/000000.tar?{SIGNATURE}") == keys(str(folder / "000000.tar"))
    with pytest.raises(Forbidden, match=r"000000\.tar may not be read.*403.*make it anew") as refusal:
        load_index(f"{server.url}/000000.tar?{SIGNATURE}x")
    assert SIGNATURE not in str(refusal.value)


def test_a_file_that_may_not_be_read_is_no_missing_sample(folder: Path, serve: Serve) -> None:
    server = serve(folder)
    index = load_index(server.url)
    server.signed = ("/000000.tar", "/000001.tar")
    config = DataConfig(train=(SourceConfig(shards=""),), batch=10, workers=0, image=ImageConfig(crop=4))
    batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    with pytest.raises(UserError, match="may not be read"):
        next(batches)
    assert not batches.faults


def test_redirects_are_followed_with_the_range(folder: Path, serve: Serve, read_range: ReadRange) -> None:
    here, there = serve(folder), serve(folder)
    there.signed = None
    here.moved = there.url
    content = (folder / "000001.tar").read_bytes()
    there.sent = 0
    assert read_range(f"{here.url}/000001.tar?{SIGNATURE}", 700, 900) == content[700:1600]
    assert there.sent == 900
    assert keys(f"{here.url}?{SIGNATURE}") == keys(str(folder))


def test_a_server_without_ranges_is_told_after_its_first_answer(
    tmp_path: Path, serve: Serve, make_shards: MakeShards
) -> None:
    folder = make_shards(tmp_path / "shards", [400, 400])  # 1.2 MB each
    write_index(folder)
    server = serve(folder)
    index = load_index(server.url)
    server.ranges, server.sent = False, 0
    server.requests.clear()
    config = DataConfig(train=(SourceConfig(shards=""),), batch=10, workers=0, image=ImageConfig(crop=4))
    batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    with pytest.raises(UserError, match="ignores byte ranges and sends the whole file: use a server that"):
        next(batches)
    assert len(server.requests) == 1 and not batches.faults
    assert read_whole(f"{server.url}/index.json") == (folder / "index.json").read_bytes()  # one request has it whole


@contextmanager
def proxied(monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str = "") -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in (("http_proxy", url), ("https_proxy", ""), ("no_proxy", no_proxy)):
            patch.setenv(name, value)
            patch.delenv(name.upper(), raising=False)
        yield


def test_proxies_of_the_environment_are_used(folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is asked for whole URLs, and here answers for a host that does not exist."""
    proxy = serve(folder)
    with proxied(monkeypatch, proxy.url):
        found = load_index("http://host.invalid")
    assert found.fingerprint == load_index(str(folder)).fingerprint
    assert set(proxy.requests) == {"http://host.invalid/index.json"}
    server = serve(folder)
    proxy.requests.clear()
    with proxied(monkeypatch, proxy.url, no_proxy="127.0.0.1"):
        load_index(server.url)
    assert not proxy.requests


def test_an_outage_is_told_once_with_the_host_and_no_secret(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(folder)
    address = f"http://user:secret@127.0.0.1:{server.server_port}"
    monkeypatch.setattr(retry, "NOTICE_AFTER", 0.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.05)
    caplog.set_level(logging.WARNING)
    server.failures = 6
    load_index(f"{address}?{SIGNATURE}")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and f"waiting for http://127.0.0.1:{server.server_port} (" in said[0]
    assert "secret" not in said[0] and "Signature" not in said[0]


def test_no_line_where_the_server_answers(folder: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    load_index(serve(folder).url)
    assert not caplog.records


class CountingFile(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    """A file of a store that can only be opened, as those of many packages for fsspec."""

    fs: CountingFileSystem

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched.append((start, end))
        return self.fs.content[start:end]


class CountingFileSystem(AbstractFileSystem):  # type: ignore[misc]
    protocol = "counting"
    cachable = True
    content = bytes(range(256)) * 2**16  # 16 MiB

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fetched: list[tuple[int, int]] = []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.content), "type": "file"}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> CountingFile:
        return CountingFile(self, path, mode, 5 * 2**20)


def test_a_file_system_that_only_opens_files_reads_no_byte_ahead(
    read_range: ReadRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    filesystem = fsspec.filesystem("counting")
    content = filesystem.content
    for offset, size in ((100, 700), (5 * 2**20, 3000), (len(content) - 10, 10)):
        filesystem.fetched.clear()
        assert read_range("counting://a.tar", offset, size) == content[offset : offset + size]
        assert filesystem.fetched == [(offset, offset + size)]
    monkeypatch.setattr(remote, "REQUEST_BYTES", 1000)
    filesystem.fetched.clear()
    assert read_range("counting://a.tar", 5, 2500) == content[5:2505]
    assert filesystem.fetched == [(5, 1005), (1005, 2005), (2005, 2505)]
    with io.BytesIO() as everything, filesystem.open("a.tar") as file:  # as fsspec would read by itself
        filesystem.fetched.clear()
        file.seek(100)
        everything.write(file.read(700))
    assert sum(end - start for start, end in filesystem.fetched) > 5 * 2**20


def test_the_hub_sends_what_is_asked_for(
    read_range: ReadRange, monkeypatch: pytest.MonkeyPatch, make_shards: MakeShards, tmp_path: Path
) -> None:
    """fsspec would read 5 MB ahead, for each sample of a shard."""
    folder = make_shards(tmp_path / "shards", [40])
    write_index(folder)
    hub = HubServer("token", lfs=False)
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"large.tar": bytes(range(256)) * 2**16}
    hub.models["someone/shards"] = files
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix("https://huggingface.co")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setattr(HfFileSystem, "_cache", {})
    place = "hf://someone/shards"
    try:
        assert read_range(f"{place}/large.tar", 2**20 + 5, 1000) == files["large.tar"][2**20 + 5 : 2**20 + 1005]
        assert hub.sent == 1000
        assert keys(place) == keys(str(folder))
        with pytest.raises(Missing):
            read_range(f"{place}/absent.tar", 0, 10)
    finally:
        hub.shutdown()
        hub.server_close()


def test_a_server_that_stays_silent_ends_in_one_error(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "TRIES", 3)
    server = serve(folder)
    server.failures = 100
    with pytest.raises(Unreachable, match=r"cannot be read \(.*503.*check the network"):
        load_index(server.url)
    assert server.failures == 100 - 3 * 2  # each try asks with HEAD, then with GET
