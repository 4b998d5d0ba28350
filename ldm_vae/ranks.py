"""Which of several processes this is, and how they put their results together; one process is the rule."""

from __future__ import annotations

import os
from typing import TypeVar

import torch

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of all), as torchrun and accelerate launch tell it; (0, 1) without them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_device() -> str:
    """The GPU of this process, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def gather(value: T) -> list[T]:
    """What every process gave, by rank, on every process. All must call it."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=rank, world_size=world)
    values: list[T | None] = [None] * world
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # filled now
