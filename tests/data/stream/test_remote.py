"""Shards over HTTP: a real server on this machine that behaves, and one that does everything servers do wrong."""

from __future__ import annotations

import itertools
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import ldm_vae.data.stream.fetch as fetch_module
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards import remote, retry
from ldm_vae.data.shards.index import Index, SourceConfig, load_index, write_index
from ldm_vae.data.shards.retry import Missing, Unreachable
from ldm_vae.data.shards.storage import read_whole
from ldm_vae.data.stream.order import SHARD_LANES, WINDOW_SAMPLES
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from ldm_vae.errors import UserError
from tests.data.conftest import MakeShards, ReadRange

FAULTS = ("429", "503", "drop", "cut", "short", "none", "none", "none")


class Server(ThreadingHTTPServer):
    """Serves a folder. flaky: half of all requests fail, at random. dead: all do. ranges: whether it knows them."""

    daemon_threads = True

    def __init__(self, folder: Path, *, flaky: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.flaky, self.dead, self.ranges = folder, flaky, False, True
        self.lock, self.dice = threading.Lock(), random.Random(0)
        self.requests: list[tuple[str, int, int]] = []  # path, first and last byte
        self.injected: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self) -> str:
        with self.lock:
            kind = "503" if self.dead else self.dice.choice(FAULTS) if self.flaky else "none"
            self.injected[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up on a cut body is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each body waits 40 ms for the acknowledgement of its head

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.status(404)
        fault = self.server.fault()
        if fault in ("429", "503"):
            return self.status(int(fault))
        if fault == "drop":
            self.close_connection = True
            return None
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked and self.server.ranges else (0, len(content) - 1)
        if first >= len(content):
            return self.status(416)
        part = content[first : last + 1]
        if body:
            with self.server.lock:
                self.server.requests.append((self.path, first, last))
        if fault == "short" and asked:
            part = part[: max(len(part) // 3, 1)]  # an honest answer with fewer bytes than asked for
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if body and fault == "cut":
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(part)
        return None

    def status(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Silence."""


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(folder: Path, **options: bool) -> Server:
        servers.append(Server(folder, **options))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def small_chunks_and_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small shard takes many requests; the waits, in seconds, only make the test faster."""
    monkeypatch.setattr(remote, "REQUEST_BYTES", 3000)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.01)


@pytest.fixture
def folder(make_shards: MakeShards, tmp_path: Path) -> Path:
    folder = make_shards(tmp_path / "shards", [40, 70, 90], side=6)
    write_index(folder)
    return folder


def config_of(workers: int = 0, broken_budget: int = 0) -> DataConfig:
    image = ImageConfig(crop=4, flip=True)
    sources = (SourceConfig(shards=""),)  # the tests give the index themselves
    return DataConfig(train=sources, batch=16, workers=workers, image=image, broken_budget=broken_budget)


def delivered(index: Index, *, workers: int = 0, start: int = 0, steps: int = 20) -> list[tuple[list[str], bytes]]:
    batches = train_batches(config_of(workers), index, 3, start_step=start, rank=0, world=1, accumulation=1)
    found = [(batch.key, batch.image.numpy().tobytes()) for (batch,) in itertools.islice(batches, steps)]
    assert not batches.faults
    batches.close()
    return found


@pytest.mark.parametrize("workers", [0, 3])
def test_samples_from_a_flaky_server_are_those_of_a_calm_one_and_of_the_disk(
    folder: Path, serve: Serve, workers: int, injected: Callable[[str, int], None]
) -> None:
    calm, flaky = serve(folder), serve(folder, flaky=True)
    expected = delivered(load_index(str(folder)))
    assert delivered(load_index(calm.url), workers=workers) == expected
    assert delivered(load_index(flaky.url), workers=workers) == expected
    assert set(calm.injected) == {"none"}
    assert all(flaky.injected[kind] > 5 for kind in set(FAULTS))  # each fault was met, many times
    times = flaky.injected.total() - flaky.injected["none"]
    injected(f"server answers 429 or 503, drops the connection, cuts or shortens bodies ({workers} workers)", times)


def test_a_retry_goes_on_where_the_bytes_stopped(read_range: ReadRange, folder: Path, serve: Serve) -> None:
    server = serve(folder, flaky=True)
    content = (folder / "000001.tar").read_bytes()
    assert read_whole(f"{server.url}/000001.tar") == content
    starts = [first for _, first, _ in server.requests]
    assert starts == sorted(starts)  # never back to a byte that had come
    assert read_range(f"{server.url}/000001.tar", 777, 9000) == content[777:9777]


@pytest.mark.parametrize("name", ["", "/{000000..000002}.tar", "/"])
def test_a_remote_folder_or_its_shards(folder: Path, serve: Serve, name: str) -> None:
    index = load_index(serve(folder).url + name)
    assert index.counts.tolist() == [40, 70, 90]
    assert index.fingerprint == load_index(str(folder)).fingerprint


def test_each_lane_is_read_a_window_at_a_time(
    make_shards: MakeShards, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of one epoch: one for each window of each lane, and one more where it spans two shards."""
    monkeypatch.setattr(remote, "REQUEST_BYTES", 2**20)
    folder = make_shards(tmp_path / "long", [2000, 2500], side=1)
    write_index(folder)
    server = serve(folder)
    index = load_index(server.url)
    batches = train_batches(
        config_of().model_copy(update={"batch": 90, "image": ImageConfig()}),
        index, 3, start_step=0, rank=0, world=1, accumulation=1,
    )  # fmt: skip
    keys = [key for (batch,) in itertools.islice(batches, 50) for key in batch.key]
    assert len(set(keys)) == 4500
    lengths = [4500 // SHARD_LANES + (lane < 4500 % SHARD_LANES) for lane in range(SHARD_LANES)]
    windows = sum(
        len({(item + lane) // WINDOW_SAMPLES for item in range(lengths[lane])}) for lane in range(SHARD_LANES)
    )
    assert windows <= batches.reads <= windows + 4


@pytest.mark.parametrize(("workers", "start"), [(0, 57), (2, 57), (2, 250)])
def test_resume_reads_at_most_one_window_a_lane(
    make_shards: MakeShards, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, workers: int, start: int
) -> None:
    """However far into training: not the epoch so far, and before the first batches no more than a window of each."""
    monkeypatch.setattr(remote, "REQUEST_BYTES", 2**20)
    folder = make_shards(tmp_path / "long", [1000] * 5, side=4)
    write_index(folder)
    server = serve(folder)
    local = delivered(load_index(str(folder)), start=start, steps=4)
    index = load_index(server.url)
    server.requests.clear()
    batches = train_batches(config_of(workers), index, 3, start_step=start, rank=0, world=1, accumulation=1)
    first = [next(batches)[0] for _ in range(4)]  # 64 samples: each lane once
    assert [(batch.key, batch.image.numpy().tobytes()) for batch in first] == local
    assert (
        batches.reads <= 2 * SHARD_LANES
    )  # what is left of a window takes one read, or two where far apart or in two shards
    batches.close()
    taken = sum(last - first + 1 for _, first, last in server.requests)
    sample = 3 * 512 + 3 * 512  # bytes at most: two headers, a picture and a label, padded
    assert taken <= SHARD_LANES * WINDOW_SAMPLES * sample


def test_reading_ahead_is_bounded_in_bytes(folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(folder)
    expected = delivered(load_index(str(folder)))
    monkeypatch.setattr(fetch_module, "LANE_BYTES", 1)
    index = load_index(server.url)
    batches = train_batches(config_of(), index, 3, start_step=0, rank=0, world=1, accumulation=1)
    found = [(batch.key, batch.image.numpy().tobytes()) for (batch,) in itertools.islice(batches, 20)]
    assert found == expected and batches.reads == 20 * 16  # nothing ahead: each sample by itself


def test_validation_over_http(folder: Path, serve: Serve) -> None:
    index = load_index(serve(folder, flaky=True).url)
    keys = []
    for rank in range(3):
        batches = validation_batches(config_of(workers=2), index, batch=7, rank=rank, world=3)
        keys += [key for batch in batches for key in batch.key]
    assert sorted(keys) == [f"s{n:06d}" for n in range(200)]


def test_a_shard_that_is_gone_is_a_fault_of_its_samples(folder: Path, serve: Serve) -> None:
    server = serve(folder)
    index = load_index(server.url)
    (folder / "000000.tar").unlink()
    batches = validation_batches(config_of(broken_budget=40), index, batch=16, rank=0, world=1)
    assert sum(len(batch.key) for batch in batches) == 160
    assert len(batches.faults) == 40 and {fault.url for fault in batches.faults} == {f"{server.url}/000000.tar"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_stays_away_ends_the_run(
    read_range: ReadRange, folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(retry, "TRIES", 4)
    server = serve(folder)
    index = load_index(server.url)
    server.dead = True
    batches = train_batches(config_of(workers), index, 3, start_step=0, rank=0, world=1, accumulation=1)
    with pytest.raises(UserError, match=r"503.*then run it again"):
        next(batches)
    with pytest.raises(Unreachable, match="503"):
        read_range(f"{server.url}/000000.tar", 0, 10)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="check the network"):
        load_index(server.url)


def test_what_trying_again_does_not_mend(read_range: ReadRange, folder: Path, serve: Serve) -> None:
    server = serve(folder)
    size = (folder / "000000.tar").stat().st_size
    with pytest.raises(Missing, match="416"):
        read_range(f"{server.url}/000000.tar", size - 10, 20)
    with pytest.raises(Missing):
        read_whole(f"{server.url}/absent.tar")
    server.ranges = False
    with pytest.raises(UserError, match="ignores byte ranges"):
        read_range(f"{server.url}/000000.tar", 100, 10)


def test_remote_shards_without_an_index_are_refused(folder: Path, serve: Serve) -> None:
    (folder / "index.json").unlink()
    for name in ("", "/000000.tar"):
        with pytest.raises(UserError, match=r"ldm-vae shards.*ldm-vae check --write-index"):
            load_index(serve(folder).url + name)
