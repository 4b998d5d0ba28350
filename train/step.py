"""One training step: an update of the autoencoder and one of the discriminator, from the same batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from train.state import Run

Pair = tuple[Tensor, Tensor]  # target and reconstruction, (B, C, H, W), outside any graph


def train_step(run: Run, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
    """The discriminator learns from the very reconstructions that the autoencoder was judged by: one forward for both.

    A step whose gradients are not finite in either network changes neither. Returns what the log takes, on the device.
    """
    values, pairs = autoencoder_gradients(run, micro_batches, step)
    norms = {"model": run.updates["model"].gradient_norm()}
    if run.objective.trains_discriminator(step):
        values |= discriminator_gradients(run, pairs)
        norms["discriminator"] = run.updates["discriminator"].gradient_norm()
    finite = run.guard.judge(norms.values())
    for name, norm in norms.items():
        run.updates[name].apply(norm, finite, step)
    run.ema.update(finite, step)
    run.guard.conclude(finite, step, micro_batches)
    return values | {f"gradient_norm/{name}": norm for name, norm in norms.items()}


def train_step_compvis(run: Run, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
    """CompVis' order: the discriminator learns from reconstructions of the updated autoencoder, at the price of a
    second forward. Each network is then judged by itself, the discriminator after the autoencoder has moved."""
    values, _ = autoencoder_gradients(run, micro_batches, step)
    norms = {"model": run.updates["model"].gradient_norm()}
    finite = run.guard.judge(norms.values())
    run.updates["model"].apply(norms["model"], finite, step)
    run.ema.update(finite, step)
    if run.objective.trains_discriminator(step):
        values |= discriminator_gradients(run, [run.reconstruct(batch, step) for batch in micro_batches])
        norms["discriminator"] = run.updates["discriminator"].gradient_norm()
        finite = run.guard.judge(norms.values())
        run.updates["discriminator"].apply(norms["discriminator"], finite, step)
    run.guard.conclude(finite, step, micro_batches)
    return values | {f"gradient_norm/{name}": norm for name, norm in norms.items()}


def autoencoder_gradients(run: Run, micro_batches: list[Batch], step: int) -> tuple[dict[str, Tensor], list[Pair]]:
    """Accumulates the autoencoder's gradient, averaged over micro-batches and ranks.

    Under accumulation the adaptive weight is each micro-batch's own, from gradients averaged over ranks.
    """
    values, pairs = [], []
    for i, batch in enumerate(micro_batches):
        with run.synchronised(run.model, last=i == len(micro_batches) - 1):
            output = run.model(batch.image, noise=run.noise(batch, step), label=batch.label)
            with run.frozen_discriminator() as critic:
                losses = run.objective(output, batch, critic, step)
            torch.autograd.backward(losses.roots, [gradient / len(micro_batches) for gradient in losses.gradients])
        values.append(losses.values)
        pairs.append((output.target, output.reconstruction.detach()))
    return mean_of(values), pairs


def discriminator_gradients(run: Run, pairs: list[Pair]) -> dict[str, Tensor]:
    """Accumulates the discriminator's gradient; real and reconstructed images share one call."""
    values = []
    for i, (target, reconstruction) in enumerate(pairs):
        with run.synchronised(run.discriminator, last=i == len(pairs) - 1):
            logits = run.discriminator(torch.cat([target, reconstruction.to(target)]))
            real, fake = logits.chunk(2)
            loss = run.objective.discriminator(real, fake)
            torch.autograd.backward(loss / len(pairs))
        accuracy = 0.5 * ((real > 0).to(target).mean() + (fake < 0).to(target).mean())
        values.append(
            {
                "discriminator": loss.detach(),
                "discriminator_accuracy": accuracy,
                "logits_real": real.detach().mean(),
                "logits_fake": fake.detach().mean(),
            }
        )
    return mean_of(values)


def mean_of(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over micro-batches, name by name."""
    return {name: torch.stack([value[name] for value in values]).mean() for name in values[0]}


STEPS = {"shared": train_step, "compvis": train_step_compvis}
