"""Scenes that tests play on several processes: torchrun ... on_ranks.py SCENE RECIPE [a.b=value ...]."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import pytest
import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_vae.ranks import is_first_to_report
from ldm_vae.recipe import load_recipe
from tests.kl import autoencoder_in
from train.agreement import RanksDiffer, check_ranks_agree, sums_of_groups
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run
from train.compiled import compile_run
from train.recipe import Recipe
from train.run import run_training
from train.step import TRAIN_STEPS
from train.together import gather_together

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
    compare({"model": run.autoencoder.state_dict()}, accelerator)
    if accelerator.process_index == 1:
        weight = autoencoder_in(run.autoencoder).decoder.conv_out.weight
        with torch.no_grad():
            weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
    with pytest.raises(RanksDiffer, match="different values of model"):
        compare({"ema": run.ema.model.state_dict(), "model": run.autoencoder.state_dict()}, accelerator)
    accelerator.end_training()  # as training does: else a thread of gloo may outlive the interpreter, which aborts then


def compare(groups: dict[str, dict[str, torch.Tensor]], accelerator: Accelerator) -> None:
    gathered = gather_together({"bits": sums_of_groups(groups, accelerator.device)}, accelerator)
    check_ranks_agree(groups, gathered["bits"])


class Collectives(TorchDispatchMode):
    """Counts what is sent to other processes, by its name in torch; DistributedDataParallel's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def collectives(recipe: Recipe) -> None:
    """Writes, for each step up to the last but one, what was sent from its beginning to that of the next one."""
    begun: list[Counter[str]] = []
    with Collectives() as sent:

        def step_that_counts(run: Any, micro_batches: Any, step: int) -> Any:
            begun.append(Counter(sent.counts))
            return TRAIN_STEP(run, micro_batches, step)

        TRAIN_STEPS["shared"] = step_that_counts
        run_training(recipe)
    if os.environ["RANK"] == "0":
        steps = [dict(after - before) for before, after in pairwise(begun)]
        (Path(recipe.output) / "collectives.json").write_text(json.dumps(steps))


def compiled(recipe: Recipe) -> None:
    """Trains with networks that are compiled, but not down to the code of the processor, which takes minutes."""
    assert build_accelerator(recipe).num_processes == 2
    pytest.MonkeyPatch().setattr("train.run.compile_run", partial(compile_run, backend="aot_eager"))
    run_training(recipe)
    assert counters["stats"]["unique_graphs"] > 0


def with_backend(recipe: Recipe) -> None:
    """Trains, once it has written beside the run folder what carries values between processes."""
    build_accelerator(recipe)
    Path(recipe.output).with_suffix(".backend").write_text(torch.distributed.get_backend())
    run_training(recipe)


def say(recipe: Recipe) -> None:
    """What both ranks have to say, and what each has to say alone."""
    for message in ("said by both", f"said by {os.environ['RANK']}"):
        if is_first_to_report(message):
            print(message, file=sys.stderr)


if __name__ == "__main__":
    scene, path, *overrides = sys.argv[1:]
    globals()[scene](load_recipe(Recipe, Path(path), overrides))
