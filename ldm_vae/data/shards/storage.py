"""Reads ranges of bytes from local files, and from http(s), s3, gs and whatever else fsspec opens.

A remote range is read in requests of `REQUEST_BYTES`, and what has arrived is kept. After a dropped connection, a short
answer or a status of 429 or 5xx, the next request asks for the missing bytes only. As long as nothing comes, the pause
before the next request grows.
"""

from __future__ import annotations

import asyncio
import glob
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.errors import UserError, in_one_line

REQUEST_BYTES = 2**20  # bytes of one remote request; a dropped connection loses no more
REQUEST_TRIES = 20  # requests in a row that bring nothing until a server counts as unreachable: some three minutes
FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0  # seconds between tries: a random part of a bound that doubles up to the longest
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".tar.z", ".zip")
OPEN_FILES = 64  # local files kept open
# What http, S3 and GCS tell a version of a file by, as fsspec names it.
REMOTE_TAGS = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified")
TRANSIENT_STATUS = (408, 425, 429)  # with 5xx: answers that may be different next time

ResultT = TypeVar("ResultT")


class Missing(Exception):
    """The bytes cannot be had: the file is missing, too short, or may not be read. Trying again does not help."""


class Unreachable(Exception):
    """A server that gave nothing in `REQUEST_TRIES` requests."""


class _Failed(Exception):
    """A request that failed, and may succeed when it is made again."""


class RangeReader:
    """Reads ranges of files and URLs. It holds open files, so each process makes its own.

    reads: how many ranges were read; a remote one counts once, however many requests it took.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._files: OrderedDict[str, int] = OrderedDict()  # path -> descriptor, the least recently used first

    def read(self, url: str, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on, never fewer. Raises Missing or Unreachable."""
        self.reads += 1
        return _read_remote(url, offset, size) if is_remote(url) else self._read_local(url, offset, size)

    def size(self, url: str) -> int:
        """How many bytes the file has. Raises Missing or Unreachable."""
        if is_remote(url):
            return _remote_size(url)
        try:
            return Path(url).stat().st_size
        except OSError as error:
            raise Missing(in_one_line(error)) from error

    def version(self, url: str) -> list[str] | None:
        """What changes whenever the file does, and is had without reading it; None where a server gives no tag.

        Size and times of a local file, size and the server's tag of a remote one. Raises Missing or Unreachable.
        """
        if is_remote(url):
            return _remote_version(url)
        try:
            status = Path(url).stat()
        except OSError as error:
            raise Missing(in_one_line(error)) from error
        return [str(part) for part in (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _read_local(self, path: str, offset: int, size: int) -> bytes:
        try:
            descriptor = self._open(path)
            pieces, end = [], offset + size
            while offset < end and (piece := os.pread(descriptor, end - offset, offset)):
                pieces.append(piece)
                offset += len(piece)
        except OSError as error:
            raise Missing(in_one_line(error)) from error
        if offset < end:
            raise Missing(f"the file ends at byte {offset}, {end - offset} bytes too early")
        return b"".join(pieces)

    def _open(self, path: str) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files[path] = descriptor
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor


def read_whole(url: str) -> bytes:
    """All bytes of a file or URL. Raises Missing or Unreachable."""
    with closing(RangeReader()) as reader:
        return reader.read(url, 0, reader.size(url))


def is_compressed(name: str) -> bool:
    """Whether a file of this name is a compressed archive, which cannot be read at an offset."""
    return name.lower().endswith(COMPRESSED)


def is_remote(url: str) -> bool:
    return "://" in url


def without_secrets(spec: str) -> str:
    """The URLs of `spec` without user, password and query, which may hold a signature: fit to be stored and shown."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", re.sub(r"(://[^\s?]*)\?\S*", r"\1", spec))


def expand_shards(spec: str) -> list[str]:
    """The tars that `spec` names, sorted. It is a folder, a glob, a brace pattern, or the path or URL of one tar.

    A remote folder (a URL that does not end in .tar) stays as it is, because only its index tells what it holds.
    Raises UserError if nothing is found, and for shell pipes, which are never run.
    """
    if spec.lstrip().startswith("pipe:"):
        raise UserError(f"shards {spec!r}", "shell pipes are never run; give the http(s), s3 or gs URL itself")
    spec = spec.removeprefix("file://")
    found = sorted(url for pattern in _expand_braces(spec) for url in _expand_pattern(pattern))
    twice = sorted({url for url, following in pairwise(found) if url == following})
    if twice:
        raise UserError(f"shards {spec!r}", f"they name {twice[0]} twice{_more(twice)}; name every shard once")
    missing = [url for url in found if not is_remote(url) and not Path(url).is_file()]
    if missing:
        raise UserError(f"shard {missing[0]} not found{_more(missing)}", "check the path, or the numbers in the braces")
    return found


def _more(urls: list[str]) -> str:
    """How many there are beside the first."""
    return f", and {len(urls) - 1} more" if len(urls) > 1 else ""


def _expand_braces(spec: str) -> list[str]:
    if "{" not in spec:
        return [spec]
    from webdataset.shardlists import expand_urls

    try:
        return list(expand_urls(spec))
    except (ValueError, AssertionError) as error:  # unbalanced braces; an environment variable that is not set
        raise UserError(f"shards {spec!r}", f"not a brace pattern such as name-{{000..015}}.tar ({error})") from error


def _expand_pattern(pattern: str) -> list[str]:
    if is_remote(pattern):
        if "*" in pattern and not pattern.startswith(("http://", "https://")):
            filesystem, path = _filesystem(pattern)
            return [filesystem.unstrip_protocol(match) for match in filesystem.glob(path)]
        return [pattern.rstrip("/")]
    if glob.has_magic(pattern) and not Path(pattern).exists():
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
        found = [match for match in matches if match.endswith(".tar")]
        compressed = [match for match in matches if is_compressed(match)]
    elif Path(pattern).is_dir():
        found = [str(path) for path in Path(pattern).glob("[!.]*.tar")]  # hidden files are what a killed writer left
        compressed = [str(path) for path in Path(pattern).glob("[!.]*") if is_compressed(path.name)]
    else:
        return [pattern]
    if compressed and not found:
        what = f"no shards in {pattern}, but {len(compressed)} compressed archives such as {min(compressed)}"
        raise UserError(what, "unpack them to .tar, because shards are read at offsets")
    if compressed and glob.has_magic(pattern):  # what lies in a folder, `beside.py` tells
        warn_once(
            f"{pattern}: left out: {len(compressed)} compressed archives ({min(compressed)}), to be unpacked first"
        )
    if not found:
        raise UserError(f"no shards in {pattern}", "give a folder of .tar files; `ldm-vae shards` makes them of images")
    return found


def _read_remote(url: str, offset: int, size: int) -> bytes:
    filesystem, path = _filesystem(url)

    def request() -> bytes:
        count = min(REQUEST_BYTES, end - offset)
        with _requesting():
            data: bytes = filesystem.cat_file(path, start=offset, end=offset + count)
        if len(data) > count:
            raise Missing("the server ignores byte ranges and sends the whole file; shards need one that does not")
        if not data:
            raise _Failed("an empty body")
        return data

    pieces, end = [], offset + size
    while offset < end:
        pieces.append(_retry(url, request))  # fewer bytes than asked for are kept, and the rest is asked for
        offset += len(pieces[-1])
    return b"".join(pieces)


def _remote_size(url: str) -> int:
    size: int | None = _information(url).get("size")
    if size is None:
        raise Missing("the server does not tell its size")
    return size


def _remote_version(url: str) -> list[str] | None:
    information = _information(url)
    tags = [f"{name} {information[name]}" for name in REMOTE_TAGS if information.get(name) is not None]
    return [str(information.get("size")), *tags] if tags else None


def _information(url: str) -> dict[str, Any]:
    filesystem, path = _filesystem(url)

    def request() -> dict[str, Any]:
        with _requesting():
            information: dict[str, Any] = filesystem.info(path)
        return information

    return _retry(url, request)


@contextmanager
def _requesting() -> Iterator[None]:
    """Turns whatever a file system raises into Missing or _Failed: each one of fsspec has errors of its own.

    Put nothing but a call of the file system into such a block: an error in our own code must not look like a file that
    is missing. MemoryError passes, because it says nothing about the file.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        failure = _Failed if _transient(error) else Missing
        raise failure(in_one_line(error)) from error


def _retry(url: str, request: Callable[[], ResultT]) -> ResultT:
    """Makes a request until it does not raise _Failed. Raises Unreachable after `REQUEST_TRIES` times."""
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(REQUEST_TRIES),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        retry=tenacity.retry_if_exception_type(_Failed),
        reraise=True,
    )
    try:
        return retrying(request)
    except _Failed as error:
        raise Unreachable(f"{url}: {error}") from error


def _transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # fsspec over http reports every failed request for a size as FileNotFoundError
    status = getattr(error, "status", None)  # aiohttp.ClientResponseError
    if isinstance(status, int):
        return status in TRANSIENT_STATUS or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return False
    # aiohttp has its own errors for dropped connections: ClientPayloadError, ServerDisconnectedError and so on.
    return isinstance(error, OSError | asyncio.TimeoutError) or type(error).__module__.startswith("aiohttp")


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it. fsspec keeps one for each process, also after a fork."""
    import fsspec

    protocol = url.split("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        # Slow lines have all the time they need; a minute of silence counts as a dropped connection.
        options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)}}
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        extra = {"s3": "pip install 'ldm-vae[s3]'", "gs": "pip install 'ldm-vae[gs]'"}
        remedy = extra.get(protocol, "use a path, http(s)://, s3:// or gs://")
        raise UserError(f"{url} cannot be opened ({in_one_line(error)})", remedy) from error
    return filesystem, path
