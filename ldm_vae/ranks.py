"""Which of several processes this is, and how they exchange results. Most commands run in one process."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import TypeVar

ValueT = TypeVar("ValueT")
STORE_TIMEOUT = timedelta(seconds=5)  # for a connection to the key-value store of the launcher


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of all processes), as torchrun and accelerate launch set them; else (0, 1)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def local_device() -> str:
    """The GPU of this process, or the CPU."""
    import torch  # how a command ends is told through this module, also where it never needed torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else f"{found.type}:{os.environ.get('LOCAL_RANK', '0')}"


def all_gather(value: ValueT) -> list[ValueT]:
    """Gives every process the values of all processes, in the order of ranks. All processes must call it."""
    rank, world = rank_and_world()
    if world == 1:
        return [value]
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", rank=rank, world_size=world)
        atexit.register(distributed.destroy_process_group)  # without it gloo's threads may abort a finished process
    values: list[ValueT | None] = [None] * world
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # filled now


def is_first_to_report(message: str) -> bool:
    """Whether this process is the first of this launch to report a message; true, too, if that can't be found out.

    So an error that all processes meet is printed once, and one that a single process meets is printed as well. The
    first rank alone could not report for all, and a collective call would wait for ever for the processes that met no
    error. Therefore the processes count reports in the launcher's key-value store, which works at any time: before
    there is a process group and after it has broken.
    """
    _, world = rank_and_world()
    if world == 1:
        return True
    from torch.distributed import DistError
    from torch.distributed.rendezvous import rendezvous

    launch = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = next(rendezvous("env://", timeout=STORE_TIMEOUT))[0]
        return int(store.add(f"said/{launch}/{message}", 1)) == 1
    except (DistError, RuntimeError, ValueError):  # for example, the process that holds the store has ended
        return True
