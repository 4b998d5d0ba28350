"""An item that is waited for: the process ends as it wants to, whatever the thread that makes it does."""

from __future__ import annotations

import subprocess
import sys

from ldm_vae.data.stream.awaited import Awaited
from tests.conftest import ROOT

# The thread makes and frees tensors when Python ends, which lets go of Python's lock each time.
BUSY = """
import sys, time, torch
from ldm_vae.data.stream.awaited import Awaited

def make():
    end = time.monotonic() + 1
    while time.monotonic() < end:
        torch.ones(100_000).add_(1)

coming = Awaited(make)
assert not coming.arrived(0.05)
sys.exit(85)
"""


def test_a_thread_at_work_does_not_abort_the_process_that_ends() -> None:
    done = subprocess.run([sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (85, "")


def test_items_come_one_after_the_other() -> None:
    numbers = iter(range(3))
    coming = Awaited(lambda: next(numbers))
    assert coming.take() == 0
    assert coming.arrived(60) and coming.take() == 1
    assert coming.take() == 2
