"""Freed memory that malloc holds: handed back to the system before a process would grow beyond a bound.

glibc's malloc cuts an aligned block out of a larger one. A freed block is then too small for the next request of the
very same size, and small objects settle in the gaps. So strips that come and go leave holes: where 396 MiB were in use,
the process had grown by 582. `malloc_trim` gives the pages of all holes back. It costs what it takes to get them anew,
so it is called only where the bound is near.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache
from pathlib import Path

STATM = Path("/proc/self/statm")  # pages of this process: of its addresses, resident, ...
WORTH = 2**22  # bytes: malloc is not asked again before the process has grown by so much


class Room:
    """What is left of a bound on the growth of this process. Growth counts from the time when this is made.

    bound: bytes; None for no bound. Has no effect where malloc is not glibc's, nor on the memory of a GPU.
    """

    def __init__(self, bound: int | None) -> None:
        trim = None if bound is None or not STATM.is_file() else _malloc_trim()
        self._bound, self._trim = (0, None) if bound is None else (bound, trim)
        self._start = 0 if self._trim is None else _resident()
        self._kept = -WORTH  # growth after malloc last gave memory back, or any lower one since

    def make(self, needed: int) -> None:
        """Makes room for so many bytes, if the bound has none and malloc may hold some."""
        if self._trim is None:
            return
        grown = _resident() - self._start
        self._kept = min(self._kept, grown)
        if grown + needed > self._bound and grown >= self._kept + WORTH:
            self._trim(0)
            self._kept = _resident() - self._start


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(STATM.read_bytes().split()[1]) * mmap.PAGESIZE


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function of that name; None where the C library has none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found
