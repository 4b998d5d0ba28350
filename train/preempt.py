"""Signals to stop: the process notes them at once, all ranks agree between two steps, and then the run saves.

SIGTERM (schedulers, `docker stop`, launchers), SIGUSR1 (SLURM's `--signal=USR1@180`) and SIGINT (Ctrl-C) set a flag
and do nothing else. Some steps later all ranks see it, save, and exit with the code PREEMPTED. A second Ctrl-C quits at
once, without a save.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

# The exit code of a worker that has saved after a signal and wants to be started again. Not 0 (done), 1 (any crash),
# 2 (UserError), nor 64-78 (sysexits.h) or 126 and above (shells: 128 + signal). 85 is the code that HTCondor's manual
# uses for "checkpointed, restart me". Launchers (torchrun, accelerate launch) turn it into 1: read status.json there.
PREEMPTED = 85
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# After one Ctrl-C a worker gets two signals: one from the terminal, and one from torchrun, which passes its own on.
ECHO = 2.0  # seconds within which a second signal counts as the same Ctrl-C


class Preemption:
    """`with Preemption(every) as preemption:` around the training, in the main thread; restores the handlers."""

    def __init__(self, every: int) -> None:
        """every: optimizer steps between two checks by several ranks, since each check waits for a small all-reduce."""
        self.every = every
        self.received = 0  # number of the first signal that reached this process; 0 for none
        self.reason = ""  # name of the signal that all ranks have agreed on
        self._interrupted = 0.0  # time of the first Ctrl-C in seconds
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: the old handler was not set by Python

    def agreed(self, taken: int) -> bool:
        """Whether to save and stop after `taken` steps. Every rank calls after every step; all get the same answer."""
        received = self.received
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            if taken % self.every:
                return False
            device = "cuda" if "nccl" in dist.get_backend() else "cpu"
            number = torch.tensor(received, device=device)
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
            received = int(number)
        if received:
            self.reason = signal.Signals(received).name
        return bool(received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted and now - self._interrupted > ECHO:
                signal.default_int_handler(number, frame)  # raises KeyboardInterrupt
            self._interrupted = self._interrupted or now
        self.received = self.received or number
