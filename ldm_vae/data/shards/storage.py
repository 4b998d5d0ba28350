"""Reads ranges of bytes from local files and from servers, and finds the shards that a path, pattern or URL names."""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path

from ldm_vae.data.shards.disk import is_file, is_folder, listed, matching, on_disk, read_file, status
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.data.shards.made import is_made, made_folder
from ldm_vae.data.shards.remote import read_remote, remote_matches, remote_size, remote_version
from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.urls import is_compressed, is_remote, is_tar
from ldm_vae.errors import UserError
from ldm_vae.passwords import keep_aside, without_secrets
from ldm_vae.printable import counted

OPEN_FILES = 64  # local files kept open


class RangeReader:
    """Reads ranges of files and URLs. It holds open files, so each process makes its own.

    reads: how many ranges were read; a remote one counts once, however many requests it took.
    """

    def __init__(self) -> None:
        self.reads = 0
        self._files: OrderedDict[str, int] = OrderedDict()  # path -> descriptor, the least recently used first

    def read(self, url: str, offset: int, size: int) -> bytes:
        """The `size` bytes from `offset` on, never fewer. Raises Missing, Forbidden or Unreachable."""
        self.reads += 1
        return read_remote(url, offset, size) if is_remote(url) else self._read_local(url, offset, size)

    def size(self, url: str) -> int:
        """How many bytes the file has. Raises Missing, Forbidden or Unreachable."""
        return remote_size(url) if is_remote(url) else on_disk(url, Path(url).stat).st_size

    def version(self, url: str) -> list[str] | None:
        """What changes whenever the file does, and is had without reading it; None where a server gives no tag.

        Size and times of a local file, size and the server's tag of a remote one. Raises Missing, Forbidden or
        Unreachable.
        """
        if is_remote(url):
            return remote_version(url)
        found = on_disk(url, Path(url).stat)
        return [str(part) for part in (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)]

    def close(self) -> None:
        while self._files:
            with suppress(OSError):  # nothing was written to it
                os.close(self._files.popitem()[1])

    def _read_local(self, path: str, offset: int, size: int) -> bytes:
        def read() -> list[bytes]:
            pieces, at, end = [], offset, offset + size
            try:
                descriptor = self._open(path)
                while at < end and (piece := os.pread(descriptor, end - at, at)):
                    pieces.append(piece)
                    at += len(piece)
            except OSError:
                self.close()  # a file of a server may have to be opened anew, and there may be too many
                raise
            return pieces

        data = b"".join(on_disk(path, read))
        if len(data) < size:
            raise Missing(f"the file ends at byte {offset + len(data)}, {size - len(data)} bytes too early")
        return data

    def _open(self, path: str) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        # Without O_NONBLOCK, opening a pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._files[path] = descriptor
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor


def read_whole(url: str) -> bytes:
    """All bytes of a file or URL. Raises Missing, Forbidden or Unreachable."""
    if not is_remote(url):
        return read_file(url)
    with closing(RangeReader()) as reader:
        return reader.read(url, 0, reader.size(url))


def expand_shards(spec: str) -> list[str]:
    """The tars that `spec` names, sorted: a folder, a glob, a brace pattern, the path or URL of one tar, or `made:...`.

    A remote folder (a URL whose path does not end in .tar) stays as it is, because only its index tells what it holds.
    Raises UserError if nothing is found, and for shell pipes, which are never run.
    """
    if spec.lstrip().startswith("pipe:"):
        raise UserError(f"shards {spec!r}", "shell pipes are never run; give the http(s), s3 or gs URL itself")
    spec = str(made_folder(spec)) if is_made(spec) else keep_aside(spec.removeprefix("file://"))
    found = sorted(url for pattern in _expand_braces(spec) for url in _expand_pattern(pattern))
    twice = sorted({url for url, following in pairwise(found) if url == following})
    if twice:
        what = f"they name {without_secrets(twice[0])} twice{_more(twice)}; name every shard once"
        raise UserError(f"shards {without_secrets(spec)!r}", what)
    missing = [url for url in found if not is_remote(url) and not is_file(url)]
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
        raise UserError(
            f"shards {without_secrets(spec)!r}", f"not a brace pattern such as name-{{000..015}}.tar ({error})"
        ) from error


def _expand_pattern(pattern: str) -> list[str]:
    if is_remote(pattern):
        if "*" in pattern and not pattern.startswith(("http://", "https://")):
            return remote_matches(pattern)
        return [pattern.rstrip("/")]
    if glob.has_magic(pattern) and status(pattern) is None:
        matches = matching(pattern)
        found = [match for match in matches if is_tar(match)]
        compressed = [match for match in matches if is_compressed(match)]
    elif is_folder(pattern):
        there = [str(Path(pattern, name)) for name in listed(pattern) if not name.startswith(".")]
        found = [path for path in there if is_tar(path)]  # hidden files are what a killed writer left
        compressed = [path for path in there if is_compressed(path)]
    else:
        return [pattern]
    if compressed and not found:
        what = f"no shards in {pattern}, but {counted(len(compressed), 'compressed archive')} such as {min(compressed)}"
        raise UserError(what, "unpack them to .tar, because shards are read at offsets")
    if compressed and glob.has_magic(pattern):  # what lies in a folder, `beside.py` tells
        archives = counted(len(compressed), "compressed archive")
        warn_once(f"{pattern}: left out: {archives} ({min(compressed)}), to be unpacked first")
    if not found:
        raise UserError(f"no shards in {pattern}", "give a folder of .tar files; `ldm-vae shards` makes them of images")
    return found
