"""How decoded images get from the workers to the trainer: through shared memory, of which containers have little.

Docker gives a container 64 MB of it. Where it is used up, torch drops what a worker sends in a thread of its own, and
the trainer would wait for it for ever. So the need is compared with what is free before training, and a worker packs
what it sends where a failure can still be sent instead.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Collection
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.errors import UserError, in_one_line
from ldm_vae.machine import fault_of_machine

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # shares that each worker makes ahead
FLOAT_BYTES = 4
DYING = 5.0  # seconds
MEBIBYTE = 2**20

ENLARGE = "docker run --shm-size={size}, or a volume of kind Memory on /dev/shm in Kubernetes"
LESS_MEMORY = "use fewer data.workers or a smaller data.batch, or give the job more memory"
SHOW_WHERE = "with data.workers=0 the trainer reads the images itself, and shows where it fails"


def shared_bytes(image: ImageConfig, images: int, workers: int) -> int:
    """Bytes of shared memory that a stream takes at most; 0 where that is not known before images are read.

    images: number of images in a step of this process. The shares that are made ahead wait for the trainer, beside
    those of the step that it puts together.
    """
    if workers == 0 or image.crop is None:
        return 0
    return (PREFETCHED + 1) * images * image.channels * image.crop**2 * FLOAT_BYTES


def require_shared_memory(needed: int, processes: int) -> None:
    """Raises UserError where less shared memory is free than the streams of all processes of this machine take.

    needed: bytes for each process.
    """
    if needed == 0 or not SHARED_MEMORY.is_dir():  # as on macOS, where it has no folder and no such limit
        return
    status = os.statvfs(SHARED_MEMORY)
    free, needed = status.f_bavail * status.f_frsize, needed * processes
    if needed > free:
        raise UserError(
            f"data workers need {_mebibytes(needed)} MiB of shared memory, and {SHARED_MEMORY} has "
            f"{free // MEBIBYTE} MiB free",
            f"make it larger ({ENLARGE.format(size=f'{_mebibytes(needed) + 1}m')}), set data.workers=0, or make "
            "data.batch smaller",
        )


def _mebibytes(size: int) -> int:
    """Rounded up."""
    return -(-size // MEBIBYTE)


class Packed:
    """What a worker sends, pickled where it is made. The trainer receives the object itself."""

    def __init__(self, content: object) -> None:
        """Moves the tensors of `content` to shared memory. Raises UserError where they find no room there."""
        try:
            self._bytes = bytes(ForkingPickler.dumps(content))
        except RuntimeError as error:
            raise UserError(
                f"{SHARED_MEMORY} has no room for decoded images ({in_one_line(error)})",
                f"make it larger ({ENLARGE.format(size='SIZE')}), set data.workers=0, or make data.batch smaller",
            ) from error

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self._bytes,)


def failure_in_worker(error: Exception) -> tuple[str, str]:
    """(what, remedy) of an error that ends a worker, to be sent in place of a share."""
    told = error if isinstance(error, UserError) else fault_of_machine(error)
    if told is not None:
        return told.what, told.remedy
    return f"a data worker failed ({in_one_line(error)})", SHOW_WHERE


def dead_worker(workers: Collection[BaseProcess], error: Exception) -> UserError:
    """What to tell where the shares of a worker stay away.

    error: what torch says about it.
    """
    ending = wait([worker.sentinel for worker in workers], DYING)
    for worker in workers:
        if worker.sentinel in ending:  # its pipes are closed; the system says how it ended a little later
            worker.join(DYING)
        if worker.exitcode is not None and worker.exitcode < 0:
            number = -worker.exitcode
            what = f"a data worker (process {worker.pid}) was killed by {signal.Signals(number).name}"
            if number == signal.SIGKILL:
                return UserError(what, f"the system does that when memory runs out: {LESS_MEMORY}")
            if number == signal.SIGBUS:
                return UserError(what, f"{SHARED_MEMORY} may be full: make it larger, or set data.workers=0")
            return UserError(what, SHOW_WHERE)
    return UserError(f"the data workers cannot be read ({in_one_line(error)})", SHOW_WHERE)
