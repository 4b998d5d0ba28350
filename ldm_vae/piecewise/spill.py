"""Strips in the memory of the host, for boundaries that a GPU has no room for: no copy lets the host wait."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.devices import SHARING
from ldm_vae.piecewise.strips import Strips


class HostMemory:
    """Blocks of the host's memory, pinned, that are used again.

    All copies from and to a block run on one stream of the device, in the order in which they were asked for. So a
    block may be written anew while the last copy from it has still to come, and however far the host is ahead of the
    device, it takes no more than the strips that are kept at once. The host itself must not read a block: what it would
    find there may not have arrived.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []  # (bytes,), uint8

    def take(self, size: int, pinned: bool) -> Tensor:
        """A block of at least so many bytes, (bytes,), uint8: the smallest that is free, or a new one."""
        fitting = [block for block in self._free if block.numel() >= size]
        if not fitting:
            return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        smallest = min(fitting, key=len)
        self._free = [block for block in self._free if block is not smallest]
        return smallest

    def give_back(self, block: Tensor) -> None:
        """The block may be taken again."""
        self._free.append(block)


class SpilledStrips(Strips):
    """A tensor (1, C, H, W) as consecutive strips that lie in the host's memory, and are read to where they came from.

    A strip lies there with its rows first: any rows are then one run of memory, which the device copies by itself. The
    host would have to gather others, and to wait for them before.
    """

    def __init__(self, axis: int, memory: HostMemory) -> None:
        super().__init__(axis)
        self._memory = memory
        self._blocks: list[Tensor] = []  # of each strip
        self._device = torch.device("cpu")

    def append(self, strip: Tensor) -> None:
        rows, self._device = strip.movedim(self.axis, 0).contiguous(), strip.device
        block = self._memory.take(rows.nbytes, pinned=strip.device.type not in SHARING)
        held = block[: rows.nbytes].view(rows.dtype).view(rows.shape)
        held.copy_(rows, non_blocking=True)
        self._blocks.append(block)
        self._keep(held, len(rows))

    def read(self, first: int, end: int) -> Tensor:
        """Rows [first, end), a copy."""
        parts = [
            held[low:high].to(self._device, non_blocking=True).movedim(0, self.axis)
            for held, low, high in self._touched(first, end)
        ]
        return torch.cat(parts, dim=self.axis)

    def release(self, before: int) -> None:
        held = len(self._pieces)
        super().release(before)
        for _ in range(held - len(self._pieces)):  # strips are freed in order
            self._memory.give_back(self._blocks.pop(0))
