"""Reads the members of a tar from its headers alone, and checks everything that can be wrong with a tar.

`tarfile` parses one header block. How blocks follow each other is parsed here, because `tarfile` mistakes a damaged
header in the middle for the end of the archive, and reads long-name records of any size into memory.
Format: POSIX.1-2001 pax and GNU tar, https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from ldm_vae.data.shards.retry import Missing
from ldm_vae.data.shards.storage import RangeReader
from ldm_vae.data.shards.urls import is_remote

TAR_BLOCK = 512  # bytes, the unit of a tar
MAX_RECORD = 2**16  # bytes of a long-name or pax record; more count as an attack
HEADER_BYTES = 2**11  # bytes before a content that nearly always hold its header, and the record of a longer name
LOCAL_AHEAD, REMOTE_AHEAD = 2**12, 2**23  # bytes fetched at once while headers are read

# First bytes of what is mistaken for a tar -> what it is, and what to do.
_MAGIC = {
    b"\x1f\x8b": "gzip: unpack it with `gzip -dc FILE > NEW.tar`",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it with `zstd -dc FILE > NEW.tar`",
    b"BZh": "bzip2: unpack it with `bzip2 -dc FILE > NEW.tar`",
    b"\xfd7zXZ\0": "xz: unpack it with `xz -dc FILE > NEW.tar`",
    b"\x04\x22\x4d\x18": "lz4: unpack it with `lz4 -dc FILE > NEW.tar`",
    b"PK\x03\x04": "zip: unpack it, and pack its images with `ldm-vae shards`",
    b"version https://git-lfs": "a pointer of git LFS: fetch the file with `git lfs pull`",
    b"<": "a web page: download the shard again",
}
_NAME_RECORDS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_RECORDS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_WITHOUT_CONTENT = (tarfile.DIRTYPE, *(kind for kind in _KINDS if kind != tarfile.GNUTYPE_SPARSE))


class BrokenTar(Exception):
    """The rest of the archive cannot be read."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    name: its path in the archive.
    offset: where its content starts, in bytes.
    size: bytes of its content.
    problem: why it must not be used; None if it may be.
    """

    name: str
    offset: int
    size: int
    problem: str | None = None


def whole_blocks(size: int) -> int:
    """Bytes rounded up to blocks, as the padding behind a content does."""
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def member_size(size: int) -> int:
    """Bytes of a member with its header and padding.

    size: bytes of its content.
    """
    return TAR_BLOCK + whole_blocks(size)


def tar_size(members: Iterable[int]) -> int:
    """Bytes of a tar whose members have so many bytes each, and names that need no record of their own.

    Names of up to 100 ASCII characters need none.
    """
    filled = sum(map(member_size, members)) + 2 * TAR_BLOCK  # with the end mark
    return -(-filled // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def members(url: str, reader: RangeReader) -> Iterator[Member]:
    """The files in a tar, in order, without folders. Memory does not grow with the archive.

    Raises BrokenTar where the archive stops making sense, after it gave the members before that place.
    """
    archive = _Blocks(url, reader)
    start = archive.read(0, min(TAR_BLOCK, archive.bytes))
    other = next((text for magic, text in _MAGIC.items() if start.startswith(magic)), None)
    if other is not None and not _is_header(start):
        raise BrokenTar(f"no tar, but {other}")
    position, record_name, pax_name, pax_size = 0, None, None, None
    while True:
        block = archive.read(position, TAR_BLOCK)
        if block.count(0) == TAR_BLOCK:
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            at = "no tar" if position == 0 else f"no member at byte {position}, where one should start"
            raise BrokenTar(f"{at} ({error})") from error
        size = info.size if pax_size is None else pax_size
        if size < 0:
            raise BrokenTar(f"member {info.name!r} of {size} bytes")
        content, following = position + TAR_BLOCK, position + member_size(size)
        if info.type in _NAME_RECORDS or info.type in _PAX_RECORDS:
            if info.size > MAX_RECORD:
                raise BrokenTar(f"a header record of {info.size} bytes at byte {position}")
            record = archive.read(content, info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                record_name = record.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax_name, pax_size = _parse_pax(record, position)
        else:
            name = pax_name or record_name or info.name
            record_name = pax_name = pax_size = None
            if info.type in _WITHOUT_CONTENT:  # even if the header claims a size
                size, following = 0, content
            if following > archive.bytes:
                raise BrokenTar(f"truncated: member {name!r} ends at byte {content + size} of {archive.bytes}")
            if info.type != tarfile.DIRTYPE:
                yield Member(name, content, size, _problem(name, info.type))
        position = following


def verify_header(before: Callable[[int], bytes], key: str, field: str, size: int) -> str | None:
    """Why the header before a member's content does not belong to this member; None if it does.

    before: gives the last so many bytes of the archive before the content, fewer only where it has no more.
    key, field: what the name is made of; a field is in lower case, and stands for any case.
    size: bytes of the content.
    """
    known = before(HEADER_BYTES)
    try:
        found = _described(known)
        if len(known) == HEADER_BYTES and (found.cut or not _same_name(found.name, key, field)):
            found = _described(before(2 * TAR_BLOCK + MAX_RECORD))  # the record with the name may be a long one
    except tarfile.HeaderError as error:
        return f"no member where the index says ({error})"
    if not _same_name(found.name, key, field):
        return f"the index says {f'{key}.{field}' if field else key!r}, the shard has {found.name!r}"
    if found.kind in _WITHOUT_CONTENT:
        return f"the index says a file, the shard has {_KINDS.get(found.kind, 'a folder')}"
    return None if found.size == size else f"the index says {size} bytes, the shard has {found.size}"


def _same_name(name: str, key: str, field: str) -> bool:
    return name[: len(key)] == key and name[len(key) :].lower() in ((f".{field}",) if field else ("", "."))


class _Described(NamedTuple):
    """What a header says of a member, with the records before it.

    cut: whether the name may be a part or a replacement of one in a record that was not seen.
    """

    name: str
    size: int
    kind: bytes
    cut: bool


def _described(before: bytes) -> _Described:
    """Reads the header at the end of `before`, and the records right before it.

    Names that are long or not ASCII stand in a record, and the header then holds a part of the name, which may be equal
    for several members.
    """
    info = tarfile.TarInfo.frombuf(before[-TAR_BLOCK:], "utf-8", "surrogateescape")
    record_name, pax = None, None
    end = len(before) - TAR_BLOCK
    while (found := _record_before(before, end)) is not None:
        kind, record, end = found
        if kind == tarfile.GNUTYPE_LONGNAME:
            record_name = record_name or record.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) and pax is None:
            with suppress(BrokenTar):  # then these bytes are no record
                pax = _parse_pax(record, end)
    pax_name, pax_size = pax or (None, None)
    recorded = pax_name or record_name
    length = len(info.name.encode("utf-8", "surrogateescape"))
    cut = recorded is None and (length == tarfile.LENGTH_NAME or "?" in info.name)
    return _Described(recorded or info.name, info.size if pax_size is None else pax_size, info.type, cut)


def _record_before(data: bytes, end: int) -> tuple[bytes, bytes, int] | None:
    """(kind, content, where its header starts) of the record that ends at byte `end` of `data`; None without one."""
    for start in range(end - 2 * TAR_BLOCK, -1, -TAR_BLOCK):
        kind = data[start + 156 : start + 157]
        if kind not in _NAME_RECORDS and kind not in _PAX_RECORDS:  # looked at first, because it takes less time
            continue
        try:
            size = tarfile.TarInfo.frombuf(data[start : start + TAR_BLOCK], "utf-8", "surrogateescape").size
        except tarfile.HeaderError:
            continue
        content = start + TAR_BLOCK
        if start + member_size(size) == end:
            return kind, data[content : content + size], start
    return None


def _is_header(block: bytes) -> bool:
    """Whether these bytes are a header, such as that of a member whose name begins with <."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Blocks:
    """Serves small reads at rising offsets from a buffer that is filled in larger reads."""

    def __init__(self, url: str, reader: RangeReader) -> None:
        self.url, self.reader = url, reader
        self.bytes = reader.size(url)
        self.ahead = REMOTE_AHEAD if is_remote(url) else LOCAL_AHEAD
        self.start, self.buffer = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.bytes:
            what = "empty file" if self.bytes == 0 else f"cut off at byte {self.bytes}: the end mark is missing"
            raise BrokenTar(what)
        if not self.start <= offset <= offset + size <= self.start + len(self.buffer):
            count = min(max(size, self.ahead), self.bytes - offset)
            try:
                self.start, self.buffer = offset, self.reader.read(self.url, offset, count)
            except Missing as error:  # the file shrank while it was read
                raise BrokenTar(str(error)) from error
        return self.buffer[offset - self.start : offset - self.start + size]


def _parse_pax(record: bytes, position: int) -> tuple[str | None, int | None]:
    """(path, size) in a record of `LENGTH KEY=VALUE\\n` entries; None for what it does not hold."""
    values: dict[bytes, bytes] = {}
    try:
        while record.rstrip(b"\0"):
            length = int(record.split(b" ", 1)[0])
            entry = record[:length]
            key, equals, value = entry.split(b" ", 1)[1].partition(b"=")
            if not equals or not entry.endswith(b"\n"):
                raise ValueError(entry[:40])
            values[key] = value[:-1]
            record = record[length:]
        path, size = values.get(b"path"), values.get(b"size")
        if any(key.startswith(b"GNU.sparse") for key in values):
            raise BrokenTar(f"a sparse file at byte {position}")
        name = None if path is None else path.decode("utf-8", "surrogateescape")
        return name, None if size is None else int(size)
    except (ValueError, IndexError) as error:
        raise BrokenTar(f"a damaged pax record at byte {position} ({error})") from error


def _problem(name: str, kind: bytes) -> str | None:
    if kind in _KINDS:
        return f"{_KINDS[kind]}, which is never followed"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return "a path that leaves its folder"
    return None
