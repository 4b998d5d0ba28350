"""What is counted while a program runs on the stand-in device."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = str(Path(__file__).parents[2]) + "/"  # of this checkout
HERE = str(Path(__file__).parent) + "/"
OTHERS = ("/site-packages/", "/.venv/")


@dataclass
class Record:
    """Counts since the last `reset`; memory counts from the start.

    waits: times that a host's thread had to wait for the device, by reason and place; of the thread that `reset` it.
    waits_beside: the same of all other threads.
    pageable: copies to the device that were to go on beside the host and could not, because their memory is not pinned.
    kernels: operations that computed something, by name.
    up, down: bytes copied to the device and from it.
    now, peak: bytes of tensors on the device, and the most there were since the last `reset`.
    allocations: how many storages were made on the device.
    refuse: number of the allocation that finds no memory; None for none. It is a later one where a thread of torch's
        own makes that, as in a backward pass: there an error of Python would end the process.
    capacity: bytes of the device; what would exceed it finds no memory.
    limit: bytes that this process may take, though the device has more; None for all. As with `refuse`, a thread of
        torch's own is not held to it.
    """

    waits: Counter[str] = field(default_factory=Counter)
    waits_beside: Counter[str] = field(default_factory=Counter)
    pageable: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    up: int = 0
    down: int = 0
    now: int = 0
    peak: int = 0
    allocations: int = 0
    refuse: int | None = None
    capacity: int = 80 * 2**30
    limit: int | None = None

    def __post_init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._thread = threading.get_ident()

    def reset(self) -> None:
        """Starts all counts anew; what lies on the device stays there."""
        for counter in (self.waits, self.waits_beside, self.pageable, self.kernels):
            counter.clear()
        self.up = self.down = self.allocations = 0
        self.peak = self.now
        self._thread = threading.get_ident()

    def wait(self, why: str) -> None:
        """Notes that the host waits for the device here."""
        counter = self.waits if threading.get_ident() == self._thread else self.waits_beside
        counter[f"{why} at {place()}"] += 1

    def copy(self, source: Tensor, *, up: bool, beside: bool, pinned: bool) -> None:
        """Notes a copy between host and device.

        beside: whether the caller lets it go on beside the host.
        pinned: whether the memory of the host is.
        """
        size = source.numel() * source.element_size()
        self.up, self.down = (self.up + size, self.down) if up else (self.up, self.down + size)
        what = f"{'to' if up else 'from'} the device, {tuple(source.shape)} {source.dtype}"
        if not beside:
            self.wait(f"copy {what}")
        elif up and not pinned:
            self.pageable[f"{what} at {place()}"] += 1

    def allocate(self, contents: Tensor) -> None:
        """Counts the storage of contents that are new on the device. Raises OutOfMemoryError where it finds no room."""
        storage = contents.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name in self._sizes or size == 0:
            return
        self.allocations += 1
        wanted = self.now + size
        refused = self.refuse is not None and self.allocations >= self.refuse and _in_thread_of_python()
        beyond = self.limit is not None and wanted > self.limit and _in_thread_of_python()
        if refused or beyond or wanted > self.capacity:
            self.refuse = None if refused else self.refuse
            raise torch.OutOfMemoryError(f"stand-in out of memory: tried to allocate {size:,} bytes at {place()}")
        self._sizes[name] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, name)

    def _free(self, name: int) -> None:
        self.now -= self._sizes.pop(name)


def _in_thread_of_python() -> bool:
    return threading.get_ident() in {thread.ident for thread in threading.enumerate()}


def place() -> str:
    """The innermost line of this project that runs, as "file:line", but for the stand-in itself."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and not name.startswith(HERE) and not any(part in name for part in OTHERS):
            return f"{name.removeprefix(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


@dataclass(frozen=True)
class Counts:
    """What one piece of work took.

    waits: times that the host waited for the device, by reason and place; all of them where it was to go on.
    pageable: copies that could not go on beside the host.
    kernels: operations that computed something.
    up, down: bytes copied to the device and from it.
    allocations: storages made on the device.
    state: bytes on the device before and after.
    peak: most bytes at once.
    """

    waits: dict[str, int]
    pageable: dict[str, int]
    kernels: int
    up: int
    down: int
    allocations: int
    state: int
    peak: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def counts(record: Record, state: int) -> Counts:
    """What has been recorded since the last `reset`.

    state: bytes that lay on the device then.
    """
    return Counts(
        waits=dict(record.waits),
        pageable=dict(record.pageable),
        kernels=record.kernels.total(),
        up=record.up,
        down=record.down,
        allocations=record.allocations,
        state=state,
        peak=record.peak,
    )


RECORD = Record()
