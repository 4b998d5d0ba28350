"""Lets a device compute one batch while the host reads the next one and writes the last one.

What a batch gives is waited for once, and only when the next one has been handed to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ldm_vae.checks import checked_later
from ldm_vae.transfer import AT_ONCE, Landing

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
KnownT = TypeVar("KnownT")
Finish = Callable[[], ResultT]  # waits for a result, and gives it


def one_behind(
    items: Iterable[ItemT], launch: Callable[[ItemT], Finish[ResultT]], device: torch.device
) -> Iterator[ResultT]:
    """The result of each item, in order. On a GPU, it is waited for when the next item has been launched.

    launch: hands an item to the device.
    """
    behind: Finish[ResultT] | None = None
    for item in items:
        ahead = launch(item)
        del item
        if device.type in AT_ONCE:
            yield ahead()
            continue
        if behind is not None:
            yield behind()
        behind = ahead
    if behind is not None:
        yield behind()


def begin(
    compute: Callable[[], tuple[dict[str, Tensor], KnownT]], device: torch.device
) -> Finish[tuple[dict[str, Tensor], KnownT]]:
    """Hands work to a device. The function that it returns gives the result, with the tensors on the host.

    compute: returns tensors by name, and what the host knows without them. It may be called twice: on a GPU its checks
    (`checks.py`) are read with its result, and where one fails, all is computed again, with each check at once.
    """
    if device.type in AT_ONCE:
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
