"""A signal while a run waits for data that never come: it saves at once, and goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from ldm_vae.data.shards.index import write_index
from ldm_vae.interop.checkpoint import Checkpoint
from tests.conftest import ROOT
from tests.train.runs import DOUBLE, ENVIRONMENT, assert_close_end, assert_same_end, run_in_process, torchrun
from tests.train.silent_server import SilentServer, served
from train.preempt import PREEMPTED

STEPS = ("steps=11", "checkpoint.every=4", "checkpoint.keep_last=9", "log.every=3", "validation.every=5")
PATIENCE = 240.0  # seconds, far more than a run takes here, and far fewer than the reader waits for such a server


@pytest.fixture
def data(shards: Path, tmp_path: Path) -> Path:
    """The shards of the tiny recipe, with indexes."""
    folder = Path(shutil.copytree(shards, tmp_path / "data"))
    for part in ("train", "validation"):
        write_index(folder / part)
    return folder


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until_asked(server: SilentServer, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not server.asked.wait(0.1):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end


def status_of(folder: Path) -> str:
    status = json.loads((folder / "status.json").read_text())
    return f"{status['status']}: {status['reason']}"


@pytest.mark.parametrize(
    ("part", "workers"),
    [
        ("train", 0),
        ("validation", 2),
        pytest.param("train", 2, marks=pytest.mark.slow),
        pytest.param("validation", 0, marks=pytest.mark.slow),
    ],
)
def test_a_silent_server_does_not_hold_a_preempted_run(
    recipe: Path, tmp_path: Path, data: Path, part: str, workers: int, injected: Callable[[str, int], None]
) -> None:
    injected(f"SIGTERM while a server of {part} data is silent ({workers} workers)", 1)
    folder, settings = tmp_path / "run", [*STEPS, f"data.workers={workers}"]
    run_in_process(recipe, *settings, f"output={tmp_path / 'undisturbed'}", f"data.{part}={data / part}")
    command = [sys.executable, "-m", "train", str(recipe), *settings, f"output={folder}"]
    with (
        served(data / part, silent=(folder / "metrics.jsonl").exists) as server,
        running([*command, f"data.{part}={server.url}"]) as process,
    ):
        wait_until_asked(server, process)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == PREEMPTED, said
    latest = Checkpoint.latest(folder)
    assert latest is not None
    assert latest.step == 5 if part == "validation" else 3 <= latest.step < 11
    assert f"train: stopped by SIGTERM at step {latest.step}; run it again to go on" in said.splitlines()
    assert "Traceback" not in said
    assert status_of(folder) == f"preempted: SIGTERM at step {latest.step}"
    run_in_process(recipe, *settings, f"output={folder}", f"data.{part}={data / part}")
    assert status_of(folder) == "done: "
    assert_same_end(folder, tmp_path / "undisturbed")


@pytest.mark.parametrize("asks", ["for the index", "for the first pictures"])
def test_a_silent_server_does_not_hold_a_run_that_has_not_begun(
    recipe: Path, tmp_path: Path, data: Path, asks: str
) -> None:
    part = "train" if asks == "for the index" else "validation"
    remembered = tmp_path / "run" / "recipe.yaml"  # written between the two
    with (
        served(data / part, silent=remembered.exists if part == "validation" else lambda: True) as server,
        running([sys.executable, "-m", "train", str(recipe), f"data.{part}={server.url}"]) as process,
    ):
        wait_until_asked(server, process)
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == PREEMPTED, said
    assert "train: stopped by SIGTERM before the first step; run it again to go on" in said.splitlines()
    assert status_of(tmp_path / "run") == "preempted: SIGTERM before the first step"


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "validation"])
def test_one_rank_without_data_and_a_signal_to_the_other(
    recipe: Path, tmp_path: Path, data: Path, part: str, injected: Callable[[str, int], None]
) -> None:
    """One request gets no answer, so that one rank waits for its data and the other one for that rank."""
    injected(f"SIGTERM to each rank of two while {part} data of one stay away", 2)
    settings = (*DOUBLE, *STEPS)
    run_in_process(recipe, *settings, f"output={tmp_path / 'undisturbed'}", f"data.{part}={data / part}")
    for rank in ("0", "1"):
        folder, once = tmp_path / f"run_{rank}", threading.Lock()
        begun = (folder / "metrics.jsonl").exists

        def silent(begun: Callable[[], bool] = begun, once: threading.Lock = once) -> bool:
            return begun() and once.acquire(blocking=False)

        with served(data / part, silent=silent) as server:
            command = [*torchrun(2), "-m", "train", str(recipe), *settings, f"output={folder}"]
            with running([*command, f"data.{part}={server.url}"]) as process:
                wait_until_asked(server, process)
                children = psutil.Process(process.pid).children()
                next(child for child in children if child.environ().get("RANK") == rank).terminate()
                _, said = process.communicate(timeout=PATIENCE)
        assert "exitcode  : 85" in said
        latest = Checkpoint.latest(folder)
        assert latest is not None and 3 <= latest.step < 11
        assert status_of(folder) == f"preempted: SIGTERM at step {latest.step}"
        run_in_process(recipe, *settings, f"output={folder}", f"data.{part}={data / part}")
        assert_close_end(folder, tmp_path / "undisturbed")
