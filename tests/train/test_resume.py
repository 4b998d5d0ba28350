"""A run that was stopped, however often, is the run that was never stopped: bit for bit on CPU."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train.loop
import train.status
from ldm_vae import LatentCodec
from ldm_vae.atomic import append
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.documents import read_yaml
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.recipe import load_recipe
from tests.conftest import ROOT, write_shards
from tests.train.runs import assert_same_end, rows, run_in_process
from train.preempt import Preempted
from train.recipe import Recipe, resolve_precision
from train.step import TRAIN_STEPS

STEPS = ("steps=11", "checkpoint.every=4", "checkpoint.keep_last=9", "log.every=3", "validation.every=5")


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """crash(n): the process dies, as far as the run can tell, at the n-th step that is taken from now on."""

    def arm(after: int) -> None:
        original, taken = TRAIN_STEPS["shared"], [0]

        def dying(*arguments: Any) -> Any:
            taken[0] += 1
            if taken[0] == after:
                monkeypatch.setitem(TRAIN_STEPS, "shared", original)
                raise SystemError("killed")
            return original(*arguments)

        monkeypatch.setitem(TRAIN_STEPS, "shared", dying)

    return arm


@pytest.fixture
def undisturbed(recipe: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "undisturbed"
    run_in_process(recipe, *STEPS, f"output={folder}")
    return folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # more than there are cores here
@pytest.mark.parametrize("workers", [0, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_twice_in_mid_epoch_and_resumed(
    recipe: Path,
    tmp_path: Path,
    undisturbed: Path,
    crash: Callable[[int], None],
    workers: int,
    injected: Callable[[str, int], None],
) -> None:
    injected(f"run killed in mid-epoch and resumed ({workers} workers)", 2)
    folder = tmp_path / "killed"
    settings = (*STEPS, f"output={folder}", f"data.workers={workers}")
    crash(7)  # after 6 steps: a checkpoint at 4, a row at 6 past it
    with pytest.raises(SystemError):
        run_in_process(recipe, *settings)
    assert [row["step"] for row in rows(folder)] == [3, 5, 6]
    crash(6)  # goes on at 4, dies after 9: a checkpoint at 8, a row at 9 past it
    with pytest.raises(SystemError):
        run_in_process(recipe, *settings)
    run_in_process(recipe, *settings)
    assert_same_end(folder, undisturbed)


def test_two_runs_from_one_seed_write_the_same_log(recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    run_in_process(recipe, *STEPS, f"output={tmp_path / 'again'}")
    assert_same_end(tmp_path / "again", undisturbed)
    run_in_process(recipe, *STEPS, f"output={tmp_path / 'other'}", "seed=1")
    assert rows(tmp_path / "other") != rows(undisturbed)


def test_what_ended_a_run_is_told_where_a_full_disk_takes_no_note_of_it(
    recipe: Path,
    tmp_path: Path,
    crash: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_status = train.status.write_status
    refused: list[str] = []

    def full(path: Path, text: str) -> None:
        if path.name == "broken.jsonl":
            refused.append(path.name)
            raise UserError(f"cannot write {path}", "make room")
        append(path, text)

    def not_noted(run: Path, status: Any, *arguments: Any, main: bool) -> None:
        if status == "failed":
            raise UserError(f"cannot write {run}/status.json", "make room")
        write_status(run, status, *arguments, main=main)

    monkeypatch.setattr("train.run.write_status", not_noted)
    monkeypatch.setattr(train.loop, "append", full)
    broken = write_shards(tmp_path / "shards", [30])
    with (broken / "000000.tar").open("r+b") as shard:  # zeros over the signature of the first picture
        at = shard.read().index(b"PNG")
        shard.seek(at)
        shard.write(bytes(8))
    crash(9)  # after 32 of 30 pictures, so that the broken one was met; not yet a row
    with pytest.raises(SystemError, match="killed"):
        run_in_process(recipe, "steps=10", "log.every=10", "checkpoint.every=10", f"data.train={broken}")
    assert refused == ["broken.jsonl"]
    assert "status.json: make room" in caplog.text


def test_a_signal_saves_and_the_run_goes_on(recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "preempted"
    original = TRAIN_STEPS["shared"]

    def signalled(run: Any, micro_batches: Any, step: int) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, micro_batches, step)

    TRAIN_STEPS["shared"] = signalled
    try:
        with pytest.raises(Preempted):
            run_in_process(recipe, *STEPS, f"output={folder}")
    finally:
        TRAIN_STEPS["shared"] = original
    assert json.loads((folder / "status.json").read_text())["status"] == "preempted"
    latest = Checkpoint.latest(folder)
    assert latest is not None and latest.step == 5
    run_in_process(recipe, *STEPS, f"output={folder}")
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    assert_same_end(folder, undisturbed)


def test_a_resumed_run_compares_with_the_validations_before(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("validation.every=2", "checkpoint.every=2", "optimizer.decay=constant")
    run_in_process(recipe, *steps, "steps=4")
    first = capsys.readouterr().err
    run_in_process(recipe, *steps, "steps=6")
    second = capsys.readouterr().err
    psnr = {row["step"]: row["validation/psnr"] for row in rows(tmp_path / "run") if "validation/psnr" in row}
    assert f"validation 2: PSNR {psnr[2]:.2f}  samples/step_00000002.png\n" in first
    changed = f"validation 6: PSNR {psnr[6]:.2f} ({psnr[6] - psnr[4]:+.2f})  samples/step_00000006.png\n"
    assert changed in second
    best = max(psnr, key=lambda step: psnr[step])
    assert second.splitlines()[-1] == f"best: PSNR {psnr[best]:.2f} at step {best}"


def test_a_finished_run_does_nothing(recipe: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "checkpoints").rglob("*")}
    log = (undisturbed / "metrics.jsonl").read_bytes()
    run_in_process(recipe, *STEPS, f"output={undisturbed}")
    assert {path: path.stat().st_mtime_ns for path in (undisturbed / "checkpoints").rglob("*")} == before
    assert (undisturbed / "metrics.jsonl").read_bytes() == log


def test_a_run_past_the_steps_that_are_asked_for_says_so_and_stays_as_it_is(recipe: Path, undisturbed: Path) -> None:
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="has taken 11 steps, and steps is 2: nothing was done; give more than 11 to"):
        run_in_process(recipe, *STEPS, f"output={undisturbed}", "steps=2")
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_shards_may_move_but_not_change(recipe: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(load_recipe(Recipe, recipe).data.train[0].shards, tmp_path / "moved"))
    stayed, folder, settings = tmp_path / "stayed", tmp_path / "run", (*STEPS, "optimizer.decay=constant")
    run_in_process(recipe, *settings, f"output={stayed}")
    run_in_process(recipe, *settings, f"output={folder}", "steps=4")
    run_in_process(recipe, *settings, f"output={folder}", f"data.train={moved}")
    last, expected = Checkpoint.latest(folder), Checkpoint.latest(stayed)
    assert last is not None and expected is not None and last.step == expected.step == 11
    theirs = expected.tensors("model")
    assert all(torch.equal(value, theirs[name]) for name, value in last.tensors("model").items())
    (moved / "000001.tar").unlink()
    with pytest.raises(UserError, match="the training data changed since"):
        run_in_process(recipe, *settings, f"output={folder}", f"data.train={moved}")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples"])
def test_a_folder_of_another_program_is_left_alone(recipe: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "theirs"
    (out / "samples").mkdir(parents=True)
    (out / "samples" / "step_00000011.png").write_text("theirs")
    if name == "metrics.jsonl":
        (out / name).write_text('{"step": 3}\n')
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"theirs holds {name} and is no run: give output the name of a new folder"):
        run_in_process(recipe, f"output={out}", *STEPS)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_another_experiment_under_the_same_name_is_refused(recipe: Path, undisturbed: Path) -> None:
    with pytest.raises(UserError, match=r"lr: 0.001, not 0.1: put it back, or .* model.init_from=\S+ and no"):
        run_in_process(recipe, *STEPS, f"output={undisturbed}", "optimizer.lr=0.1")
    other = (f"output={undisturbed.with_name('other')}", f"model.init_from={undisturbed}", "optimizer.lr=0.1")
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith("model:")]
    recipe.with_name("other.yaml").write_text("\n".join(lines))
    run_in_process(recipe.with_name("other.yaml"), *STEPS, *other)  # as the refusal advises
    run_in_process(recipe, *STEPS, f"output={undisturbed}", "steps=12")  # a longer run is the same experiment


def test_a_machine_on_which_auto_means_another_precision_is_refused(
    recipe: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = read_yaml(undisturbed / "recipe.yaml")["precision"]
    there = {"float32": "bfloat16", "bfloat16": "float32"}[here]  # and no longer auto
    asked = load_recipe(Recipe, recipe, [*STEPS, f"output={undisturbed}"])
    monkeypatch.setattr("train.run.resolve_precision", lambda _: asked.model_copy(update={"precision": there}))
    with pytest.raises(UserError, match=f"was started with precision: {here}, not {there}"):
        run_in_process(recipe)


def test_a_run_whose_recipe_has_the_former_words_is_the_same_experiment(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    before = Path(shutil.copytree(undisturbed, tmp_path / "before"))
    text = (before / "recipe.yaml").read_text()
    assert "precision: float32\n" in text
    (before / "recipe.yaml").write_text(text.replace("precision: float32\n", "precision: no\n"))
    run_in_process(recipe, *STEPS, f"output={before}", "precision=no", "steps=12")
    assert "precision: float32\n" in (before / "recipe.yaml").read_text()  # a step further, and in today's words
    (before / "recipe.yaml").write_text(text.replace("precision: float32\n", "precision: bf16\n"))
    with pytest.raises(UserError, match="was started with precision: bfloat16, not float32"):
        run_in_process(recipe, *STEPS, f"output={before}", "precision=float32", "steps=13")


@pytest.mark.parametrize(
    ("gpu", "bf16", "forced", "precision"),
    [
        (True, True, "", "bfloat16"),
        (True, False, "", "float32"),
        (False, True, "", "float32"),
        (True, True, "true", "float32"),
    ],
)
def test_auto_is_bfloat16_on_a_gpu_that_has_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool, forced: str, precision: str
) -> None:
    found = torch.device("cuda") if gpu else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setenv("ACCELERATE_USE_CPU", forced or "false")
    assert resolve_precision(load_recipe(Recipe, recipe)).precision == precision
    assert resolve_precision(load_recipe(Recipe, recipe, ["precision=float64"])).precision == "float64"


def test_a_damaged_newest_checkpoint_is_passed_over(recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    newest = Checkpoint.latest(undisturbed)
    assert newest is not None
    damaged = newest.folder / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run_in_process(recipe, *STEPS, f"output={undisturbed}")
    healed = Checkpoint.latest(undisturbed)
    assert healed is not None and healed.step == newest.step
    run_in_process(recipe, *STEPS, f"output={tmp_path / 'again'}")
    assert_same_end(undisturbed, tmp_path / "again")


def test_a_finetune_goes_on_without_the_codec_it_started_from(recipe: Path, tmp_path: Path, undisturbed: Path) -> None:
    codec = Checkpoint.latest(undisturbed)
    assert codec is not None
    source = codec.folder.rename(tmp_path / "codec")
    plain = recipe.read_text().replace(next(line for line in recipe.read_text().splitlines() if "model:" in line), "")
    recipe.write_text(plain)
    settings = (*STEPS, f"output={tmp_path / 'tuned'}", f"model.init_from={source}")
    run_in_process(recipe, *settings)
    shutil.rmtree(source)
    run_in_process(recipe, *settings, "steps=12")
    latest = Checkpoint.latest(tmp_path / "tuned")
    assert latest is not None and latest.step == 12


def test_a_decoder_keeps_latents_and_scale_of_the_codec_it_started_from(
    recipe: Path, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the codec that was measured, and of what was encoded with it; also after a resume without that codec."""
    parent = LatentCodec.load(undisturbed, device="cpu")
    parent.scale = LatentScale(0.7, 0.1)
    parent.as_diffusers().save_pretrained(tmp_path / "codec")
    lines = [line for line in recipe.read_text().splitlines() if "model:" not in line]
    recipe.write_text("\n".join(lines))
    settings = (*STEPS, f"model.init_from={tmp_path / 'codec'}")
    for part in ("decoder", "all"):
        run_in_process(recipe, *settings, f"output={tmp_path / part}", f"model.train={part}")
    assert "scaling_factor 0.7, shift_factor 0.1) is not theirs: `ldm-vae stats`" in caplog.text
    shutil.rmtree(tmp_path / "codec")
    run_in_process(recipe, *settings, f"output={tmp_path / 'decoder'}", "model.train=decoder", "steps=12")
    tuned, moved = (LatentCodec.load(tmp_path / part, device="cpu") for part in ("decoder", "all"))
    assert tuned.source.step == 12 and tuned.weights_hash != parent.weights_hash
    assert tuned.scale == parent.scale and parent.weights_hash in tuned.hashes
    assert moved.scale is None and parent.weights_hash not in moved.hashes


@pytest.mark.slow
def test_twenty_sigkills_at_random_moments(recipe: Path, tmp_path: Path, injected: Callable[[str, int], None]) -> None:
    """Real processes, killed while they import, resume, train, validate or save; a run that gets through is compared
    with the undisturbed one, and the next begins."""
    settings = ("steps=40", "checkpoint.every=2", "checkpoint.keep_last=2", "log.every=3", "validation.every=7")
    run_in_process(recipe, *settings, f"output={tmp_path / 'undisturbed'}")
    command = [sys.executable, "-m", "train", str(recipe), *settings]
    kills = finished = 0
    delays = random.Random(0)
    while kills < 20 or finished == 0:
        folder = tmp_path / f"run_{finished}"
        process = subprocess.Popen([*command, f"output={folder}"], cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=delays.uniform(2.0, 12.0) if kills < 20 else 300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0
        assert_same_end(folder, tmp_path / "undisturbed")
        finished += 1
    injected("SIGKILL at a random moment of a run", kills)
