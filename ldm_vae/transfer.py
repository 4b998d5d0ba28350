"""Copies between host and device that neither the host waits for nor what the device computes meanwhile.

Such a copy takes pinned memory, from which the device reads by itself. Allocators keep a block of it until the copies
from it are done, so that nobody else has to (`CachingHostAllocator` of PyTorch).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_vae.devices import SHARING


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on `device` as `dtype` (None: its own). From the host to a GPU it goes by way of pinned memory."""
    if device.type in SHARING or tensor.device.type != "cpu":
        return tensor.to(device, dtype)
    moved = tensor.pin_memory().to(device, non_blocking=True)
    return moved if dtype is None else moved.to(dtype)  # cast there: the host has less to do, and bytes less to carry


class Courier:
    """Brings tensors from the host to a device, on a stream of their own: they travel while the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = None if device.type in SHARING else torch.Stream(device)

    def bring(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on the device as `dtype` (None: its own). What is computed from it next waits for it there."""
        if self._stream is None:
            return to_device(tensor, self.device, dtype)
        with self._stream:
            brought = to_device(tensor, self.device)
        computing = torch.accelerator.current_stream(self.device)
        computing.wait_stream(self._stream)
        brought.record_stream(computing)  # its memory was made for the other stream
        return brought if dtype is None else brought.to(dtype)


class Landing:
    """Brings tensors from their devices to the host, beside what the devices compute next."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.Event | None = None
        self._landed = []
        for tensor in tensors:
            if tensor.device.type in SHARING:
                self._landed.append(tensor.cpu())
                continue
            # Into pinned memory, which PyTorch makes for such a copy.
            self._landed.append(tensor.detach().contiguous().to("cpu", non_blocking=True))
            # Who waits for a blocking event leaves the core to others.
            self._event = self._event or torch.Event(tensor.device, blocking=True)
        if self._event is not None:
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host. Waits once, for what was computed before they set out."""
        if self._event is not None:
            self._event.synchronize()
        return self._landed
