"""Scenes that tests play on several processes: torchrun ... on_ranks.py SCENE RECIPE [a.b=value ...]."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import pytest
import torch

from ldm_vae.ranks import is_first_to_report
from ldm_vae.recipe import load_recipe
from tests.kl import autoencoder_in
from train.agreement import RanksDiffer, check_ranks_agree
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run
from train.recipe import Recipe
from train.run import run_training
from train.step import TRAIN_STEPS

TRAIN_STEP = TRAIN_STEPS["shared"]


def bad_image_on_rank_1(recipe: Recipe) -> None:
    """Steps 2 and 3 meet a NaN, on one rank only; the weights before and after them must be equal on all."""
    seen: dict[int, torch.Tensor] = {}

    def step_with_nan(run: Any, micro_batches: Any, step: int) -> Any:
        if step in (2, 3) and run.accelerator.process_index == 1:
            image = micro_batches[0].image.clone()
            image[0, 0, 0, 0] = float("nan")
            micro_batches = [dataclasses.replace(micro_batches[0], image=image), *micro_batches[1:]]
        values = TRAIN_STEP(run, micro_batches, step)
        seen[step] = autoencoder_in(run.autoencoder).decoder.conv_out.weight.detach().clone()
        return values

    TRAIN_STEPS["shared"] = step_with_nan
    run_training(recipe)
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[3], seen[4])


def drift(recipe: Recipe) -> None:
    """One value on one rank moves by one bit: the check must notice on every rank, and name the group."""
    accelerator = build_accelerator(recipe)
    autoencoder, recipe = build_autoencoder(recipe)
    frozen, recipe = build_frozen(recipe)
    run = build_run(recipe, accelerator, autoencoder, frozen)
    check_ranks_agree({"model": run.autoencoder.state_dict()}, accelerator)
    if accelerator.process_index == 1:
        weight = autoencoder_in(run.autoencoder).decoder.conv_out.weight
        with torch.no_grad():
            weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    with pytest.raises(RanksDiffer, match="different values of model"):
        check_ranks_agree({"ema": run.ema.model.state_dict(), "model": run.autoencoder.state_dict()}, accelerator)
    accelerator.end_training()  # as training does: else a thread of gloo may outlive the interpreter, which aborts then


def say(recipe: Recipe) -> None:
    """What both ranks have to say, and what each has to say alone."""
    for message in ("said by both", f"said by {os.environ['RANK']}"):
        if is_first_to_report(message):
            print(message, file=sys.stderr)


if __name__ == "__main__":
    scene, path, *overrides = sys.argv[1:]
    globals()[scene](load_recipe(Recipe, Path(path), overrides))
