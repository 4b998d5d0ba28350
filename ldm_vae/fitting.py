"""Batches that fit into memory: where it runs out, they are halved, and one image alone is computed in pieces.

Results are the same, but for rounding.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from ldm_vae.devices import SHARING
from ldm_vae.errors import UserError
from ldm_vae.machine import out_of_memory
from ldm_vae.printable import counted
from ldm_vae.sparing import NoRoom, sparing

logger = logging.getLogger(__name__)
# Of what one image takes as a whole, or of free memory if that is less: pieces get these shares, one after the other,
# until one fits; 0 gives the least that is possible. They are several, since no plan knows what libraries take beside.
SHARES = (1 / 2, 1 / 8, 0.0)
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
        self._in_pieces = math.inf  # values of the smallest image that did not fit alone: as large ones go in pieces
        self._tried = 0  # place in SHARES
        self._told = False

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
            ran_out = f" with {counted(len(item), 'image')} at a time" if len(item) > 1 else ""
            rest = counted((len(item) + 1) // 2, "image") + ("" if ran_out else " at a time")
            logger.warning("the memory of %s ran out%s: goes on with %s", self.device, ran_out, rest)
        return self.parts(item)

    def attempt(self, item: Divisible, work: Callable[[], ResultT]) -> tuple[ResultT] | None:
        """`attempt`, in which networks run in pieces if the item is an image that did not fit otherwise; said once.

        Raises UserError where the smallest pieces do not fit.
        """
        share = SHARES[self._tried] if math.prod(item.shape) >= self._in_pieces else None
        try:
            with sparing(share):
                found = attempt(work, self.device)
        except NoRoom as error:
            if share is not None:
                raise self._too_large(item, f": {error}") from error
            found = None
        if found is not None and share is not None and not self._told:
            self._told = True
            logger.warning(
                "%s had too little memory for one image alone (%s): goes on in pieces, which take longer",
                *(self.device, _shown(item)),
            )
        return found

    def tighten(self, item: Divisible) -> None:
        """Has the next attempt compute an image in pieces, or in smaller ones.

        Raises UserError where the smallest were tried.
        """
        values = math.prod(item.shape)
        if values < self._in_pieces:
            self._in_pieces = values
        elif self._tried + 1 < len(SHARES):
            self._tried += 1
        else:
            raise self._too_large(item, ", in pieces too")

    def _too_large(self, item: Divisible, more: str) -> UserError:
        """The error where one image alone does not fit."""
        what = f"too little memory on {self.device} for one image alone ({_shown(item)}){more}"
        limit = "use a machine or a limit (ulimit -v) with more"
        own = f"free memory of {self.device} that others take, or use a device with more"
        remedy = limit if self.device.type in SHARING else own
        return UserError(what, f"{remedy}, or smaller images, then run it again")


def _shown(item: Divisible) -> str:
    return " x ".join(map(str, item.shape))


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
