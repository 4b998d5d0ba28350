"""Data workers that fail: the run ends with a line, whatever happened to them, and never waits for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

PATIENCE = 240.0  # seconds; without an answer the trainer would wait for ever


def in_small_shared_memory(size: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Trains where /dev/shm has so many bytes, in a mount namespace of its own; skips where there can be none."""
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    try:
        possible = subprocess.run([*private, mount], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if possible.returncode:
        pytest.skip(f"no namespace may be made here: {possible.stderr.strip()}")
    return subprocess.run(
        [*private, f'{mount} && exec "$@"', "sh", sys.executable, "-m", "train", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


def test_too_little_shared_memory_is_refused_before_anything_is_written(
    recipe: Path, tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    """That of a container, for 64 pictures of 256 px: three steps of 48 MiB are in it at a time."""
    injected("/dev/shm of 64 MB", 1)
    done = in_small_shared_memory("64m", str(recipe), "data.batch=64", "data.image.crop=256", "data.workers=2")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line == (
        "train: data workers need 144 MiB of shared memory, and /dev/shm has 64 MiB free: make it larger (docker run "
        "--shm-size=145m, or a volume of kind Memory on /dev/shm in Kubernetes), set data.workers=0, or make "
        "data.batch smaller"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_as_much_as_is_asked_for_is_enough(recipe: Path, tmp_path: Path) -> None:
    """The remedy of the refusal: 16 pictures of 64 px and validation, three steps of 768 KiB and of 96 KiB."""
    settings = ["data.batch=16", "data.image.crop=64", "data.image.resize=64", "data.workers=2", "validation.crop=64"]
    settings += ["validation.resize=64", "validation.batch=2", "steps=8"]
    refused = in_small_shared_memory("2m", str(recipe), *settings)
    assert "need 3 MiB of shared memory, and /dev/shm has 2 MiB free: make it larger (docker run --shm-size=4m" in (
        refused.stderr
    )
    done = in_small_shared_memory("4m", str(recipe), *settings)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "done"


def test_shared_memory_that_runs_out_ends_the_run_with_a_line(
    recipe: Path, tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    """Whole pictures, whose size nobody knows before: 23 kB each."""
    injected("/dev/shm runs out while training", 1)
    done = in_small_shared_memory("128k", str(recipe), "data.image.crop=null", "data.workers=2")
    assert done.returncode == 2, done.stderr
    # Where validation begins meanwhile, torch adds what its own half-made iterator says as it is freed.
    lines = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    (line,) = [line for line in lines if "run: step" not in line and "train: device" not in line]
    assert line.startswith("train: /dev/shm has no room for decoded images (RuntimeError: unable to ")
    assert "set data.workers=0" in line
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (signal.SIGKILL, "the system does that when memory runs out: use fewer data.workers"),
        (signal.SIGBUS, "/dev/shm may be full: make it larger, or set data.workers=0"),
        pytest.param(signal.SIGSEGV, "with data.workers=0 the trainer reads", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_is_killed_ends_the_run_with_a_line(
    recipe: Path, tmp_path: Path, number: signal.Signals, remedy: str, injected: Callable[[str, int], None]
) -> None:
    injected(f"{number.name} to a data worker", 1)
    command = [sys.executable, "-m", "train", str(recipe), "steps=100000", "log.every=1", "data.workers=2"]
    command += ["checkpoint.every=100000", "validation.every=100000"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not (tmp_path / "run" / "metrics.jsonl").exists():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            worker = psutil.Process(process.pid).children()[1].pid
            os.kill(worker, number)
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 2, said
    line = said.splitlines()[-1].lstrip("\0")  # with which torch ends what its handler of SIGBUS says
    assert line.startswith(f"train: a data worker (process {worker}) was killed by {number.name}: {remedy}")
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"
