"""Which device a process takes, why, and what is refused. GPUs are told by what torch would say of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm_vae.devices import choose_device, has_float64, home_of_float64, in_float64, local_device
from ldm_vae.errors import UserError
from ldm_vae.recipe import load_recipe
from train.dry_run import describe_recipe
from train.recipe import Recipe
from train.run import run_training
from train.trial import check_trains

VARIABLES = (
    *("ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_CPU", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"),
)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def see(monkeypatch: pytest.MonkeyPatch, kind: str, count: int) -> None:
    """Lets torch see so many devices of a kind."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    module = SimpleNamespace(get_device_name=lambda device: f"{kind.upper()} 100")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)


def built_for(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    """Lets torch be built for a kind of devices, and see none."""

    def current(check_available: bool = False) -> torch.device | None:
        return None if kind is None or check_available else torch.device(kind)

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_process_takes_its_gpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    see(monkeypatch, kind, 1)
    assert choose_device().in_words() == f"{kind}:0 ({kind.upper()} 100)"


def test_each_process_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, "cuda", 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_device().in_words() == "cuda:2 (CUDA 100, one of 4)"


@pytest.mark.parametrize("rank", ["0", "2"])  # all of them see it, and say the same
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    see(monkeypatch, "cuda", 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        UserError,
        match=r"^3 processes on this machine and 2 cuda devices, with CUDA_VISIBLE_DEVICES=0,1: "
        r"start at most one process for each, or set ACCELERATE_USE_CPU=true$",
    ):
        local_device()


def test_training_refuses_them_before_work(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    see(monkeypatch, "cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="2 processes on this machine and 1 cuda device: "):
        run_training(load_recipe(Recipe, recipe))
    assert not (recipe.parent / "run").exists()


def test_what_accelerate_is_told_holds_here(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, "cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert choose_device().in_words() == "cpu (ACCELERATE_USE_CPU is set)"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:5")
    assert choose_device().in_words() == "cuda:5 (ACCELERATE_TORCH_DEVICE=cuda:5)"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="ACCELERATE_TORCH_DEVICE=cuda:5 gives 3 processes one device: leave it out"):
        local_device()
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "gpux")
    with pytest.raises(UserError, match="ACCELERATE_TORCH_DEVICE=gpux: name a device of torch"):
        local_device()


def test_why_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    built_for(monkeypatch, None)
    assert choose_device().in_words() == "cpu (this torch is built for the CPU alone)"
    built_for(monkeypatch, "mps")
    assert choose_device().in_words() == "cpu (torch sees no mps device)"
    built_for(monkeypatch, "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device().in_words() == "cpu (torch sees no cuda device with CUDA_VISIBLE_DEVICES=)"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update ...")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    assert choose_device().in_words() == "cpu (The NVIDIA driver on your system is too old (found version 11040))"


def test_a_dry_run_says_it(monkeypatch: pytest.MonkeyPatch, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    describe_recipe(load_recipe(Recipe, recipe))
    assert "device: cpu (ACCELERATE_USE_CPU is set), float32" in capsys.readouterr().out


def test_float64_stays_where_it_is() -> None:
    value = torch.tensor([0.1])
    assert has_float64(value.device) and home_of_float64(value.device) == value.device
    assert torch.equal(in_float64(value), value.double())


def test_a_device_that_lacks_what_training_needs_is_refused() -> None:
    """`meta` has no fused Adam."""
    with pytest.raises(UserError, match=r"^meta cannot train: .*: train on another device \(ACCELERATE_USE_CPU=true\)"):
        check_trains(torch.device("meta"))


def test_a_device_that_ignores_the_flag_of_a_bad_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fused Adam on Apple's devices did until pytorch/pytorch#186360."""
    plain: Callable[..., object] = torch._fused_adam_

    def heedless(*parts: object, found_inf: object = None, **options: object) -> object:
        return plain(*parts, **options)

    check_trains(torch.device("cpu"))
    monkeypatch.setattr(torch, "_fused_adam_", heedless)
    with pytest.raises(UserError, match="cpu cannot train: its fused Adam does not skip a step whose gradients"):
        check_trains(torch.device("cpu"))
