"""One training step: an update of the autoencoder and one of each adversary, from the same batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.adversary import Adversary, Pair
from train.arithmetic import step_arithmetic
from train.recipe import Recipe
from train.state import Run

Sums = Mapping[str, Tensor]  # what a bottleneck learns from besides gradients


def train_step(run: Run, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
    """Updates the autoencoder and the adversaries from one forward pass: all learn from the same reconstructions.

    If the gradients of one network are not finite, no network changes. Returns scalars for the log, on the device.
    """
    values, pairs, sums = autoencoder_gradients(run, micro_batches, step)
    norms = {"model": run.updates["model"].gradient_norm()}
    for adversary in run.adversaries:
        if adversary.learns(step):
            values |= adversary_gradients(run, adversary, [pair[adversary.name] for pair in pairs], step)
            norms[adversary.name] = run.updates[adversary.name].gradient_norm()
    finite = run.guard.judge(norms.values())
    for name, norm in norms.items():
        run.updates[name].apply(norm, finite, step)
    run.update_bottleneck(sums, micro_batches[0], step)
    run.guard.conclude(finite, step, micro_batches)
    run.ema.update(finite, step)
    return values | {f"gradient_norm/{name}": norm for name, norm in norms.items()}


def train_step_compvis(run: Run, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
    """Updates in CompVis' order: the adversaries learn from reconstructions of the updated autoencoder.

    This takes a second forward pass. If the autoencoder's gradient is not finite, no network changes; if an adversary's
    is not, the autoencoder has changed already, and no adversary changes.
    """
    values, _, sums = autoencoder_gradients(run, micro_batches, step)
    norms = {"model": run.updates["model"].gradient_norm()}
    finite = run.guard.judge(norms.values())
    run.updates["model"].apply(norms["model"], finite, step)
    run.update_bottleneck(sums, micro_batches[0], step)
    learning = [adversary for adversary in run.adversaries if adversary.learns(step)]
    pairs = [run.pairs(batch, step) for batch in micro_batches] if learning else []
    for adversary in learning:
        values |= adversary_gradients(run, adversary, [pair[adversary.name] for pair in pairs], step)
        norms[adversary.name] = run.updates[adversary.name].gradient_norm()
    all_finite = run.guard.judge(norms.values())
    for adversary in learning:
        run.updates[adversary.name].apply(norms[adversary.name], all_finite, step)
    run.guard.conclude(all_finite, step, micro_batches)
    run.ema.update(finite, step)
    return values | {f"gradient_norm/{name}": norm for name, norm in norms.items()}


def autoencoder_gradients(
    run: Run, micro_batches: list[Batch], step: int
) -> tuple[dict[str, Tensor], list[dict[str, Pair]], list[Sums]]:
    """Accumulates the autoencoder's gradient, averaged over micro-batches and ranks.

    With accumulation, each micro-batch has an adaptive weight of its own, from gradients averaged over ranks.
    Returns means for the log, and for each micro-batch what the adversaries and the bottleneck learn from.
    """
    values: list[dict[str, Tensor]] = []
    pairs: list[dict[str, Pair]] = []
    sums: list[Sums] = []
    for i, batch in enumerate(micro_batches):
        with run.synchronised(run.model, last=i == len(micro_batches) - 1):
            output = run.forward(batch, step)
            with run.frozen_critics() as critics:
                losses = run.objective(output, batch, critics, step)
            torch.autograd.backward(losses.roots, [gradient / len(micro_batches) for gradient in losses.gradients])
        values.append(losses.values)
        noise = run.noise(batch, step)
        pairs.append({adversary.name: adversary.pair(output, noise) for adversary in run.adversaries})
        sums.append({name: value.detach() for name, value in output.posterior.sums.items()})
    return mean_of(values), pairs, sums


def adversary_gradients(run: Run, adversary: Adversary, pairs: list[Pair], step: int) -> dict[str, Tensor]:
    """Accumulates the gradient of an adversary's network."""
    values = []
    network = run.critics[adversary.name]
    for i, pair in enumerate(pairs):
        with run.synchronised(network, last=i == len(pairs) - 1):
            loss, beside = adversary.loss(network, pair, step)
            torch.autograd.backward(loss / len(pairs))
        values.append({adversary.title("discriminator"): loss.detach()})
        values[-1] |= {adversary.title(name): value for name, value in beside.items()}
    return mean_of(values)


def mean_of(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over micro-batches, name by name."""
    return {name: torch.stack([value[name] for value in values]).mean() for name in values[0]}


TRAIN_STEPS = {"shared": train_step, "compvis": train_step_compvis}


def step_of(recipe: Recipe) -> Callable[[Run, list[Batch], int], dict[str, Tensor]]:
    """The step that a recipe asks for, in the order of its adversary and with the arithmetic of the recipe."""
    step = TRAIN_STEPS["shared" if recipe.discriminator is None else recipe.discriminator.order]

    def take(run: Run, micro_batches: list[Batch], number: int) -> dict[str, Tensor]:
        with step_arithmetic(recipe):
            return step(run, micro_batches, number)

    return take
