"""Training on a GPU: a step waits for nothing, takes the memory that is counted, gives the CPU's values, and repeats
itself; a run that has no room ends in a line, and one over NCCL goes on as if it had not stopped.

`python -m pytest -m gpu` asks a card; the other tests ask a device that pretends to be one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cards import CARD, SLOW_DEVICES, environment, play, run_module
from tests.conftest import ROOT
from tests.train.runs import assert_same_end

ALL_ON = ("discriminator.start=0", "discriminator.generator_start=0", "discriminator.ramp=0")
EXACT = ("precision=float32", "tf32=false", "optimizer.eps=1e-4")  # a small eps enlarges what is 0 but for rounding
COMPVIS = "discriminator.order=compvis"
HALF = ("precision=bfloat16", "norms=bfloat16")
NO_DATA = ("data.train=none", "data.validation=null", "output=none", "log.trackers=[]")
LAUNCH_FILE = ROOT / "configs/accelerate/one_machine.yaml"

Rows = list[dict[str, float]]


def assert_rows_near(ours: Rows, theirs: Rows, relative: float) -> None:
    """Of values near zero, such as a mean of logits, the difference may be as large as of one of size 0.1; of some
    hundred patches one may be taken for another kind, where its logit is nearly 0."""
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        expected = {name: pytest.approx(value, rel=relative, abs=0.1 * relative) for name, value in other.items()}
        accuracy = "discriminator_accuracy"
        assert one == expected | {accuracy: pytest.approx(other[accuracy], abs=0.01)}, step


def assert_gradients_near(ours: dict[str, float], theirs: dict[str, float], relative: float) -> None:
    """Those of parameters before a norm may be 0 but for rounding, so a hundredth of the largest counts for all."""
    small = 0.01 * relative * max(theirs.values())
    assert len(ours) > 40
    assert ours == {name: pytest.approx(value, rel=relative, abs=small) for name, value in theirs.items()}


@pytest.mark.parametrize("device", SLOW_DEVICES)
@pytest.mark.parametrize(
    ("changes", "relative"),
    [
        # Sums in another order, over five steps of Adam: 1e-12 in float64. Float32 and float64 differ by 1e-5.
        (["precision=float64"], 1e-8),
        (EXACT, 5e-4),
        ((*EXACT, COMPVIS), 5e-4),
    ],
    ids=["float64", "float32", "float32-compvis"],
)
def test_steps_wait_for_nothing_and_give_the_cpus_losses_and_gradients(
    device: str, changes: list[str], relative: float, recipe: Path
) -> None:
    """The steps themselves fail where the host waits (tests/on_device.py)."""
    ours = play(device, "steps", recipe, *ALL_ON, *changes)
    assert ours["device"] == device
    theirs = play("cpu", "steps", recipe, *ALL_ON, *changes)
    assert_rows_near(ours["rows"], theirs["rows"], relative)
    assert_gradients_near(ours["gradients"], theirs["gradients"], relative)


@pytest.mark.parametrize("device", SLOW_DEVICES)
@pytest.mark.parametrize("changes", [HALF, (*HALF, COMPVIS)], ids=["shared", "compvis"])
def test_steps_in_bfloat16_wait_for_nothing_and_give_nearly_the_values_of_float32(
    device: str, changes: list[str], recipe: Path
) -> None:
    """CUDA rounds elsewhere than a CPU: in what is an average of many values, float32 differs from both by 1 to 3 %."""
    ours = play(device, "steps", recipe, *ALL_ON, "optimizer.eps=1e-4", *changes)
    exact = play("cpu", "steps", recipe, *ALL_ON, *changes, *EXACT, "norms=autocast")
    assert ours["device"] == device
    for one, other in zip(ours["rows"], exact["rows"], strict=True):
        for name in ("pixel", "perceptual", "rate"):
            assert one[name] == pytest.approx(other[name], rel=0.06), name


@pytest.mark.parametrize("device", SLOW_DEVICES)
def test_deterministic_steps_repeat_themselves_bit_for_bit(device: str, recipe: Path) -> None:
    settings = ("deterministic=true", "precision=bfloat16", *ALL_ON)
    first, second = (play(device, "steps", recipe, *settings) for _ in range(2))
    assert first == second
    assert first["weights"] != play(device, "steps", recipe, *settings, "seed=1")["weights"]


@pytest.mark.parametrize("device", [CARD])
def test_compiled_steps_give_the_values_of_plain_ones(device: str, recipe: Path) -> None:
    """Only a card runs them: the device that pretends has no compiler, and for a CPU it takes minutes."""
    compiled, plain = (play(device, "steps", recipe, *EXACT, *ALL_ON, *more) for more in (["compile=true"], []))
    assert compiled["weights"] != plain["weights"]  # other kernels
    assert_rows_near(compiled["rows"], plain["rows"], 5e-4)


@pytest.mark.parametrize("device", SLOW_DEVICES)
@pytest.mark.parametrize("precision", [("precision=float32",), HALF], ids=["float32", "bfloat16"])
def test_a_step_takes_the_memory_that_a_dry_run_counts(device: str, precision: list[str], recipe: Path) -> None:
    """On a card, at the size of a published network, where cuBLAS's workspaces of up to 128 MiB are 3 % at most."""
    small, full = (recipe, 8, 128, *ALL_ON), (ROOT / "configs/kl_f8_c4.yaml", 2, 256, *NO_DATA)
    found = play(device, "peak", *(full if device == "cuda" else small), *precision)
    assert found["taken"] == pytest.approx(found["told"], rel=0.1 if device == "cuda" else 0.01)


@pytest.mark.parametrize("device", SLOW_DEVICES)
def test_a_step_that_does_not_fit_ends_the_run_in_a_line(device: str, recipe: Path, tmp_path: Path) -> None:
    """One layer of 64 images takes 17 MiB, and a step keeps more than 30."""
    wide = ("data.batch=64", "data.image.crop=32", "validation.every=100", "checkpoint.every=100")
    arguments = (recipe, f"output={tmp_path / 'run'}", "model.block_out_channels=[64,128]", *wide)
    code, said = run_module(device, "train", *arguments, mebibytes=256)
    assert code == 2, said
    assert not [line for line in said if "Traceback" in line]
    assert "memory" in said[-1] and "optimizer.accumulation=" in said[-1] and "(the batch stays 64)" in said[-1]


def launch(device: str, recipe: Path, folder: Path, *changes: str) -> None:
    """Trains on one process of those that `accelerate launch` starts, which talk though there is nobody else."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILE), "--num_processes=1"]
    scene = [str(ROOT / "tests/train/on_ranks.py"), "with_backend", str(recipe), f"output={folder}", *changes]
    done = subprocess.run([*start, *scene], cwd=ROOT, env=environment(device), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert folder.with_suffix(".backend").read_text() == {"cpu": "gloo", "cuda": "nccl"}[device]


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CARD])
def test_a_run_of_one_process_that_others_could_join_goes_on_bit_for_bit(
    device: str, recipe: Path, tmp_path: Path
) -> None:
    settings = ("deterministic=true", "optimizer.decay=constant", "log.every=3")
    launch(device, recipe, tmp_path / "whole", *settings)
    launch(device, recipe, tmp_path / "parts", *settings, "steps=3")
    launch(device, recipe, tmp_path / "parts", *settings)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
