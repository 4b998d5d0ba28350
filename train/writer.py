"""Checkpoints that are written beside the steps: a thread writes a copy on the host, and the run goes on meanwhile."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.transfer import Landing
from train.checkpoint import CheckpointConfig, folder_of, prune

logger = logging.getLogger("train")

Groups = Mapping[str, Mapping[str, Tensor]]


class CheckpointWriter:
    """`with CheckpointWriter(run, config) as writer:` around the steps. At most one checkpoint is written at a time.

    The block ends once nothing is being written any more, whatever ends it. What could not be written raises from the
    next call of any method, or where the block ends; where another error ends the block, it is logged.

    While a checkpoint is written, its tensors are on the host a second time. For a GPU the copies are in pinned memory,
    so that nobody waits for them: PyTorch keeps that memory for the next checkpoint, and rounds each tensor up to a
    power of two.
    """

    def __init__(self, run: Path, config: CheckpointConfig) -> None:
        """
        run: the run folder.
        config: which checkpoints are kept.
        """
        self.run, self.config = run, config
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except (UserError, OSError, MemoryError) as second:
            if error is None:
                raise
            logger.warning("%s", second)  # the user is to read what ended the run

    def save(self, step: int, tensors: Groups, meta: Mapping[str, Any]) -> None:
        """Copies the tensors to the host, starts to write them, and then to delete checkpoints no longer needed.

        First waits for the checkpoint before. Tensors and `meta` may be changed afterwards.
        """
        self.wait()
        arguments = (step, copy_to_host(tensors), copy.deepcopy(meta))
        self._thread = Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raises what has gone wrong since. Does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is being written any more, and raises what has gone wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, step: int, landed: Callable[[], Groups], meta: Mapping[str, Any]) -> None:
        try:
            Checkpoint.write(folder_of(self.run, step), landed(), meta)
            prune(self.run, self.config)
        except BaseException as error:  # it belongs to the main thread, which ends the run
            self._error = error


def copy_to_host(groups: Groups) -> Callable[[], dict[str, dict[str, Tensor]]]:
    """Starts to copy tensors to the host, into memory of their own. The function that it returns waits for the copies.

    Copies from a GPU are made in its order of work: after what was asked of it before, and before what comes later. So
    later steps may change the tensors at once, and the host need not wait.
    """
    tensors = [tensor.detach() for named in groups.values() for tensor in named.values()]
    own = [t.clone(memory_format=torch.contiguous_format) if t.device.type == "cpu" else t for t in tensors]
    landing = Landing(own)

    def landed() -> dict[str, dict[str, Tensor]]:
        copies = iter(landing.wait())
        return {group: {name: next(copies) for name in named} for group, named in groups.items()}

    return landed
