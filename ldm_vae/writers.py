"""Who writes a hidden file, and whether that process lives as far as its number and the time tell; locks tell more.

A process number means something only within one start of one kernel, and there within one namespace (a container), so
HOST is made of all three. Times are compared by the clock of the file system, because the clocks of hosts differ.
"""

from __future__ import annotations

import itertools
import os
import secrets
import socket
import zlib
from contextlib import suppress
from pathlib import Path


def _start_of_kernel() -> str:
    """The same for all processes and containers on one kernel. Where the system has none, the name of the host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _namespace() -> str:
    """Of process numbers. Containers have one each."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


KERNEL = _start_of_kernel()
HOST = f"{zlib.crc32(f'{socket.gethostname()} {KERNEL} {_namespace()}'.encode()):08x}"
TOKEN = secrets.token_hex(4)  # tells this process from a dead one with its number (containers reuse small ones)
_NUMBER = itertools.count()


def signature() -> str:
    """`HOST-PID-TOKEN-NUMBER`, never the same again."""
    return f"{HOST}-{os.getpid()}-{TOKEN}-{next(_NUMBER)}"


def is_dead(host: str, pid: int, token: str) -> bool | None:
    """Whether the process that has signed so is dead. None for one elsewhere, of which this one knows nothing."""
    if host != HOST:
        return None
    if pid == os.getpid():
        return token != TOKEN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # alive, another user's; or a name that no process of ours has made
    return False


def seconds_unchanged(path: Path) -> float:
    """Seconds since the last change of a file, or of anything in a folder, by the clock of its file system.

    A file that others gave a time in the future counts from that moment on. Where the clock cannot be read, because
    nothing can be written there, no time has passed. Raises FileNotFoundError.
    """
    changed = max(min(found.st_mtime, found.st_ctime) for found in (p.lstat() for p in (path, *path.rglob("*"))))
    now = _now_at(path.parent)
    return 0.0 if now is None else now - changed


def _now_at(folder: Path) -> float | None:
    clock = folder / f".tmp-{signature()}-clock"  # the name of a stage: where it is left, the next writer removes it
    try:
        descriptor = os.open(clock, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_mtime
    except OSError:
        return None
    finally:
        os.close(descriptor)
        with suppress(OSError):
            clock.unlink()
