"""Files and folders that appear under their name whole, or not at all, whatever kills the writer.

Everything is written to a stage, a hidden sibling `.tmp-HOST-PID-TOKEN-NUMBER-NAME`, flushed to the disk,
then renamed. The stage of a writer that died is removed by the next writer in the same folder.

A file is replaced in one rename. A folder cannot be (POSIX renames onto empty folders only), so an old
folder of the same name first steps aside as `.replaced-NAME`; between the two renames only that name
holds it, and a reader that must find it looks there too.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_vae.errors import UserError

REPLACED = ".replaced-"  # before the name of a folder that makes way for a new one
# One host's process ids say nothing about another's writers: those count as dead after an hour of silence.
FOREIGN_STAGE_AGE = 3600.0  # seconds since the last change
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a full disk, quota or limit of size says
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TOKEN = secrets.token_hex(4)  # tells this process from a dead one with its id (containers reuse small ids)
_NUMBER = itertools.count()  # no two stages of one process are the same
_STAGE = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\d+-.+")
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Gives a path (with the suffix of `final`) to write to; renamed to `final` when the block ends well.

    Raises UserError where the disk is full or not to be written to; `final` then is what it was.
    """
    with _staged(final, None) as stage:
        yield stage
        fsync_path(stage)
        stage.replace(final)
        fsync_path(final.parent)


@contextmanager
def atomic_folder(final: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Gives an empty folder to fill; flushed and renamed to `final`, replacing it, when the block ends well.

    needed: bytes the content will take, for the message. Raises UserError where the disk is full or not to be
    written to; `final` then is what it was.
    """
    with _staged(final, needed) as stage:
        stage.mkdir()
        yield stage
        for path in stage.rglob("*"):
            fsync_path(path)
        fsync_path(stage)
        aside = final.with_name(REPLACED + final.name)
        if final.exists():
            remove_folder(aside)  # left by a kill after the second rename: superseded by `final`
            final.replace(aside)
        stage.replace(final)
        fsync_path(final.parent)
        remove_folder(aside)


def append(path: Path, text: str) -> None:
    """Adds to the end of a file, which is made where missing; for logs, which need not outlive a power cut.

    Raises UserError where the disk is full or not to be written to; the file then is what it was.
    """
    with explain_disk_errors(path), path.open("ab", buffering=0) as file:
        end, rest = file.tell(), text.encode()
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def make_folder(folder: Path) -> None:
    """mkdir -p whose new names survive a power cut. Raises UserError where a file is in the way, or no right given."""
    try:
        _make_folder(folder)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}", f"{error.strerror} ({error.filename})") from error


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, so that nobody ever sees half of it under its name."""
    stage = _stage_name(folder)
    try:
        folder.replace(stage)
    except FileNotFoundError:
        return
    _delete(stage)


def fsync_path(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some network disks cannot flush a folder
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _staged(final: Path, needed: int | None) -> Iterator[Path]:
    make_folder(final.parent)
    _clean(final.parent)
    stage = _stage_name(final)
    with explain_disk_errors(final, needed):
        try:
            yield stage
        except BaseException:
            _delete(stage)
            raise


@contextmanager
def explain_disk_errors(final: Path, needed: int | None = None) -> Iterator[None]:
    """Says in a UserError that the disk is full or not to be written to."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            size = "" if needed is None else f"{needed:,} bytes needed, "
            free = f"{shutil.disk_usage(final.parent).free:,} bytes free"
            remedy = f"{error.strerror} ({size}{free}); make room there, nothing older was touched"
            raise UserError(f"cannot write {final}", remedy) from error
        if error.errno in _NO_ACCESS:
            raise UserError(f"cannot write {final}", f"{error}; choose another folder or change its rights") from error
        raise


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)


def _stage_name(final: Path) -> Path:
    return final.with_name(f".tmp-{_HOST}-{os.getpid()}-{_TOKEN}-{next(_NUMBER)}-{final.name}")


def _clean(parent: Path) -> None:
    """Removes what dead writers left behind in `parent`."""
    for stage in parent.glob(".tmp-*"):
        if _abandoned(stage):
            _delete(stage)
    for aside in parent.glob(f"{REPLACED}*"):
        if aside.with_name(aside.name.removeprefix(REPLACED)).exists():
            _delete(aside)


def _abandoned(stage: Path) -> bool:
    owner = _STAGE.fullmatch(stage.name)
    if owner is None:
        return False  # not one of ours
    host, pid, token = owner[1], int(owner[2]), owner[3]
    if host != _HOST:
        try:
            last = max(path.stat().st_mtime for path in (stage, *stage.rglob("*")))
        except FileNotFoundError:
            return False  # its writer is at work
        return time.time() - last > FOREIGN_STAGE_AGE
    if pid == os.getpid():
        return token != _TOKEN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # alive, another user's
    return False


def _delete(path: Path) -> None:
    """As far as possible: what resists (an open file on NFS) is hidden, and the next writer tries again."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
