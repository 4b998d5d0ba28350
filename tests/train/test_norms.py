"""The recipe's field `norms`: which networks it reaches, and when it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_vae.errors import UserError
from ldm_vae.nn.norm import TypeKeeper
from ldm_vae.recipe import load_recipe
from tests.train.conftest import Build, batches_of
from train.recipe import Recipe
from train.step import train_step


def kept(network: torch.nn.Module) -> set[bool]:
    return {module.keeps_type for module in network.modules() if isinstance(module, TypeKeeper)}


@pytest.mark.parametrize(("norms", "keeps"), [("autocast", False), ("bfloat16", True)])
def test_the_networks_that_are_trained_follow_the_recipe(build: Build, norms: str, keeps: bool) -> None:
    run, recipe = build("precision=bfloat16", f"norms={norms}")
    for network in (run.autoencoder, run.ema.model, *run.critics.values()):
        assert kept(run.accelerator.unwrap_model(network)) == {keeps}
    (micro_batches,) = batches_of(run, recipe, 1)
    assert all(value.isfinite() for value in train_step(run, micro_batches, 3).values())
    assert {parameter.dtype for parameter in run.autoencoder.parameters()} == {torch.float32}


def test_in_float32_they_are_refused(recipe: Path) -> None:
    with pytest.raises(UserError, match="norms: bfloat16 is for precision: bfloat16 or auto, not float32"):
        load_recipe(Recipe, recipe, ["norms=bfloat16", "precision=float32"])
