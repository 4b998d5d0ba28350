"""Which of several processes this is, and how they put their results together; one process is the rule."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import TypeVar

import torch

ValueT = TypeVar("ValueT")
STORE_PATIENCE = timedelta(seconds=5)  # for the launcher's table of what was said


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of all), as torchrun and accelerate launch tell it; (0, 1) without them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_device() -> str:
    """The GPU of this process, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def all_gather(value: ValueT) -> list[ValueT]:
    """What every process gave, by rank, on every process. All must call it."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=rank, world_size=world)
        atexit.register(distributed.destroy_process_group)  # else gloo's threads may abort a process that is done
    values: list[ValueT | None] = [None] * world
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # filled now


def is_first_to_report(message: str) -> bool:
    """Whether no other process of this launch has asked for the same message; true where they cannot be heard of.

    Needs no process group and no meeting: what one process alone has to say is said, and what all have is said once.
    """
    _, world = rank_and_world()
    if world == 1:
        return True
    from torch.distributed import DistError
    from torch.distributed.rendezvous import rendezvous

    launch = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = next(rendezvous("env://", timeout=STORE_PATIENCE))[0]
        return int(store.add(f"said/{launch}/{message}", 1)) == 1
    except (DistError, RuntimeError, ValueError):  # the process that holds the table is gone, say
        return True
