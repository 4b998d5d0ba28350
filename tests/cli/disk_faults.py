"""Makes the calls that read local files fail, as disks, file servers and limits do."""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CALLS = ((os, "open"), (os, "pread"), (os, "stat"), (os, "listdir"), (io, "open"))


class Faults:
    """Which calls fail.

    code: the errno.
    folders: calls on what lies in these fail.
    share: the share of the calls that fail, by a dice of its own; 1 for a fault that stays.
    spared: how many calls come before the first fault.
    """

    def __init__(self, code: int, folders: Sequence[Path], share: float, spared: int = 0) -> None:
        self.code, self.folders, self.share, self.spared = code, [str(folder) for folder in folders], share, spared
        self.calls = self.times = 0
        self.dice = random.Random(0)
        self.watched: set[int] = set()  # descriptors of files in the folders

    def meets(self, target: Any) -> bool:
        """Whether a call on a path or descriptor is one that may fail, which is then counted."""
        name = "" if isinstance(target, int) else str(target)
        inside = target in self.watched or name.startswith(tuple(self.folders))
        self.calls += inside
        if not inside or self.calls <= self.spared or self.dice.random() >= self.share:
            return False
        self.times += 1
        return True


@contextmanager
def failing(faults: Faults) -> Iterator[None]:
    """Within the block, calls of this process fail as `faults` says."""

    def wrapped(real: Callable[..., Any], opens: bool) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            if faults.meets(target):
                raise OSError(faults.code, os.strerror(faults.code), target)
            found = real(target, *arguments, **options)
            if opens and isinstance(found, int):
                faults.watched.discard(found)
                if str(target).startswith(tuple(faults.folders)):
                    faults.watched.add(found)
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, wrapped(getattr(owner, name), opens=(owner, name) == (os, "open")))
        yield


TRANSIENT = tuple(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ETIMEDOUT", "EREMOTEIO", "EBUSY")
    if hasattr(errno, name)
)
