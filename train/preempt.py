"""Signals to stop: the process notes them at once, all ranks agree wherever they wait for data, and then the run saves.

SIGTERM (schedulers, `docker stop`, launchers), SIGUSR1 (SLURM's `--signal=USR1@180`) and SIGINT (Ctrl-C) set a flag,
and the main process says at once where the run is going to stop. Before the next batch of training or validation all
ranks see it, save, and exit with the code PREEMPTED, however long that batch would take. A second Ctrl-C quits at once,
without a save. Before the first step there is nothing to save, and a signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import ValidationBatches
from ldm_vae.ranks import rank_and_world

# The exit code of a worker that has saved after a signal and wants to be started again. Not 0 (done), 1 (any crash),
# 2 (UserError), nor 64-78 (sysexits.h) or 126 and above (shells: 128 + signal). 85 is the code that HTCondor's manual
# uses for "checkpointed, restart me". Launchers (torchrun, accelerate launch) turn it into 1: read status.json there.
PREEMPTED = 85
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# After one Ctrl-C a worker gets two signals: one from the terminal, and one from torchrun, which passes its own on.
ECHO = 2.0  # seconds within which a second signal counts as the same Ctrl-C
LOOK = 0.5  # seconds between two looks for a signal while data are late
STDERR = 2  # file descriptor
ERASE = "\r\x1b[J"  # on a terminal: the line of the cursor and all below, where bars are


class Preempted(BaseException):
    """The run ends because of a signal. Like KeyboardInterrupt it is no Exception, which a reader may take for its own.

    The text says which signal, and when.
    """


class Interrupted(Exception):
    """A wait for data was left because of a signal, on all ranks at the same place."""


class Preemption:
    """`with Preemption() as preemption:` around the training, in the main thread of a rank; restores the handlers."""

    def __init__(self) -> None:
        self.received = 0  # number of the first signal that reached this process; 0 for none
        self.reason = ""  # name of the signal that all ranks have agreed on
        self.place = "after this step"  # where the run stops if a signal comes now
        self._holding = False
        self._told = False
        self._interrupted = 0.0  # time of the first Ctrl-C in seconds
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None  # of all ranks on the CPU: what they agree on makes no rank wait for its GPU

    def __enter__(self) -> Preemption:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: the old handler was not set by Python

    def hold(self) -> None:
        """From now on there is something to save, and signals wait until all ranks look for them."""
        self._holding = True

    @contextmanager
    def during(self, place: str) -> Iterator[None]:
        """Around work in which a signal stops the run at another place than after the step, in words."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def wait_for(self, arrived: Callable[[float], bool]) -> None:
        """Waits until something has arrived on every rank. All ranks must call.

        arrived(seconds): waits so long at most, and says whether it has.

        Raises Interrupted on every rank as soon as one of them has got a signal.
        """
        late = True
        while late:
            received, late = self._largest(late=not arrived(LOOK))
            if received:
                self.reason = signal.Signals(received).name
                self._tell(received)  # here the main process may hear of another rank's signal
                raise Interrupted(self.reason)

    def together(self, batches: ValidationBatches) -> Iterator[Batch]:
        """This rank's batches, while no rank gets a signal. Raises Interrupted otherwise, on every rank.

        Ranks may have different numbers of batches, and must use them up.
        """
        more = True
        while more:
            try:
                self.wait_for(batches.arrived)
            except Interrupted:
                batches.abandon()
                raise
            batch = next(batches, None)
            _, more = self._largest(late=batch is not None)
            if batch is not None:
                yield batch

    def _largest(self, late: bool) -> tuple[int, bool]:
        """(a signal that a rank has got, or 0; whether one of the ranks is late)."""
        both = torch.tensor([self.received, int(late)])
        if self._group is not None:
            dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self._group)
        received, anyone = both.tolist()
        return received, bool(anyone)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted and now - self._interrupted > ECHO:
                signal.default_int_handler(number, frame)  # raises KeyboardInterrupt
            self._interrupted = self._interrupted or now
        first, self.received = not self.received, self.received or number
        if first and not self._holding:
            raise Preempted(f"{signal.Signals(number).name} before the first step")
        self._tell(number)

    def _tell(self, number: int) -> None:
        """Says once, on the main process, that the run is going to stop.

        Safe in a handler, which may have interrupted what writes to sys.stderr: that must not be entered again.
        """
        if self._told or rank_and_world()[0] != 0:
            return
        self._told = True
        why = "Ctrl-C again: without" if number == signal.SIGINT else signal.Signals(number).name
        text = f"train: stopping {self.place}, then saving ({why})"
        with suppress(OSError):
            os.write(STDERR, f"{ERASE if os.isatty(STDERR) else ''}{text}\n".encode())
