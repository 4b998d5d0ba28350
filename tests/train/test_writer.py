"""Checkpoints that are written while the run goes on: the same bytes, one at a time, and no error is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from tests.train.runs import run_in_process
from train.checkpoint import CheckpointConfig, folder_of
from train.step import TRAIN_STEPS
from train.validate import Validation
from train.writer import CheckpointWriter

SLOW = 0.2  # seconds that a save takes at least: whoever does not wait for it is earlier
LONGEST = 120.0  # seconds that a test waits for what must happen, before it says that it does not
WRITE = Checkpoint.write
Hold = Callable[[Event], list[str]]


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """hold(event): every save waits for the event before it writes. Returns what has begun and ended, as it happens."""

    def holding(until: Event) -> list[str]:
        happened: list[str] = []

        def write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> Checkpoint:
            happened.append(f"begin {meta['step']}")
            assert until.wait(LONGEST)
            time.sleep(SLOW)
            checkpoint = WRITE(folder, tensors, meta)
            happened.append(f"end {meta['step']}")
            return checkpoint

        monkeypatch.setattr(Checkpoint, "write", write)
        return happened

    return holding


@pytest.fixture
def step_does(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """step_does(what): before each step, `what` is called with its number."""

    def arm(what: Callable[[int], None]) -> None:
        original = TRAIN_STEPS["shared"]

        def step_with(run: Any, micro_batches: Any, step: int) -> Any:
            what(step)
            return original(run, micro_batches, step)

        monkeypatch.setitem(TRAIN_STEPS, "shared", step_with)

    return arm


def fail_to_write(folder: Path, tensors: object, meta: object) -> None:
    raise UserError(f"cannot write {folder}", "make room there")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_are_those_of_a_save_that_stops_the_run(tmp_path: Path) -> None:
    square = torch.randn(4, 4)
    tensors = {
        "model": {"strided": square.t(), "shared": square, "half": square.bfloat16(), "empty": torch.zeros(0, 2)},
        "state": {"count": torch.tensor(3), "parameter": torch.nn.Parameter(square.double())},
    }
    meta = {"step": 7, "model": {}, "health": {"pixel": (0.5, 2)}}
    WRITE(tmp_path / "plain", tensors, meta)
    with CheckpointWriter(tmp_path / "run", CheckpointConfig()) as writer:
        writer.save(7, tensors, meta)
    assert files(folder_of(tmp_path / "run", 7)) == files(tmp_path / "plain")


def test_what_changes_after_the_call_is_not_in_the_file(tmp_path: Path, hold: Hold) -> None:
    go_on = Event()
    hold(go_on)
    weight, means = torch.zeros(3), {"pixel": [1.0, 2.0]}
    with CheckpointWriter(tmp_path, CheckpointConfig()) as writer:
        writer.save(1, {"model": {"weight": weight}}, {"step": 1, "model": {}, "health": means})
        weight.add_(1.0)
        means["pixel"][0] = 3.0
        go_on.set()
        writer.wait()
    saved = Checkpoint.at(tmp_path, 1)
    assert torch.equal(saved.tensors("model")["weight"], torch.zeros(3))
    assert saved.meta["health"] == {"pixel": [1.0, 2.0]}


def test_steps_go_on_while_a_checkpoint_is_written(
    recipe: Path, tmp_path: Path, hold: Hold, step_does: Callable[[Callable[[int], None]], None]
) -> None:
    go_on = Event()
    happened = hold(go_on)

    def note(step: int) -> None:
        happened.append(f"step {step}")
        if step == 4:  # the save after step 2 waits for this one
            go_on.set()

    step_does(note)
    run_in_process(recipe, "steps=6", "checkpoint.every=3", "data.validation=null")
    assert happened.index("step 4") < happened.index("end 3")
    assert happened[-1] == "end 6"  # the end of the run has waited
    assert Checkpoint.latest(tmp_path / "run").step == 6  # type: ignore[union-attr]


def test_the_next_save_waits_for_the_one_before(recipe: Path, hold: Hold) -> None:
    go_on = Event()
    go_on.set()
    happened = hold(go_on)
    run_in_process(recipe, "steps=4", "checkpoint.every=1", "data.validation=null")
    assert happened == [f"{what} {step}" for step in (1, 2, 3, 4) for what in ("begin", "end")]


def test_a_validation_begins_with_nothing_half_written(
    recipe: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Event()
    go_on.set()
    happened, validate = hold(go_on), Validation.__call__

    def validating(*arguments: Any) -> dict[str, float]:
        happened.append("validate")
        return validate(*arguments)

    monkeypatch.setattr(Validation, "__call__", validating)
    run_in_process(recipe, "steps=4", "checkpoint.every=1", "validation.every=2")
    assert happened[happened.index("validate") - 1] == "end 1"


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_does: Callable[[Callable[[int], None]], None]
) -> None:
    taken: list[int] = []
    step_does(taken.append)
    monkeypatch.setattr(Checkpoint, "write", fail_to_write)
    check = CheckpointWriter.check

    def check_once_it_has_failed(writer: CheckpointWriter) -> None:
        if writer._thread is not None:
            writer._thread.join(LONGEST)
        check(writer)

    monkeypatch.setattr(CheckpointWriter, "check", check_once_it_has_failed)
    with pytest.raises(UserError, match=r"cannot write .*step_00000003: make room there"):
        run_in_process(recipe, "steps=9", "checkpoint.every=3", "data.validation=null")
    assert taken == [0, 1, 2]


def test_the_last_checkpoint_that_cannot_be_written_fails_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "write", fail_to_write)
    with pytest.raises(UserError, match=r"cannot write .*step_00000006: make room there"):
        run_in_process(recipe, "steps=6", "checkpoint.every=6", "data.validation=null")
    assert '"failed"' in (tmp_path / "run" / "status.json").read_text()


def test_an_error_of_the_run_is_told_before_one_of_the_checkpoint(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step_does: Callable[[Callable[[int], None]], None],
) -> None:
    failed = Event()

    def fail_late(folder: Path, tensors: object, meta: object) -> None:
        assert failed.wait(LONGEST)
        fail_to_write(folder, tensors, meta)

    def fail(step: int) -> None:
        if step == 3:
            failed.set()
            raise SystemError("killed")

    monkeypatch.setattr(Checkpoint, "write", fail_late)
    step_does(fail)
    with pytest.raises(SystemError, match="killed"):
        run_in_process(recipe, "steps=6", "checkpoint.every=3", "data.validation=null")
    assert "step_00000003: make room there" in caplog.text


def test_an_error_waits_until_the_checkpoint_is_written(
    recipe: Path, tmp_path: Path, hold: Hold, step_does: Callable[[Callable[[int], None]], None]
) -> None:
    go_on = Event()
    hold(go_on)

    def fail(step: int) -> None:
        if step == 3:
            go_on.set()
            raise SystemError("killed")

    step_does(fail)
    with pytest.raises(SystemError, match="killed"):
        run_in_process(recipe, "steps=6", "checkpoint.every=3", "data.validation=null")
    assert Checkpoint.latest(tmp_path / "run").step == 3  # type: ignore[union-attr]
