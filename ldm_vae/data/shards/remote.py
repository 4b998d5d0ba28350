"""Reads ranges of bytes over http(s), and from s3, gs, hf and whatever else fsspec opens.

A range is read in requests of `REQUEST_BYTES`, and what has arrived is kept. After a dropped connection, a short answer
or a status of 429 or 5xx, the next request asks for the missing bytes only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

from ldm_vae.data.shards.retry import Forbidden, Missing, Transient, Unreachable, retried
from ldm_vae.data.shards.urls import host_of, is_signed
from ldm_vae.errors import UserError, in_one_line
from ldm_vae.extras import Extra, require
from ldm_vae.passwords import NEVER_STORED, with_secrets, without_secrets

REQUEST_BYTES = 2**20  # bytes of one request; a dropped connection loses no more
# What http, S3 and GCS tell a version of a file by, as fsspec names it.
REMOTE_TAGS = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified")
GONE_STATUS = (404, 410, 416)  # no such file, or it ends before the range
NO_ACCESS_STATUS = (401, 403, 407)
TRANSIENT_STATUS = (408, 425, 429)  # with 5xx: answers that may be different next time
REMEDY = "the server or the network fails, not the data: check the network and the address, then run it again"
NO_RANGES = "the server ignores byte ranges and sends the whole file"
IN_A_URL = "%/:=&?~#+!$,;'@()*[]"  # beside letters and digits, what stays as it is in a URL that has a query

BUCKETS: dict[str, Extra] = {"s3": "s3", "gs": "gs"}  # protocol -> the extra that fsspec needs for it

ResultT = TypeVar("ResultT")


def read_remote(url: str, offset: int, size: int) -> bytes:
    """The `size` bytes from `offset` on, never fewer. Raises Missing, Forbidden or Unreachable."""
    filesystem, path = open_filesystem(url)

    def request() -> bytes:
        count = min(REQUEST_BYTES, end - offset)
        with _judged(url):
            data = _read_range(filesystem, path, offset, offset + count)
        if len(data) > count:
            raise _without_ranges(url)
        if not data:
            raise Transient("an empty body")
        return data

    pieces, end = [], offset + size
    while offset < end:
        # Fewer bytes than asked for are kept, and the rest is asked for.
        pieces.append(retried(host_of(url), REMEDY, request, watched=True))
        offset += len(pieces[-1])
    return b"".join(pieces)


def remote_size(url: str) -> int:
    """How many bytes the file has. Raises Missing, Forbidden or Unreachable."""
    size: int | None = _information(url).get("size")
    if size is None:
        remedy = "use a server that does, or copy the shards to a disk"
        raise UserError(f"{without_secrets(url)}: the server does not tell its size", remedy)
    return size


def remote_version(url: str) -> list[str] | None:
    """What changes whenever the file does; None where the server gives no tag. Raises as `remote_size` does."""
    information = _information(url)
    tags = [f"{name} {information[name]}" for name in REMOTE_TAGS if information.get(name) is not None]
    return [str(information.get("size")), *tags] if tags else None


def remote_matches(pattern: str) -> list[str]:
    """The URLs that match a pattern, on file systems that list. Raises Forbidden or Unreachable."""
    filesystem, path = open_filesystem(pattern)
    try:
        found = _asked(pattern, lambda: filesystem.glob(path))
    except Missing:
        return []
    return [filesystem.unstrip_protocol(match) for match in found]


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it. fsspec keeps one for each process, also after a fork."""
    import fsspec

    url = with_secrets(url)
    protocol = url.split("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        # Slow lines have all the time they need; a minute of silence counts as a dropped connection.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
        # trust_env: the proxies of http_proxy, https_proxy and no_proxy. A signed URL is sent to the letter, also where
        # a server redirects to it, or the signature would be that of another one.
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True, "requote_redirect_url": False}}
        if is_signed(url):
            options["encoded"], url = True, quote(url, safe=IN_A_URL)
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        if protocol in BUCKETS:
            require(BUCKETS[protocol], url)
        what = f"{without_secrets(url)} cannot be opened ({without_secrets(in_one_line(error))})"
        raise UserError(what, "use a path, http(s)://, s3:// or gs://") from error
    return filesystem, path


def _read_range(filesystem: Any, path: str, start: int, end: int) -> bytes:
    """One request for the bytes from `start` up to `end`, and for no more than these."""
    from fsspec.caching import BaseCache
    from fsspec.implementations.http import HTTPFileSystem
    from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

    data: bytes
    if isinstance(filesystem, HTTPFileSystem):
        data = _read_http(filesystem, path, start, end)
    elif filesystem.async_impl or type(filesystem).cat_file is not AbstractFileSystem.cat_file:
        data = filesystem.cat_file(path, start=start, end=end)
    else:  # it opens files, and these read megabytes ahead
        with filesystem.open(path, "rb") as file:
            if isinstance(file, AbstractBufferedFile):
                file.cache = BaseCache(file.blocksize, file._fetch_range, file.size)
            file.seek(start)
            data = file.read(end - start)
    return data


def _read_http(filesystem: Any, url: str, start: int, end: int) -> bytes:
    """A range over http. Of a server that sends the whole file instead, only the head of its answer is read."""
    from fsspec.asyn import sync

    async def answer() -> bytes:
        session = await filesystem.set_session()
        # identity: in a compressed body, offsets mean nothing.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with session.get(filesystem.encode_url(url), headers=headers) as response:
            response.raise_for_status()
            if response.status != 206 and not (start == 0 and (response.content_length or end + 1) <= end):
                raise _without_ranges(url)
            first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if response.status == 206 and first is not None and int(first[1]) != start:
                raise Transient(f"bytes from {first[1]} on, not from {start}")
            body: bytes = await response.read()
            return body

    found: bytes = sync(filesystem.loop, answer)
    return found


def _without_ranges(url: str) -> UserError:
    what = f"{without_secrets(url)}: {NO_RANGES}"
    return UserError(what, "use a server that serves ranges, or copy the shards to a disk")


def _information(url: str) -> dict[str, Any]:
    filesystem, path = open_filesystem(url)
    found: dict[str, Any] = _asked(url, lambda: filesystem.info(path))
    return found


def _asked(url: str, call: Callable[[], ResultT]) -> ResultT:
    """What a call of a file system gives, made again where that may help. Raises Missing, Forbidden or Unreachable."""

    def request() -> ResultT:
        with _judged(url):
            return call()

    return retried(host_of(url), REMEDY, request, watched=True)


@contextmanager
def _judged(url: str) -> Iterator[None]:
    """Turns whatever a file system raises into what it means: each one of fsspec has errors of its own.

    Put nothing but a call of the file system into such a block: an error in our own code means something else.
    """
    try:
        yield
    except (MemoryError, UserError, Missing, Transient):
        raise
    except Exception as error:
        raise _verdict(url, error) from error


def _verdict(url: str, error: BaseException) -> Exception:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None and _of_network(error.__cause__):
        error = error.__cause__  # fsspec over http reports every failed request for a size as FileNotFoundError
    reason, status = without_secrets(in_one_line(error)), _status(error)
    if status in GONE_STATUS or isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return Missing(reason)
    if status in NO_ACCESS_STATUS or isinstance(error, PermissionError):
        remedy = f"check the address; {NEVER_STORED}; a signed URL ends after a time: make it anew"
        return Forbidden(f"{without_secrets(url)} may not be read ({reason})", remedy)
    if _of_network(error) and (status is None or status in TRANSIENT_STATUS or status >= 500):
        return Transient(reason)
    return Unreachable(f"{without_secrets(url)} cannot be read ({reason})", REMEDY)


def _of_network(error: BaseException) -> bool:
    """Whether an error is of the system, or one of the packages' own for dropped connections and answers."""
    # Such as aiohttp's ClientPayloadError and ServerDisconnectedError
    return isinstance(error, OSError | asyncio.TimeoutError) or type(error).__module__.startswith(("aiohttp", "http"))


def _status(error: BaseException) -> int | None:
    """The status of an answer: aiohttp has it in the error, httpx and requests in the error's response."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            if isinstance(found := getattr(holder, name, None), int) and 100 <= found < 600:
                return found
    return None
