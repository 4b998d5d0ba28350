"""Lets the n-th call of libc fail, in this process, about files below one folder (`every_call.c` says how).

A process sees the library only if it was started with it: `with_library()` gives the environment for that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCE = Path(__file__).with_suffix("").with_name("every_call.c")
LOADED = "LDM_VAE_EVERY_CALL"  # the path of the library, in the environment of a process that was started with it
KINDS = ("open", "create", "read", "write", "flush", "name", "remove", "stat", "list", "lock", "map", "change", "close")
# Which kinds of calls can meet which error: a full disk stops what takes room, a full table of files what opens.
MEETS = {
    "EIO": KINDS,
    "ENOSPC": ("create", "write", "flush", "name", "change"),
    "ENOMEM": ("open", "create", "name", "stat", "list", "map"),
    "EMFILE": ("open", "create", "list"),
}


@dataclass(frozen=True)
class Fault:
    """What is to fail.

    error: name of the error, a key of MEETS.
    call: the first call that fails, from 1, among those that can meet the error; 0 lets none fail.
    for_good: whether all later ones fail, too.
    """

    error: str
    call: int
    for_good: bool


class Faults:
    """Drives the library. Children that are forked later share its counters."""

    @cached_property
    def _library(self) -> ctypes.CDLL:
        library = ctypes.CDLL(os.environ[LOADED])
        library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
        library.faults_calls.restype = library.faults_failed.restype = ctypes.c_long
        library.faults_what.restype = ctypes.c_char_p
        return library

    def share(self) -> None:
        """Once, in the process that forks."""
        if self._library.faults_share() != 0:
            raise OSError("the counters cannot be shared")

    def arm(self, folder: Path, fault: Fault) -> None:
        """Counts from here on, and fails as `fault` says. Calls about stdout count, too.

        folder: files below it are meant, by its real path.
        """
        kinds = sum(1 << KINDS.index(kind) for kind in MEETS[fault.error])
        number = getattr(errno, fault.error)
        self._library.faults_watch(1)
        self._library.faults_arm(os.fsencode(folder), fault.call, kinds, number, int(fault.for_good))

    def disarm(self) -> None:
        """From here on nothing fails."""
        self._library.faults_disarm()

    def calls(self) -> dict[str, int]:
        """Calls that were counted, by error: those that could have met it."""
        counted = [int(self._library.faults_calls(kind)) for kind in range(len(KINDS))]
        return {error: sum(counted[KINDS.index(kind)] for kind in kinds) for error, kinds in MEETS.items()}

    def failed(self) -> tuple[int, str]:
        """How many calls failed, and which was the first, such as "open /tmp/a"."""
        return int(self._library.faults_failed()), os.fsdecode(self._library.faults_what())


def with_library(folder: Path) -> Mapping[str, str] | None:
    """The environment of a process that is to be started with the library; None where there is no C compiler.

    folder: where the library is written.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "every_call.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    preloaded = ":".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
    return {**os.environ, LOADED: str(library), "LD_PRELOAD": preloaded}
