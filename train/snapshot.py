"""A run as tensors and numbers: everything that decides how it goes on, and nothing that can be derived.

Position in the data, schedules, crops and noise are functions of the step, so the step stands for them all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm_vae.interop.checkpoint import Checkpoint
from train.health import Health
from train.log import Meter
from train.recipe import Recipe
from train.state import Run


def tensors_of(run: Run, meter: Meter) -> dict[str, dict[str, Tensor]]:
    """Groups of a checkpoint, equal on all ranks. All must call, since the meter's sums are gathered."""
    state = {"skipped": run.guard.skipped, "in_a_row": run.guard.in_a_row}
    if meter.sums:
        state["meter"] = meter.gather(run.accelerator)
    groups = {
        "model": run.autoencoder.state_dict(),
        "ema": run.ema.model.state_dict(),
        "state": state,
        "optimizer_model": run.updates["model"].state(),
    }
    for name, critic in run.critics.items():
        groups[name] = _without_frozen(run.accelerator.unwrap_model(critic))
        groups[f"optimizer_{name}"] = run.updates[name].state()
    return groups


def meta_of(run: Run, recipe: Recipe, data: str, meter: Meter, health: Health, step: int) -> dict[str, Any]:
    """What a reader needs beside the tensors; `model` is all that the codec asks for.

    data: fingerprint of the index, without which the step stands for no position.
    """
    return {
        "step": step,
        "samples": step * recipe.data.batch,
        "data": data,
        "model": run.autoencoder.config.model_dump(mode="json"),
        "recipe": recipe.model_dump(mode="json"),
        "meter": meter.names,
        "health": health.means,
    }


def restore(run: Run, meter: Meter, health: Health, checkpoint: Checkpoint) -> None:
    """The inverse of `tensors_of`, on any number of processes."""
    run.autoencoder.load_state_dict(checkpoint.tensors("model"))
    run.ema.model.load_state_dict(checkpoint.tensors("ema"))
    run.updates["model"].load(checkpoint.tensors("optimizer_model"))
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
        meter.sums = dict(zip(checkpoint.meta["meter"], sums.to(run.accelerator.device).unbind(), strict=True))


def _without_frozen(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network without the weights that are never trained: these come from elsewhere."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _sums_of_rank(saved: Tensor, rank: int, world: int) -> Tensor:
    """(ranks, names, 2) -> (names, 2). On another number of processes the main one takes over the sums of all."""
    if len(saved) == world:
        return saved[rank]
    return saved.sum(dim=0) if rank == 0 else torch.zeros_like(saved[0])
