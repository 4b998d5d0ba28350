"""Names of stages, `.tmp-HOST-PID-TOKEN-NUMBER-NAME`, and whether the writer of one is alive.

A writer holds a lock on `.tmp-HOST-PID-TOKEN-NUMBER.lock`, which is there before its stage and goes after it. The
system frees that lock when the writer ends, so a lock that can be taken tells of a dead one, whatever host name,
process number or clock say. So it is among all containers on one kernel. Some network disks keep locks to each
machine, so a stage of another machine must also have been silent for an hour.

Stages without a lock (of versions up to 0.1, or where the file system has none) go by the process number, where it is
one of the same kernel and container. All others count as abandoned after an hour without a change.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_vae.locks import Lockable
from ldm_vae.writers import KERNEL, is_dead, seconds_unchanged, signature

# Without an end to it, stages would pile up for ever on clusters, where a restarted job has another host.
FOREIGN_STAGE_AGE = 3600.0  # seconds since the last change
_STAGE = re.compile(r"(\.tmp-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\d+)(-.+|\.lock)", re.DOTALL)


def stage_name(final: Path) -> Path:
    """A new hidden sibling of `final`."""
    return final.with_name(f".tmp-{signature()}-{final.name}")


@contextmanager
def live_stage(final: Path) -> Iterator[Path]:
    """The name of a stage, whose lock is held until the block ends. The stage must be gone by then."""
    stage, file = _locked(final)
    try:
        yield stage
    finally:
        if file is not None and file.descriptor is not None:  # else it is the parent's, and this a forked child
            with suppress(OSError):  # the next writer removes it; an earlier error is the one to tell
                file.path.unlink()
            file.close()


def _locked(final: Path) -> tuple[Path, Lockable | None]:
    """A stage with its lock; None where the file system has no locks."""
    while True:
        stage = stage_name(final)
        file = Lockable(_lock_of(stage), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            assert file.descriptor is not None
            os.write(file.descriptor, KERNEL.encode())
            taken = file.take(fcntl.LOCK_EX)
            if taken and file.linked():
                return stage, file
        except BaseException:
            _give_up(file)
            raise
        _give_up(file)
        if taken is None:
            return stage, None
        # Another writer came between, and took the lock for one of a dead process. It never does so twice in a row.


def _give_up(file: Lockable) -> None:
    with suppress(OSError):
        file.path.unlink()
    file.close()


def is_stage_lock(path: Path) -> bool:
    """Whether a path is named as the lock of a stage."""
    name = _STAGE.fullmatch(path.name)
    return name is not None and name[5] == ".lock"


def is_abandoned(path: Path) -> bool:
    """Whether a path is a stage, or the lock of one, whose writer is dead."""
    with abandoned(path) as dead:
        return dead


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """As `is_abandoned`. In the block nobody can take the lock, so that what is removed there is nobody's."""
    name = _STAGE.fullmatch(path.name)
    if name is None:
        yield False
        return
    try:
        lock = Lockable(_lock_of(path), os.O_RDONLY)  # it may be another user's
    except (FileNotFoundError, PermissionError):
        lock = None
    try:
        yield _is_dead(path, name[2], int(name[3]), name[4], lock)
    finally:
        if lock is not None:
            lock.close()


def _is_dead(path: Path, host: str, pid: int, token: str, lock: Lockable | None) -> bool:
    if lock is not None:
        assert lock.descriptor is not None
        taken = lock.take(fcntl.LOCK_SH)  # needs no right to write, even on NFS
        if taken is False:
            return False
        if taken and os.read(lock.descriptor, len(KERNEL) + 1) == KERNEL.encode():
            return True
    dead = is_dead(host, pid, token)
    if dead is not None:
        return dead
    try:
        return seconds_unchanged(path) > FOREIGN_STAGE_AGE
    except FileNotFoundError:
        return False  # it is just being renamed or removed


def _lock_of(path: Path) -> Path:
    name = _STAGE.fullmatch(path.name)
    assert name is not None
    return path.with_name(f"{name[1]}.lock")
