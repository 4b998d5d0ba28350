"""Which checkpoints stay, and that nothing is lost by deleting or by dying at any moment."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.recipe import validate
from train.checkpoint import CheckpointConfig, folder_of, prune

RECIPE = "recipe"


def save_step(run: Path, config: CheckpointConfig, step: int, **metrics: float) -> Checkpoint:
    tensors = {"model": {"weight": torch.full((100,), float(step))}}
    checkpoint = Checkpoint.write(folder_of(run, step), tensors, {"step": step, "model": {}, "metrics": metrics})
    prune(run, config)
    return checkpoint


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in Checkpoint.all(run)]


@pytest.mark.parametrize("key", ["every", "keep_last"])
def test_impossible_numbers_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"{RECIPE}: {key}"):
        validate(CheckpointConfig, {key: 0}, RECIPE)


def test_keep_last_and_keep_every(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=2, keep_every=30)
    for step in range(10, 110, 10):
        save_step(tmp_path, config, step)
    assert steps(tmp_path) == [30, 60, 90, 100]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {f"step_{n:08d}" for n in (30, 60, 90, 100)}


def test_a_checkpoint_that_holds_a_note_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CheckpointConfig(keep_last=1)
    save_step(tmp_path, config, 1)
    (folder_of(tmp_path, 1) / "notes.txt").write_text("the best so far")
    save_step(tmp_path, config, 2)
    save_step(tmp_path, config, 3)
    assert steps(tmp_path) == [1, 3]
    assert "step_00000001 stays, for it holds notes.txt" in caplog.text
    with pytest.raises(UserError, match=r"holds notes\.txt, which would be lost"):
        save_step(tmp_path, config, 1)
    assert (folder_of(tmp_path, 1) / "notes.txt").read_text() == "the best so far"


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_the_best_stays_until_a_better_one(tmp_path: Path, mode: str, best: int) -> None:
    config = validate(CheckpointConfig, {"keep_last": 1, "best": "score", "mode": mode}, RECIPE)
    for step, score in enumerate([5.0, 1.0, float("nan"), 9.0, 9.0, 4.0], start=1):
        save_step(tmp_path, config, step, score=score)
    save_step(tmp_path, config, 7)  # not validated: never the best
    assert steps(tmp_path) == [best, 7]
    better = 0.0 if mode == "min" else 10.0
    save_step(tmp_path, config, 8, score=better)
    save_step(tmp_path, config, 9)
    assert steps(tmp_path) == [8, 9]


def test_nothing_goes_unless_the_new_one_verifies(tmp_path: Path) -> None:
    keep_all, keep_one = CheckpointConfig(keep_last=9), CheckpointConfig(keep_last=1)
    save_step(tmp_path, keep_one, 1)
    newest = save_step(tmp_path, keep_all, 2)
    path = newest.folder / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\xff")
    assert prune(tmp_path, keep_one) == []
    assert steps(tmp_path) == [1, 2]
    path.write_bytes(good)
    assert [folder.name for folder in prune(tmp_path, keep_one)] == ["step_00000001"]
    assert steps(tmp_path) == [2]
    path.unlink()
    assert prune(tmp_path, keep_one) == []  # not one of them verifies
    assert steps(tmp_path) == [2]


def test_a_full_disk_deletes_nothing(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=1)
    first = save_step(tmp_path, config, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))  # bytes; the kernel refuses the tensors
    try:
        with pytest.raises(UserError, match="step_00000002"):
            save_step(tmp_path, config, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Checkpoint.latest(tmp_path) == first


def test_a_damaged_later_one_does_not_push_out_the_one_resumed_from(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=1)
    for step in (1, 2, 8):
        save_step(tmp_path, CheckpointConfig(keep_last=9), step)
    (tmp_path / "checkpoints" / "step_00000008" / "model.safetensors").write_bytes(b"")
    save_step(tmp_path, config, 3)  # what a run resumed from 2 saves next
    latest = Checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 3
    assert steps(tmp_path) == [3, 8]


SAVE_FOREVER = """
import itertools, os, pathlib, runpy, sys
from ldm_vae.interop.checkpoint import Checkpoint
from train.checkpoint import CheckpointConfig
save_step = runpy.run_path(sys.argv[1])["save_step"]
run = pathlib.Path(sys.argv[2])
for line in sys.stdin:  # a process for each life, forked so that torch is imported once
    life = os.fork()
    if life == 0:
        latest = Checkpoint.latest(run)
        for step in itertools.count(latest.step if latest else 1):  # the first save replaces the one resumed from
            save_step(run, CheckpointConfig(keep_last=1), step)
    print(life, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(life, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """keep_last=1 leaves the least to fall back on. A save takes some 10 ms, so the delays hit all of its parts."""
    save_step(tmp_path, CheckpointConfig(keep_last=1), 1)
    generator, reached = random.Random(0), 1
    with subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, __file__, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(20):
            parent.stdin.write("again\n")
            parent.stdin.flush()
            life = int(parent.stdout.readline())
            time.sleep(generator.uniform(0.1, 0.4))
            os.kill(life, signal.SIGKILL)
            assert int(parent.stdout.readline()) == -signal.SIGKILL
            latest = Checkpoint.latest(tmp_path)
            assert latest is not None
            assert latest.step >= reached, "a step that was saved is lost"
            assert torch.equal(latest.tensors("model")["weight"], torch.full((100,), float(latest.step)))
            reached = latest.step
    assert reached > 20, "the processes did save"
    save_step(tmp_path, CheckpointConfig(keep_last=1), reached + 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step_{reached + 1:08d}"]
