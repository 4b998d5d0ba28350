"""The arithmetic that a recipe asks for: in every step, and nowhere else; what cannot repeat itself is refused."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.recipe import load_recipe
from tests.arithmetic_flags import BACKENDS, Flags, fast, flags, is_exact, set_by_a_caller, watched
from tests.train.conftest import Build, batches_of
from tests.train.runs import run_in_process
from train.arithmetic import WORKSPACE, repeatable
from train.recipe import Recipe
from train.step import step_of

pytestmark = pytest.mark.numerical


def rounds_convolutions_alone(found: Flags) -> bool:
    """cuDNN may round to TF32; matrix products and oneDNN are exact."""
    operations = {name for name, value in found.items() if " " in name and value != "ieee"}
    return found["cudnn"] is True and found["matmul"] is False and operations <= {"cuda conv", "cuda rnn"}


@pytest.mark.parametrize("order", ["shared", "compvis"])
def test_a_step_computes_as_the_recipe_says(build: Build, order: str) -> None:
    for tf32, expected in (("true", rounds_convolutions_alone), ("false", is_exact)):
        run, recipe = build(f"tf32={tf32}", "cudnn_benchmark=true", f"discriminator.order={order}")
        in_backward: list[Flags] = []
        run.autoencoder.get_parameter("encoder.conv_in.weight").register_hook(
            lambda _, at=in_backward: at.append(flags())
        )
        benchmark: list[bool] = []
        hook = run.autoencoder.register_forward_pre_hook(lambda *_, at=benchmark: at.append(BACKENDS.cudnn.benchmark))
        with set_by_a_caller(fast) as before:
            with watched() as found:
                step_of(recipe)(run, batches_of(run, recipe, 1)[0], 5)  # all losses are on
            assert flags() == before
        hook.remove()
        assert found and all(map(expected, found + in_backward)) and in_backward
        assert benchmark and all(benchmark) and not BACKENDS.cudnn.benchmark


def test_validation_within_a_run_is_exact_and_the_checkpoint_says_what_was_computed_with(recipe: Path) -> None:
    layers: list[tuple[bool, Flags]] = []

    def note(module: nn.Module, _: object) -> None:
        if isinstance(module, nn.Conv2d):
            layers.append((torch.is_grad_enabled(), flags()))

    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with set_by_a_caller(fast) as before:
            run_in_process(recipe, "steps=1", "loss.perceptual.channels=off", "cudnn_benchmark=true")
            assert flags() == before
    finally:
        hook.remove()
    in_steps = [found for grad, found in layers if grad]
    in_validation = [found for grad, found in layers if not grad]
    assert in_steps and all(map(rounds_convolutions_alone, in_steps))
    assert in_validation and all(map(is_exact, in_validation))
    checkpoint = Checkpoint.latest(recipe.parent / "run")
    assert checkpoint is not None
    assert checkpoint.meta["arithmetic"] == {
        "device": "cpu",
        "torch": torch.__version__,
        "float32": "exact",
        "deterministic": False,
        "cudnn_benchmark": True,
    }


def settings() -> tuple[Any, ...]:
    return (
        BACKENDS.cudnn.deterministic,
        BACKENDS.cudnn.benchmark,
        BACKENDS.mkldnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get(WORKSPACE),
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_repeats_itself_is_asked_for_and_given_back(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(BACKENDS.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = settings()
        with suppress(KeyError), repeatable(True, device):
            assert settings() == (True, False, True, True, False, ":4096:8" if device == "cuda" else None)
            raise KeyError
        assert settings() == before
        with repeatable(False, device):
            assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_cublas_that_was_told_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with repeatable(True, "cuda"):
        assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":4096:2")
    before = settings()
    with (
        pytest.raises(
            UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:4096:2, .*: leave the variable out, or set it to :4096:8"
        ),
        repeatable(True, "cuda"),
    ):
        pytest.fail("nothing is computed")
    assert settings() == before


def put(module: nn.Module, inputs: object) -> None:
    """An operation that PyTorch has no deterministic algorithm for, on any device."""
    torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))


def test_an_operation_that_cannot_repeat_itself_ends_the_run_in_a_line(recipe: Path) -> None:
    hook = nn.modules.module.register_module_forward_pre_hook(put)
    before = settings()
    try:
        run_in_process(recipe, "steps=1", "validation.every=5", "loss.perceptual.channels=off")
        words = r"deterministic: true, and put_ has no deterministic algorithm on cpu in PyTorch \S+: set deterministic"
        with pytest.raises(UserError, match=words):
            run_in_process(
                recipe, "steps=1", "deterministic=true", "loss.perceptual.channels=off", f"output={recipe.parent}/b"
            )
    finally:
        hook.remove()
    assert settings() == before
    assert "put_ has no deterministic algorithm" in (recipe.parent / "b" / "status.json").read_text()


def test_a_deterministic_run_on_the_cpu_is_the_run_without(recipe: Path) -> None:
    """Every operation of the tiny recipe, with all losses on, has such an algorithm on the CPU."""
    ends = []
    for name in ("true", "false"):
        run_in_process(recipe, f"deterministic={name}", f"output={recipe.parent}/{name}")
        checkpoint = Checkpoint.latest(recipe.parent / name)
        assert checkpoint is not None and checkpoint.meta["arithmetic"]["deterministic"] is (name == "true")
        ends.append(checkpoint.tensors("model"))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_timed_kernels_and_determinism_exclude_each_other(recipe: Path) -> None:
    with pytest.raises(UserError, match="deterministic and cudnn_benchmark exclude each other"):
        load_recipe(Recipe, recipe, ["deterministic=true", "cudnn_benchmark=true"])
