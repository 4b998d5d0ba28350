"""Lets a device compute one batch while the host reads the next one and writes the last one.

What a batch gives is waited for once, and only when the next one has been handed to the device. Where memory runs out,
batches are halved, one image is computed in pieces, and the work goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ldm_vae.checks import checked_later
from ldm_vae.devices import SHARING
from ldm_vae.fitting import DivisibleT, Fitting
from ldm_vae.transfer import Landing

ResultT = TypeVar("ResultT")
KnownT = TypeVar("KnownT")
Finish = Callable[[], ResultT]  # waits for a result, and gives it


def one_behind(
    items: Iterable[DivisibleT], launch: Callable[[DivisibleT], Finish[ResultT]], device: torch.device
) -> Iterator[ResultT]:
    """The results of all items, in order: on a GPU each is waited for when the next item has been launched.

    An item gives one result, or where memory runs out one for each of its parts. Raises UserError where one image alone
    does not fit, in pieces neither.

    launch: hands an item to the device. It may be called again for what ran out of memory.
    """
    fitting = Fitting(device)
    behind: tuple[DivisibleT, Finish[ResultT]] | None = None
    for item in items:
        for part in fitting.parts(item):
            ahead = fitting.attempt(part, lambda part=part: launch(part))  # type: ignore[misc]  # of its default
            if behind is not None:
                yield from _finished(*behind, launch, fitting)
                behind = None
            if ahead is None:
                yield from again(part, launch, fitting)
            elif device.type in SHARING or fitting.alone:
                yield from _finished(part, ahead[0], launch, fitting)
            else:
                behind = part, ahead[0]
            del part, ahead
        del item
    if behind is not None:
        yield from _finished(*behind, launch, fitting)


def _finished(
    part: DivisibleT, finish: Finish[ResultT], launch: Callable[[DivisibleT], Finish[ResultT]], fitting: Fitting
) -> Iterator[ResultT]:
    found = fitting.attempt(part, finish)
    del finish  # it holds what was on the device
    if found is not None:
        yield found[0]
    else:
        yield from again(part, launch, fitting)


def again(part: DivisibleT, launch: Callable[[DivisibleT], Finish[ResultT]], fitting: Fitting) -> Iterator[ResultT]:
    """The results of what ran out of memory: of its halves, one after the other, with nothing beside them."""
    for half in fitting.halves(part):
        found = fitting.attempt(half, lambda half=half: launch(half)())  # type: ignore[misc]  # of its default
        if found is not None:
            yield found[0]
            continue
        if len(half) == 1:
            fitting.tighten(half)
        yield from again(half, launch, fitting)


def begin(
    compute: Callable[[], tuple[dict[str, Tensor], KnownT]], device: torch.device
) -> Finish[tuple[dict[str, Tensor], KnownT]]:
    """Hands work to a device. The function that it returns gives the result, with the tensors on the host.

    compute: returns tensors by name, and what the host knows without them. It may be called twice: on a GPU its checks
    (`checks.py`) are read with its result, and where one fails, all is computed again, with each check at once.
    """
    if device.type in SHARING:
        return lambda: _landed(compute())
    with checked_later() as checks:
        tensors, known = compute()
    names, landing = list(tensors), Landing([*tensors.values(), *checks.values])
    del tensors  # their memory is free for what the device computes next

    def finish() -> tuple[dict[str, Tensor], KnownT]:
        arrived = landing.wait()
        if checks.passed(arrived[len(names) :]):
            return dict(zip(names, arrived, strict=False)), known
        return _landed(compute())

    return finish


def _landed(result: tuple[dict[str, Tensor], KnownT]) -> tuple[dict[str, Tensor], KnownT]:
    tensors, known = result
    return dict(zip(tensors, Landing([*tensors.values()]).wait(), strict=True)), known
