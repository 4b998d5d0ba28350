"""A training step on a device that pretends to be a GPU: it waits for nothing, and takes the memory that is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm_vae.recipe import load_recipe
from tests.tools.stand_in.play import play
from tests.tools.stand_in.scenes import NAMED
from train.build import build_autoencoder
from train.cost import count_step
from train.recipe import Recipe

STEPS = (  # every way through the step; counts of waits don't depend on the network's size
    [],
    ["precision=bfloat16"],
    ["discriminator.order=compvis", "optimizer.accumulation=2"],
    ["optimizer.clip=1", "loss.perceptual.channels=select", "loss.perceptual.select=[2,1,0]"],
    ["loss.pixel.learned_variance=true", "discriminator.adaptive=false"],
    ["discriminator=null", "model.gradient_checkpointing=true"],
)
WIDTHS = (  # of published networks, in each precision
    ["kl_f8_c4.yaml", "precision=float32"],
    ["kl_f8_c4.yaml", "precision=bfloat16", "model.gradient_checkpointing=true"],
    ["kl_f4_c3.yaml", "precision=bfloat16", "discriminator.order=compvis"],
    ["kl_f16_c16.yaml", "precision=bfloat16"],
)


def test_a_step_waits_for_nothing(recipe: Path) -> None:
    for changes, counts in zip(STEPS, play("steps", *(";".join([str(recipe), *each]) for each in STEPS)), strict=True):
        assert counts["waits"] == {}, changes
        assert counts["pageable"] == {}, changes
        assert counts["kernels"] > 100 and counts["up"] > 2 * 3 * 64 * 64 * 4  # images and noise went there
        assert counts["down"] == 0


def test_memory_is_what_a_dry_run_counts() -> None:
    """Within 1 %, without fitted constants: both count each tensor that exists, and differ by some small ones."""
    files = [";".join([str(Path("configs") / name), *changes]) for name, *changes in WIDTHS]
    for (name, *changes), counts in zip(WIDTHS, play("steps", *files), strict=True):
        recipe = load_recipe(Recipe, Path("configs") / name, [*NAMED, *changes])
        autoencoder, recipe = build_autoencoder(recipe, device="meta")
        cost = count_step(recipe, autoencoder, (64, 64), 2)
        assert cost.state == pytest.approx(counts["state"], rel=0.01), (name, changes)
        assert cost.peak == pytest.approx(counts["peak"], rel=0.01), (name, changes)
        assert counts["peak"] > 1.2 * counts["state"]  # so that what is compared is what the step takes
