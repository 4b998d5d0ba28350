"""Calls on local paths. What the disk or the machine does wrong is tried again (see `retry.py`).

`Path.exists`, `Path.glob` and their like, of some versions of Python, take every error for "not there".
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ldm_vae.data.shards.retry import Forbidden, Missing, Transient, retried
from ldm_vae.errors import UserError, in_one_line
from ldm_vae.machine import REMEDY

# What tells that there is no such file: ESPIPE, that it is a pipe.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ESPIPE)
NO_ACCESS = (errno.EACCES, errno.EPERM)

ResultT = TypeVar("ResultT")


def on_disk(path: str | Path, call: Callable[[], ResultT]) -> ResultT:
    """What a call that reads at a path gives.

    Raises Missing where no file is there, Forbidden without access, and Unreachable for any other error that stays.
    """

    def request() -> ResultT:
        try:
            return call()
        except OSError as error:
            if error.errno in NOT_THERE:
                raise Missing(in_one_line(error)) from error
            if error.errno in NO_ACCESS:
                remedy = "change its rights, or run this as a user who has them"
                raise Forbidden(f"{path} may not be read ({error.strerror})", remedy) from error
            raise Transient(in_one_line(error)) from error

    return retried(str(path), REMEDY, request, watched=False)


def status(path: str | Path) -> os.stat_result | None:
    """The status of what is at a path, behind links; None if nothing is there. Raises Forbidden or Unreachable."""
    try:
        return on_disk(path, lambda: os.stat(path))  # noqa: PTH116  (a str, in most calls)
    except Missing:
        return None


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there. Raises Forbidden or Unreachable."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there. Raises Forbidden or Unreachable."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def read_file(path: str | Path) -> bytes:
    """All bytes of a file. Raises Missing, Forbidden or Unreachable."""
    return on_disk(path, Path(path).read_bytes)


def listed(folder: str | Path) -> list[str]:
    """The names in a folder, sorted. Raises Forbidden or Unreachable, and UserError if the folder is gone."""
    try:
        return sorted(on_disk(folder, lambda: os.listdir(folder)))  # noqa: PTH208  (a str, in most calls)
    except Missing as error:
        raise UserError(f"{folder} is gone ({error})", "nothing may move it meanwhile; run this again") from error


def matching(pattern: str) -> list[str]:
    """The paths that match a pattern with *, ?, [...] and **, as glob.glob gives them. Raises Forbidden or Unreachable.

    glob.glob passes over folders that cannot be read.
    """
    found = ["/"] if pattern.startswith("/") else [""]
    for part in filter(None, pattern.split("/")):
        if part == "**":
            found = [below for base in found for below in _below(base)]
        elif glob.has_magic(part):
            found = [path for base in found for path in _children(base) if _matches(path, part)]
        else:
            found = [os.path.join(base, part) for base in found]  # noqa: PTH118  (Path would drop a leading ./)
    return [path for path in found if path and status(path) is not None]


def _matches(path: str, part: str) -> bool:
    name = path.rpartition("/")[2]
    return fnmatch.fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def _below(base: str) -> Iterator[str]:
    """A folder and everything below it that is not hidden."""
    yield base
    for path in _children(base):
        if not path.rpartition("/")[2].startswith("."):
            yield from _below(path)


def _children(base: str) -> list[str]:
    """What is in a folder; nothing if it is none."""
    if not is_folder(base or "."):
        return []
    return [os.path.join(base, name) for name in listed(base or ".")]  # noqa: PTH118
