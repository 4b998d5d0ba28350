"""Batches that fit into memory: where it runs out, they are halved. Results are the same, but for rounding."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from ldm_vae.errors import UserError
from ldm_vae.machine import out_of_memory
from ldm_vae.printable import counted

logger = logging.getLogger(__name__)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Divisible(Protocol):
    """Images of one size."""

    def __len__(self) -> int:
        """How many."""

    def part(self: DivisibleT, start: int, stop: int) -> DivisibleT:
        """Those from `start` to before `stop`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, or of its latent."""


DivisibleT = TypeVar("DivisibleT", bound=Divisible)


@dataclass(frozen=True)
class Single(Generic[ItemT]):
    """An image alone.

    shape: of it, or of its latent.
    """

    item: ItemT
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return 1

    def part(self, start: int, stop: int) -> Single[ItemT]:
        return self


class Fitting:
    """Remembers what fits, so that not every batch has to fail first.

    alone: whether one image fits only where no other one is being computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.alone = False
        self._values: int | None = None  # of the images of a batch, at most; None where all fit so far

    def parts(self, item: DivisibleT) -> Iterator[DivisibleT]:
        """The item in as few parts as fit, or in images; by what is known when each is asked for."""
        start = 0
        while start < len(item):
            most = len(item) if self._values is None else max(1, self._values // math.prod(item.shape))
            stop = min(start + most, len(item))
            yield item if stop - start == len(item) else item.part(start, stop)
            start = stop

    def halves(self, item: DivisibleT) -> Iterator[DivisibleT]:
        """Both halves of an item that did not fit, or the one image that it is; says so once."""
        said = self.alone or self._values is not None
        if len(item) == 1:
            self.alone = True
        else:
            self._values = (len(item) + 1) // 2 * math.prod(item.shape)
        if not said:
            images, rest = counted(len(item), "image"), counted((len(item) + 1) // 2, "image")
            logger.warning("the memory of %s ran out with %s at a time: goes on with %s", self.device, images, rest)
        return self.parts(item)

    def too_large(self, item: Divisible) -> UserError:
        """The error where one image alone does not fit."""
        what = f"too little memory on {self.device} for one image alone ({' x '.join(map(str, item.shape))})"
        return UserError(what, "use a machine or a limit (ulimit -v) with more, or smaller images, then run it again")


def attempt(work: Callable[[], ResultT], device: torch.device) -> tuple[ResultT] | None:
    """What the work returns; None where memory ran out. All that it held is free then."""
    try:
        return (work(),)
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Only here are the error and the frames that it kept gone, but for those in circles.
    gc.collect()
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).empty_cache()
    return None
