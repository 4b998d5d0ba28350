"""Processes that tests signal, each with a process group of its own, none of which outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 180.0  # seconds until a process must have started; elastic torchrun alone takes 30 to see who comes


@contextmanager
def started(command: Sequence[str | Path], folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Runs `command` in `folder` as the leader of a group, with this interpreter's packages; kills what is left."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def pid_of(process: subprocess.Popen[str], folder: Path, rank: int, *, other_than: int = 0) -> int:
    """Waits until stops_on_signal.py has started as `rank`, as another process than `other_than`."""
    path, end = folder / f"pid_{rank}", time.monotonic() + PATIENCE
    while not path.exists() or int(path.read_text()) == other_than:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, f"rank {rank} has not started"
        time.sleep(0.02)
    return int(path.read_text())
