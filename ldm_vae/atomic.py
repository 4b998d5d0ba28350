"""Writes files and folders that are either whole or absent under their name, whatever kills the writer.

Everything is first written to a stage, a hidden sibling `.tmp-HOST-PID-TOKEN-NUMBER-NAME`, then flushed to the disk,
then renamed. The next writer in the same folder removes the stages of writers that died: `stages.py` tells them from
those that live.

One rename replaces a file. It cannot replace a folder, because POSIX renames onto empty folders only. Linux exchanges
the names of two folders in one step. Where the file system cannot (network disks), the old folder is first renamed to
`.replaced-NAME`. Between the two renames that is its only name: a reader that must find the folder looks there, too,
and the next writer gives it back its name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ldm_vae.errors import UserError
from ldm_vae.stages import abandoned, is_abandoned, is_stage_lock, live_stage, stage_name
from ldm_vae.system import reading

REPLACED = ".replaced-"  # precedes the name of a folder that makes way for a new one
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, a limit of the file size
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path makes one slash of two; a drive (C:/) has one letter
_AT_CURRENT, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag of renameat2, from the headers of Linux
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Gives a path to write a file to, with the suffix of `final`. It is renamed to `final` if the block ends well.

    Where `final` is a link, the link stays and the file that it leads to is replaced.
    Raises UserError if the disk is full or may not be written to. `final` then stays as it was.
    """
    target = _behind_links(final)
    if target.is_dir():
        raise UserError(f"{final} is a folder, and a file is to have that name", "move it, or give another name")
    with _staged(target.with_name(final.name), None) as stage:
        yield stage
        fsync_path(stage)
        stage.replace(target)
        fsync_path(target.parent)


@contextmanager
def atomic_folder(final: Path, *, ours: Collection[str] = (), needed: int | None = None) -> Iterator[Path]:
    """Gives an empty folder to fill. It is flushed and renamed to `final`, replacing it, if the block ends well.

    Where `final` is a link to a folder, the link stays and that folder is replaced.

    ours: what an earlier `final` may hold, as in `refuse_foreign`.
    needed: bytes that the content will take, for the message.
    Raises UserError if `final` holds anything else, or if the disk is full or may not be written to. `final` then stays
    as it was.
    """
    refuse_foreign(final, ours)
    final = _behind_links(final)
    with _staged(final, needed) as stage:
        stage.mkdir()
        yield stage
        for path in stage.rglob("*"):
            fsync_path(path)
        fsync_path(stage)
        refuse_foreign(final, ours)  # once more: writing may have taken hours
        aside = final.with_name(REPLACED + final.name)
        if not final.exists():
            stage.replace(final)
        elif _exchange(stage, final):
            aside = stage  # this name has the old folder now
        else:
            _replace_in_two(stage, final, aside)
        fsync_path(final.parent)
        remove_folder(aside)


def _replace_in_two(stage: Path, final: Path, aside: Path) -> None:
    """Renames `final` to `aside` and `stage` to `final`, or leaves both as they were."""
    remove_folder(aside)  # a writer was killed after its second rename: `final` is newer
    final.replace(aside)
    try:
        stage.replace(final)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            aside.replace(final)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges the names of two folders in one step. False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_CURRENT, os.fsencode(one), _AT_CURRENT, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), str(other))


def refuse_foreign(folder: Path, ours: Collection[str]) -> None:
    """Raises UserError if `folder` could not be replaced as a whole, or holds what would be lost then.

    Where a writer was killed between two renames, first gives back its name to the folder that it replaced.

    folder: it may be missing. Stages of dead writers in it don't count.
    ours: patterns of what may be lost, such as "*.png" or "records/*.json"; * matches within one name. No link may.
    """
    real = folder.resolve()
    aside = real.with_name(REPLACED + real.name)
    if aside.is_dir() and not real.exists():
        aside.replace(real)
    if not real.is_dir():
        if real.exists():
            raise UserError(f"{folder} exists and is no folder", "give the name of a new folder")
        return
    if real.is_mount() or Path.cwd().is_relative_to(real):
        kind = "a disk of its own" if real.is_mount() else "the current folder, or holds it"
        raise UserError(f"{folder} is {kind}, and cannot be replaced", "give the name of a new folder in it")
    with explain_disk_errors(real):
        other = next(find_foreign(real, ours), None)
    if other is not None:
        what = f"{folder} holds {other.relative_to(real)}, which would be lost"
        raise UserError(what, "give the name of a new folder, or move that elsewhere")


def find_foreign(folder: Path, ours: Collection[str]) -> Iterator[Path]:
    """What is in `folder` and is not named by `ours`, as in `refuse_foreign`. Of a folder among it, nothing below."""
    for path in sorted(folder.iterdir()):
        if is_abandoned(path):
            continue
        inside = [
            rest for first, _, rest in (pattern.partition("/") for pattern in ours) if fnmatchcase(path.name, first)
        ]
        if path.is_symlink() or not (any(inside) if path.is_dir() else "" in inside):
            yield path
        elif path.is_dir():
            yield from find_foreign(path, inside)


def append(path: Path, text: str) -> None:
    """Appends to a file, which is made if it is missing. Meant for logs, which need not survive a power cut.

    Raises UserError if the disk is full or may not be written to. The file then stays as it was.
    """
    with explain_disk_errors(path), path.open("ab", buffering=0) as file:
        end, rest = file.tell(), text.encode()
        try:
            while rest:  # a disk that is nearly full writes only a part
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def require_writable(final: Path) -> None:
    """Raises UserError if `final` could not be written: tried before the work, so that its result is not lost.

    Makes a file for a moment, in the nearest folder that exists, and no folder.
    """
    refuse_url(final)
    if final.is_dir():
        raise UserError(f"{final} is a folder", "give the name of a file")
    _try_folder(final.absolute().parent)


def require_writable_folder(folder: Path, ours: Collection[str]) -> None:
    """Raises UserError if `atomic_folder(folder, ours=ours)` could not be written: tried before the work."""
    refuse_url(folder)
    refuse_foreign(folder, ours)
    _try_folder(folder.absolute().parent)


def refuse_url(path: Path) -> None:
    """Raises UserError for the URL of a bucket or server, which would become a folder `s3:` on this disk."""
    if _URL.match(str(path)):
        url = str(path).replace(":/", "://", 1)
        raise UserError(f"{url} is a URL, and outputs are written to disks", "give a local path and copy it from there")


def _try_folder(folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    stage = stage_name(folder / "trial")
    try:
        with explain_disk_errors(folder / stage.name):
            stage.touch()
            stage.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot make a file in {folder}", f"{error.strerror}; give another name") from error


def make_folder(folder: Path) -> None:
    """Like mkdir -p, but new names survive a power cut.

    Raises UserError if a file is in the way, without access, and for a URL.
    """
    refuse_url(folder)
    try:
        _make_folder(folder)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}", f"{error.strerror} ({error.filename})") from error


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it exists, so that nobody ever sees half of it under its name."""
    stage = stage_name(folder)
    try:
        folder.replace(stage)
    except FileNotFoundError:
        return
    _delete(stage)


def fsync_path(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
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
    remove_abandoned(final.parent)
    writer = os.getpid()
    with explain_disk_errors(final, needed), live_stage(final) as stage:
        try:
            yield stage
        except BaseException:
            if os.getpid() == writer:  # else a forked child fails, and its parent writes on
                _delete(stage)
            raise


@contextmanager
def explain_disk_errors(final: Path, needed: int | None = None) -> Iterator[None]:
    """Raises UserError in place of the errors of a full or read-only disk. Other errors name the file.

    needed: bytes, for the message.
    """
    try:
        with reading(final):
            yield
    except OSError as error:
        if error.errno in NO_ROOM:
            size = "" if needed is None else f"{needed:,} bytes needed, "
            with suppress(OSError):  # the first error is the one to tell
                size += f"{shutil.disk_usage(final.parent).free:,} bytes free, "
            remedy = f"{error.strerror} ({size}nothing older was touched); make room there"
            raise UserError(f"cannot write {final}", remedy) from error
        if error.errno in NO_ACCESS:
            raise UserError(f"cannot write {final}", f"{error}; choose another folder or change its rights") from error
        raise


def _behind_links(final: Path) -> Path:
    """Where a link leads. Any other path stays as it was given, for messages."""
    return final.resolve() if final.is_symlink() or final.name in ("", "..") else final


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_path(folder.parent)


def remove_abandoned(parent: Path) -> None:
    """Removes what dead writers left in `parent`. Each new writer there does so, too."""
    for stage in sorted(parent.glob(".tmp-*"), key=is_stage_lock):  # a lock goes after its stage
        with abandoned(stage) as dead:
            if dead:
                _delete(stage)
    for aside in parent.glob(f"{REPLACED}*"):
        if aside.with_name(aside.name.removeprefix(REPLACED)).exists():
            _delete(aside)


def _delete(path: Path) -> None:
    """Deletes what can be deleted. What can't (an open file on NFS) is hidden, and the next writer tries again."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
