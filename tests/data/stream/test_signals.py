"""A scheduler signals every process of a job; the data workers must not take the trainer with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

TRAINER = """
import signal, sys, time, torch
from torch.utils.data import DataLoader, IterableDataset
from ldm_vae.data.stream.signals import outlive_signals

class Numbers(IterableDataset):
    def __iter__(self):
        number = 0
        while True:
            time.sleep(0.01)
            yield (number := number + 1)

seen = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda received, frame: seen.append(received))
shield = outlive_signals if sys.argv[1] == "shielded" else None
batches = iter(DataLoader(Numbers(), batch_size=None, num_workers=2, worker_init_fn=shield))
for _ in range(3): next(batches)
print("ready", flush=True)
while not seen: next(batches)
for _ in range(200): next(batches)  # some more steps until all ranks agree
print("saved", seen[0], flush=True)
# The end of the process: the loader is still referred to, so that nothing but SIGTERM ends its workers.
"""


def outcome(number: signal.Signals, workers: str) -> tuple[str, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, workers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    try:
        out, _ = process.communicate(timeout=120)  # far more than it takes: waiting for deaf workers never ends
    finally:
        process.kill()
    return out, process.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_trainer_of_shielded_workers_saves(number: signal.Signals) -> None:
    assert outcome(number, "shielded") == (f"saved {number.value}\n", 0)


def test_without_the_shield_sigterm_kills_the_trainer() -> None:
    """Why the shield is there; when torch mends this, it can go."""
    out, code = outcome(signal.SIGTERM, "bare")
    assert (out, code) == ("", 1)
