"""How long the device stands still because the next images have not come.

The host starts the operations of a step and does not wait for them. So it may wait for images while the device still
computes, which costs nothing; only what is waited after the device has finished does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ldm_vae.devices import SHARING

LOOK = 0.01  # seconds between two looks whether the device has finished


class DataWait:
    """Sums up the seconds for which a device has nothing to do while the host waits for images.

    seconds: since the sum was taken last.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._step = None if device.type in SHARING else torch.Event(device)
        self._since: float | None = None  # when the device was first seen to have finished, in this wait

    def started(self) -> None:
        """To be called after the operations of a step have been started."""
        if self._step is not None:
            self._step.record()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around all that the next step waits for."""
        self._look()
        yield
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
        self._since = None

    def watched(self, arrived: Callable[[float], bool]) -> Callable[[float], bool]:
        """`arrived(seconds)`, which waits for images so long at most, with looks at the device in between."""
        return partial(self._arrived, arrived)

    def take(self) -> float:
        """The sum, which then starts anew."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _arrived(self, arrived: Callable[[float], bool], seconds: float) -> bool:
        end = time.perf_counter() + seconds
        while True:
            self._look()
            left = max(0.0, end - time.perf_counter())
            if arrived(left if self._since is not None else min(left, LOOK)):
                return True
            if left == 0.0:
                return False

    def _look(self) -> None:
        if self._since is None and (self._step is None or self._step.query()):
            self._since = time.perf_counter()
