"""Builds runs from the tiny recipe, in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import train_batches
from ldm_vae.recipe import load_recipe
from ldm_vae.transfer import Courier
from tests.train import seams
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run
from train.recipe import Recipe
from train.state import Run

Build = Callable[..., tuple[Run, Recipe]]
Holds = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def build(recipe: Path) -> Build:
    """build("a.b=value", ...) -> a run of the tiny recipe with these changes, and the recipe."""

    def build_with(*overrides: str) -> tuple[Run, Recipe]:
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the precision of the first run
        PartialState._reset_state()
        config = load_recipe(Recipe, recipe, overrides)
        accelerator = build_accelerator(config)
        autoencoder, config = build_autoencoder(config)
        frozen, config = build_frozen(config)
        return build_run(config, accelerator, autoencoder, frozen), config

    return build_with


@pytest.fixture
def holds(request: pytest.FixtureRequest, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Holds:
    """holds("a.b=value", ...): trains with the part that the test's module registers, as `seams.holds` says."""
    request.module.register(monkeypatch)
    return partial(seams.holds, request.module.__name__, recipe, tmp_path)


def batches_of(run: Run, recipe: Recipe, steps: int) -> list[list[Batch]]:
    """The micro-batches of the first steps."""
    stream = train_batches(
        recipe.data,
        load_index(recipe.data.train),
        recipe.seed,
        start_step=0,
        rank=0,
        world=1,
        accumulation=recipe.optimizer.accumulation,
    )
    return [[batch.by(Courier(torch.device("cpu")), run.dtype) for batch in next(stream)] for _ in range(steps)]


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """Copies of everything that a step may change."""
    groups = {
        "model": run.autoencoder.state_dict(),
        "discriminator": run.critics["discriminator"].state_dict(),
        "ema": run.ema.model.state_dict(),
        **{f"optimizer_{name}": update.state() for name, update in run.updates.items()},
    }
    return {f"{group}/{name}": value.clone() for group, named in groups.items() for name, value in named.items()}
