"""A compiled run: each network is one graph, none is compiled anew, and checkpoints and numbers stay."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ldm_vae.recipe import load_recipe
from tests.kl import autoencoder_in
from tests.train.conftest import batches_of
from tests.train.runs import assert_close_end, run_in_process
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run
from train.compiled import compile_run
from train.recipe import Recipe
from train.state import Run
from train.step import step_of

# Rounding stays small where Adam's eps does not enlarge it, as where a true gradient is 0.
SETTINGS = ("precision=float64", "optimizer.eps=1e-4", "validation.metrics=[psnr]")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    donated, split = torch._functorch.config.donated_buffer, torch._dynamo.config.optimize_ddp
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    torch._functorch.config.donated_buffer, torch._dynamo.config.optimize_ddp = donated, split


def compiled_run(path: Path, graphs: CompileCounterWithBackend, *settings: str) -> tuple[Run, Recipe]:
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    recipe = load_recipe(Recipe, path, settings)
    autoencoder, recipe = build_autoencoder(recipe)
    frozen, recipe = build_frozen(recipe)
    run = build_run(recipe, build_accelerator(recipe), autoencoder, frozen)
    compile_run(run, frozen, recipe.model_copy(update={"compile": True}), backend=graphs)
    return run, recipe


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Encoder, decoder, LPIPS, and the discriminator twice: with frozen weights, and with images to learn from.
        ([], 5),
        (["model.gradient_checkpointing=true", "optimizer.accumulation=2"], 5),
        (["precision=bfloat16"], 5),
        (["discriminator.order=compvis"], 7),  # encoder and decoder also without gradients
    ],
)
def test_each_network_is_one_graph_and_none_is_compiled_anew(recipe: Path, settings: list[str], expected: int) -> None:
    graphs = CompileCounterWithBackend("aot_eager")
    run, config = compiled_run(recipe, graphs, "discriminator.generator_start=1", "discriminator.ramp=0", *settings)
    step, found = step_of(config), []
    for number, micro_batches in enumerate(batches_of(run, config, 4)):
        step(run, micro_batches, number)
        found.append(graphs.frame_count)
    assert found[1:] == [expected] * 3
    assert not counters["graph_break"]
    assert autoencoder_in(run.ema.model).encoder._compiled_call_impl is None  # validates any size


def test_a_compiled_graph_may_be_differentiated_twice(recipe: Path) -> None:
    """As adaptive weights at the encoder's last layer do."""
    run, config = compiled_run(recipe, CompileCounterWithBackend("aot_eager"))
    output = run.forward(batches_of(run, config, 1)[0][0], 0)
    seed, latent = torch.ones_like(output.parameters), output.above["encoder"]
    first = torch.autograd.grad(output.parameters, [latent], seed, retain_graph=True)
    second = torch.autograd.grad(output.parameters, [latent], seed)
    assert torch.equal(first[0], second[0])


@pytest.mark.slow
@pytest.mark.parametrize(("part", "backend"), [("all", "inductor"), ("decoder", "aot_eager")])
def test_a_compiled_run_is_nearly_the_plain_one_and_goes_on_as_such(
    recipe: Path, tmp_path: Path, part: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: sums in another order move weights by 1e-7 at most, as on another number of processes."""
    monkeypatch.setattr("train.run.compile_run", partial(compile_run, backend=backend))
    settings: tuple[str, ...] = (*SETTINGS, "log.every=3", "checkpoint.every=3", "optimizer.decay=constant")
    if part == "decoder":
        run_in_process(recipe, *settings, "steps=3", f"output={tmp_path / 'codec'}")
        recipe.write_text("\n".join(line for line in recipe.read_text().splitlines() if "model:" not in line))
        settings = (*settings, f"model.init_from={tmp_path / 'codec'}", "model.train=decoder")
    run_in_process(recipe, *settings, f"output={tmp_path / 'plain'}")
    run_in_process(recipe, *settings, "compile=true", "steps=3", f"output={tmp_path / 'compiled'}")
    assert counters["stats"]["unique_graphs"] > 0
    run_in_process(recipe, *settings, f"output={tmp_path / 'compiled'}")  # from the checkpoint of the compiled one
    assert_close_end(tmp_path / "compiled", tmp_path / "plain")
