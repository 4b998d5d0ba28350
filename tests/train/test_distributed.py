"""Several real processes (gloo) against one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.order import sample_refs
from ldm_vae.interop.checkpoint import Checkpoint
from tests.conftest import ROOT, write_shards
from tests.train.runs import DOUBLE, ENVIRONMENT, assert_close_end, rows, run_in_process, torchrun
from train.status import RunLock, write_status

SCENES = Path(__file__).with_name("on_ranks.py")


def launch(processes: int, *arguments: str, code: int = 0) -> str:
    """`-m train ...` or a scene on so many processes; what they wrote to stderr."""
    done = subprocess.run(
        [*torchrun(processes), *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def test_two_processes_equal_one_over_twenty_steps_with_all_losses_on(recipe: Path, tmp_path: Path) -> None:
    settings = (*DOUBLE, "steps=20", "checkpoint.every=20", "validation.every=20", "log.every=5")
    said = launch(2, "-m", "train", str(recipe), *settings, f"output={tmp_path / 'two'}")
    assert "2 processes" in said  # two CPU processes are easily one: accelerate launch --cpu --num_processes 2 is
    run_in_process(recipe, *settings, f"output={tmp_path / 'one'}")
    assert_close_end(tmp_path / "two", tmp_path / "one")
    assert rows(tmp_path / "two")[-2]["generator"] != 0.0
    assert rows(tmp_path / "two")[-1]["validation/images"] == 5  # each once, and 2 do not divide them


@pytest.mark.slow
def test_two_processes_log_what_one_does_in_float32(recipe: Path, tmp_path: Path) -> None:
    """Row by row to 1e-4, relative: rounding of another order of sums reached 5e-6 in 20 steps. With Adam's usual eps
    it would move parameters whose true gradient is 0, such as the discriminator's last bias, by the learning rate."""
    settings = ("steps=20", "validation.every=10", "log.every=5", "optimizer.eps=1e-3")
    assert "2 processes" in launch(2, "-m", "train", str(recipe), *settings, f"output={tmp_path / 'two'}")
    run_in_process(recipe, *settings, f"output={tmp_path / 'one'}")
    assert len(rows(tmp_path / "two")) == 6
    for row, other in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert row.keys() == other.keys()
        assert row == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])  # whether graphs are left whole
def test_two_compiled_processes_equal_a_plain_one(recipe: Path, tmp_path: Path, checkpointing: str) -> None:
    settings = (*DOUBLE, "optimizer.eps=1e-4", f"model.gradient_checkpointing={checkpointing}")
    two = ("compile=true", f"output={tmp_path / 'two'}")
    launch(2, str(SCENES), "compiled", str(recipe), *settings, *two)
    run_in_process(recipe, *settings, f"output={tmp_path / 'one'}")
    assert_close_end(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_accelerate_launch_starts_two_processes(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [*command, "-m", "train", str(recipe), f"output={tmp_path / 'run'}"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr


@pytest.mark.slow
def test_resumed_on_one_then_two_then_four_processes(
    recipe: Path, tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    injected("stopped and resumed on another number of processes (1, 2, 4)", 2)
    settings = (*DOUBLE, "checkpoint.every=1", "checkpoint.keep_last=9", "log.every=2", "validation.every=3")
    launch(
        1, "-m", "train", str(recipe), *settings, "steps=7", "optimizer.decay=constant", f"output={tmp_path / 'one'}"
    )
    for processes, steps in ((1, 2), (2, 5), (4, 7)):
        launch(
            processes, "-m", "train", str(recipe), *settings, f"steps={steps}", "optimizer.decay=constant",
            f"output={tmp_path / 'many'}",
        )  # fmt: skip
    first, second = Checkpoint.latest(tmp_path / "one"), Checkpoint.latest(tmp_path / "many")
    assert first is not None and second is not None and first.step == second.step == 7
    for group in ("model", "ema", "discriminator"):
        a, b = first.tensors(group), second.tensors(group)
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-7)  # as above


@pytest.mark.slow
def test_a_bad_image_on_one_rank_is_skipped_by_all(
    recipe: Path, tmp_path: Path, injected: Callable[[str, int], None]
) -> None:
    injected("an image with NaN on one rank of two", 2)
    launch(2, str(SCENES), "bad_image_on_rank_1", str(recipe), f"output={tmp_path / 'run'}")
    assert [row["skipped_steps"] for row in rows(tmp_path / "run") if "skipped_steps" in row] == [0, 2, 2]
    bad = next(row for row in rows(tmp_path / "run") if row["step"] == 4)
    assert bad["gradient_norm/model"] is None  # both steps since the row before were bad: JSON has no word for NaN
    assert bad["pixel"] > 0  # of the good rank


@pytest.mark.slow
def test_a_run_of_bad_images_stops_with_their_keys(recipe: Path, tmp_path: Path) -> None:
    settings = ("optimizer.patience=2", "log.every=6", "checkpoint.every=2")  # steps 4 and 5 are good again
    said = launch(2, str(SCENES), "bad_image_on_rank_1", str(recipe), *settings, f"output={tmp_path / 'run'}", code=1)
    assert "gradients were not finite in 2 steps in a row" in said
    suspects = json.loads((tmp_path / "run" / "nonfinite_rank_1.json").read_text())
    assert suspects.keys() == {"2", "3"}
    latest = Checkpoint.latest(tmp_path / "run")
    assert latest is not None and latest.step == 2
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_ranks_that_drift_apart_are_noticed(recipe: Path, tmp_path: Path) -> None:
    launch(2, str(SCENES), "drift", str(recipe), f"output={tmp_path / 'run'}")


def test_ranks_meet_once_for_each_gradient_and_once_for_a_row(recipe: Path, tmp_path: Path) -> None:
    settings = ("steps=8", "log.every=2", "checkpoint.every=5", "data.validation=null")
    launch(2, str(SCENES), "collectives", str(recipe), *settings, f"output={tmp_path / 'run'}")
    steps = json.loads((tmp_path / "run" / "collectives.json").read_text())
    # Two gradients, the adaptive weight, and the look for a signal before the next step.
    plain = {"allreduce_": 4}
    # Before, the adversary starts, and the buckets of the gradients are arranged. 4 and 6 are logged, 5 is saved.
    row = save = {"allgather_": 1}
    assert steps[3:] == [plain | row, plain | save, plain | row, plain]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_on_all(
    recipe: Path, tmp_path: Path, number: signal.Signals, injected: Callable[[str, int], None]
) -> None:
    injected(f"{number.name} to one rank of two", 1)
    folder = tmp_path / "run"
    command = [*torchrun(2), "-m", "train", str(recipe), "steps=100000", "checkpoint.every=100000", f"output={folder}"]
    process = subprocess.Popen([*command, "validation.every=100000"], cwd=ROOT, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children()
        ranks = {worker.environ()["RANK"]: worker for worker in workers if "RANK" in worker.environ()}
        before = len((folder / "metrics.jsonl").read_text().splitlines())
        ranks["1"].send_signal(number)
        process.wait(timeout=120)
    finally:
        process.kill()
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "preempted"
    assert number.name in status["reason"]
    latest = Checkpoint.latest(folder)
    assert latest is not None and latest.step >= 2 * before


def test_batch_that_cannot_be_shared_out_is_refused(recipe: Path, tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "train", str(recipe), "data.batch=3", "optimizer.accumulation=2"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 2
    last = said.stderr.strip().splitlines()[-1]
    assert last.startswith("train: data.batch 3 is not divisible by 1 ranks x 2 micro-batches: choose a multiple")


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        pytest.param("ACCELERATE_USE_DEEPSPEED", "DeepSpeed", marks=pytest.mark.slow),
    ],
)
def test_sharding_of_one_model_is_refused(recipe: Path, variable: str, name: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "train", str(recipe)],
        cwd=ROOT, capture_output=True, text=True, env={**ENVIRONMENT, variable: "true"},
    )  # fmt: skip
    assert said.returncode == 2
    assert said.stderr.startswith(f"train: {name} is not supported")
    assert len(said.stderr.strip().splitlines()) == 1


def test_a_tracker_that_is_not_installed_is_named(recipe: Path) -> None:
    if find_spec("trackio") is not None:
        pytest.skip("trackio is installed here")
    said = subprocess.run(
        [sys.executable, "-m", "train", str(recipe), "log.trackers=[trackio]"], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 2
    assert said.stderr == 'train: log.trackers: trackio is not installed: pip install "ldm-vae[trackio]"\n'


@pytest.mark.slow
def test_broken_samples_are_counted_over_all_ranks(recipe: Path, tmp_path: Path) -> None:
    index = load_index(str(write_shards(tmp_path / "shards", [24])))
    refs = sample_refs(index, 0, range(24))
    for ref in (refs[1], refs[3], refs[4], refs[6]):  # position % 2 is the rank: two on each
        url, offset, _ = index.shards[ref.shard].place(ref.ordinal, "png")
        with Path(url).open("r+b") as shard:
            shard.seek(offset)
            shard.write(bytes(8))  # over the signature
    settings = (f"data.train={tmp_path / 'shards'}", "data.broken_budget=3", "log.every=6")
    said = launch(2, "-m", "train", str(recipe), *settings, f"output={tmp_path / 'run'}", code=1)
    assert said.count("train: 4 broken samples, 3 are allowed: ") == 1
    assert len((tmp_path / "run" / "broken.jsonl").read_text().splitlines()) >= 4


def test_what_all_ranks_have_to_say_is_said_once(recipe: Path) -> None:
    said = launch(2, str(SCENES), "say", str(recipe)).splitlines()
    assert [said.count(f"said by {who}") for who in ("both", "0", "1")] == [1, 1, 1]


@pytest.mark.slow
def test_two_processes_on_a_run_in_use_leave_its_status_alone(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLock(folder, main=True):
        write_status(folder, "running")
        before = (folder / "status.json").read_bytes()
        said = launch(2, "-m", "train", str(recipe), code=1)
        assert (folder / "status.json").read_bytes() == before
    assert said.count("is in use by another trainer") == 1


def test_a_run_folder_that_cannot_be_made_is_named(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = subprocess.run(
        [sys.executable, "-m", "train", str(recipe), f"output={tmp_path / 'file' / 'run'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 2
    assert said.stderr.startswith(f"train: cannot write into the run folder {tmp_path / 'file' / 'run'}: ")
    assert len(said.stderr.strip().splitlines()) == 1
