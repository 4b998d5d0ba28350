"""The state of a run as tensors and numbers: everything that decides how it continues, and nothing that can be derived.

Position in the data, schedules, crops and noise are functions of the step, so the step is enough for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.pretrained.backbones import weights_sha256
from train.agreement import check_ranks_agree, sums_of_groups
from train.arithmetic import arithmetic_record
from train.health import Health
from train.log import Meter
from train.recipe import Recipe
from train.state import Run
from train.together import gather_together

RUN_GROUPS = ("model", "ema", "state")  # groups of tensors in a checkpoint, beside those of adversaries and optimizers


def tensors_of(run: Run, meter: Meter) -> dict[str, dict[str, Tensor]]:
    """The groups of tensors of a checkpoint, the same on all ranks. All must call: they compare their bits.

    Raises RanksDiffer, on all ranks, where a group differs between them.
    """
    state = {"skipped": run.guard.skipped, "in_a_row": run.guard.in_a_row}
    groups = {
        "model": run.autoencoder.state_dict(),
        "ema": run.ema.model.state_dict(),
        "state": state,
        "optimizer_model": run.updates["model"].state(),
    }
    for name, critic in run.critics.items():
        groups[name] = _without_frozen(run.accelerator.unwrap_model(critic))
        groups[f"optimizer_{name}"] = run.updates[name].state()
    several = run.accelerator.num_processes > 1
    bits = {"bits": sums_of_groups(groups, run.accelerator.device)} if several else {}
    gathered = gather_together({"meter": meter.local(), **bits}, run.accelerator)
    if several:
        check_ranks_agree(groups, gathered["bits"])
    if meter.sums:
        state["meter"] = gathered["meter"]
    return groups


def meta_of(run: Run, recipe: Recipe, data: str, meter: Meter, health: Health, step: int) -> dict[str, Any]:
    """The content of a checkpoint's meta.json. The codec reads only `model` of it.

    data: fingerprint of the index of the training data: the position after `step` steps depends on it.
    """
    return {
        "step": step,
        "samples": step * recipe.data.batch,
        "data": data,
        "model": run.autoencoder.config.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "meter": meter.names,
        "health": health.means,
        "arithmetic": arithmetic_record(recipe, run.accelerator.device.type),
        "frozen": _frozen_hashes(run),
        "origin": None if run.origin is None else run.origin.to_json(),
    }


def restore(run: Run, meter: Meter, health: Health, checkpoint: Checkpoint) -> None:
    """Restores a run from what `tensors_of` and `meta_of` returned, on any number of processes."""
    run.autoencoder.load_state_dict(checkpoint.tensors("model"))
    run.ema.model.load_state_dict(checkpoint.tensors("ema"))
    run.updates["model"].load(checkpoint.tensors("optimizer_model"))
    _check_frozen(run, checkpoint.meta.get("frozen", {}), str(checkpoint.folder))
    for name, critic in run.critics.items():
        network = run.accelerator.unwrap_model(critic)
        network.load_state_dict(network.state_dict() | checkpoint.tensors(name))
        run.updates[name].load(checkpoint.tensors(f"optimizer_{name}"))
    health.means = {name: (mean, seen) for name, (mean, seen) in checkpoint.meta.get("health", {}).items()}
    state = checkpoint.tensors("state")
    run.guard.skipped.copy_(state["skipped"])
    run.guard.in_a_row.copy_(state["in_a_row"])
    run.guard.longest.copy_(state["in_a_row"])
    if "meter" in state:
        sums = _sums_of_rank(state["meter"], run.accelerator.process_index, run.accelerator.num_processes)
        meter.restore(checkpoint.meta["meter"], sums, run.accelerator.device)


def _frozen(module: nn.Module) -> dict[str, Tensor]:
    """The frozen weights of a network, which come from a file of their own and are in no checkpoint."""
    return {name: value for name, value in module.named_parameters() if not value.requires_grad}


def _without_frozen(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network without its frozen weights."""
    frozen = _frozen(module)
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _frozen_hashes(run: Run) -> dict[str, str]:
    """The hash of each critic's frozen weights, by the critic's name; those without any are left out."""
    frozen = {name: _frozen(run.accelerator.unwrap_model(critic)) for name, critic in run.critics.items()}
    return {name: weights_sha256(weights) for name, weights in frozen.items() if weights}


def _check_frozen(run: Run, expected: Mapping[str, str], where: str) -> None:
    """Raises UserError where a critic's frozen weights are not those that the checkpoint was trained with."""
    for name, found in _frozen_hashes(run).items():
        if expected.get(name, found) != found:
            raise UserError(f"the frozen weights of {name} differ from those of {where}", "put the former weights back")


def _sums_of_rank(saved: Tensor, rank: int, world: int) -> Tensor:
    """(ranks, names, 2) -> (names, 2). If the number of processes has changed, the main one takes the sums of all.

    A step counts once for each process, and so the steps of before are weighed as if they had been taken on as many.
    """
    if len(saved) == world:
        return saved[rank]
    return saved.sum(dim=0) * (world / len(saved)) if rank == 0 else torch.zeros_like(saved[0])
