"""What is counted on `meta` is what a real step does on the CPU: its operations and its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ldm_vae.data.stream.batch import Batch
from ldm_vae.quantities import binary_size
from tests.train.conftest import Build
from train.build import build_autoencoder
from train.cost import Cost, count_step
from train.recipe import Recipe
from train.state import Run
from train.step import step_of

SIDE, IMAGES = 64, 6
VARIANTS: tuple[list[str], ...] = (
    [],
    ["discriminator=null", "loss.perceptual.channels=off"],
    ["discriminator.order=compvis"],
    ["model.gradient_checkpointing=true"],
    ["loss.pixel.learned_variance=true", "discriminator.adaptive=false"],
)


def cost_of(recipe: Recipe) -> Cost:
    autoencoder, recipe = build_autoencoder(recipe, device="meta")
    return count_step(recipe, autoencoder, (SIDE, SIDE), IMAGES)


def take_last_step(run: Run, recipe: Recipe) -> None:
    images = torch.rand(IMAGES, 3, SIDE, SIDE) * 2 - 1
    batch = Batch(images, None, [str(number) for number in range(IMAGES)], torch.arange(IMAGES))
    step_of(recipe)(run, [batch], recipe.steps - 1)


@contextmanager
def convolutions(run: Run) -> Iterator[list[int]]:
    """The operations of each call of a convolution and of the backward passes through it, by the closed form.

    2 x kernel area x channels before / groups x values after, forward, and as many again for the gradient of the
    input and for that of the weight, where they are asked for.
    """
    last = run.autoencoder.anchors["decoder"].layer
    done: list[int] = []

    def note(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        forward = 2 * module.kernel_size[0] * module.kernel_size[1] * module.in_channels * output.numel()
        passes = 1
        if torch.is_grad_enabled():
            weights = int(module.weight.requires_grad)
            if module is last and not given[0].requires_grad:
                weights = 2  # the adaptive weight: the gradients of two losses at this weight
            passes += int(given[0].requires_grad) + weights
        done.append(passes * forward)

    frozen = [module for term in run.objective.reconstruction_terms for module in captured(term.term)]
    networks = [run.autoencoder, *run.critics.values(), *frozen]
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    yield done
    for handle in handles:
        handle.remove()


def captured(function: object) -> list[nn.Module]:
    """The networks that a function holds, such as the LPIPS of its term."""
    cells = getattr(function, "__closure__", None) or ()
    return [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, nn.Module)]


@pytest.mark.parametrize("changes", [v for v in VARIANTS if "model.gradient_checkpointing=true" not in v], ids=str)
def test_operations_are_those_of_the_closed_form(build: Build, changes: list[str]) -> None:
    run, recipe = build("model.mid_attention=false", "model.bottleneck.kind=gaussian", *changes)
    counted = cost_of(recipe)
    with convolutions(run) as done:
        take_last_step(run, recipe)
    assert len(done) > 20
    assert counted.flops == sum(done) // IMAGES


def test_checkpointing_computes_more_and_keeps_less(build: Build) -> None:
    plain, checkpointed = (cost_of(build(f"model.gradient_checkpointing={value}")[1]) for value in ("false", "true"))
    assert plain.flops < checkpointed.flops < 1.5 * plain.flops
    assert checkpointed.per_image < plain.per_image
    assert checkpointed.state == plain.state


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_bytes_are_those_of_the_allocator(build: Build, tmp_path: Path, changes: list[str]) -> None:
    """The allocator of the CPU tells the profiler of each block that it gives and takes back.

    Within 3 %: kernels of the CPU have small buffers of their own, such as sums for each thread. Within 10 % with
    checkpointing: there the peak lies in the backward pass of a convolution, for which the CPU makes a tensor more.
    """
    run, recipe = build("model.block_out_channels=[16,32]", *changes)
    counted = cost_of(recipe)
    take_last_step(run, recipe)  # makes the moments of Adam
    assert counted.state == pytest.approx(bytes_kept(run), rel=0.03)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        take_last_step(run, recipe)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["name"] == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    assert len(events) > 1000
    assert peak > 2 * counted.state  # so that what is compared is what the step takes
    tolerance = 0.1 if recipe.model.gradient_checkpointing else 0.03
    assert counted.peak - counted.state == pytest.approx(peak, rel=tolerance)


def bytes_kept(run: Run) -> int:
    """Bytes of everything that stays between steps."""
    networks = [run.autoencoder, run.ema.model, *run.critics.values()]
    networks += [module for term in run.objective.reconstruction_terms for module in captured(term.term)]
    kept = [value for network in networks for value in (*network.parameters(), *network.buffers())]
    kept += [value for update in run.updates.values() for value in update.state().values()]
    return sum(value.untyped_storage().nbytes() for value in kept)


def test_the_memory_of_attention_grows_with_the_image_and_not_with_its_square(build: Build) -> None:
    _, recipe = build("model.mid_attention=true", "discriminator=null", "loss.perceptual.channels=off")
    autoencoder, recipe = build_autoencoder(recipe, device="meta")
    small, large = (count_step(recipe, autoencoder, (side, side), 4).per_image for side in (128, 256))
    assert large == pytest.approx(4 * small, rel=0.01)


def test_float64_takes_twice_the_memory(build: Build) -> None:
    single, double = (cost_of(build(f"precision={precision}")[1]) for precision in ("float32", "float64"))
    assert double.flops == single.flops
    assert double.peak == pytest.approx(2 * single.peak, rel=0.01)  # flags and indices stay as small


def test_words() -> None:
    cost = Cost(images=64, flops=2_858_200_000_000, state=int(1.332 * 2**30), peak=int(151.412 * 2**30))
    assert cost.in_words() == "2.9 TFLOP and 2.3 GiB an image; 151 GiB for 64 images at once"
    assert [binary_size(x * 2**20) for x in (0.2, 9.96, 35.4, 1018, 1020, 20480)] == [
        *("0.2 MiB", "10 MiB", "35 MiB", "1,018 MiB", "1.0 GiB", "20 GiB"),
    ]
