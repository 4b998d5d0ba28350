"""What a training step works on: the prepared networks, the objective, the updates, and the draws of noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.objective import Critic, Objective
from ldm_vae.networks.kl import Autoencoder
from ldm_vae.noise import slot_noise
from train.ema import Ema
from train.guard import Guard
from train.optimizer import Update


@dataclass(frozen=True)
class Run:
    """model, discriminator: as prepared by accelerate; gradients pass through them, so that they are synchronised.
    autoencoder: the model without its wrapper.   updates: "model" and, with an adversarial loss, "discriminator"."""

    accelerator: Accelerator
    autoencoder: Autoencoder
    model: nn.Module
    discriminator: nn.Module
    objective: Objective
    updates: dict[str, Update]
    ema: Ema
    guard: Guard
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and images: float32, or float64 where the recipe asks for it."""
        return next(self.autoencoder.parameters()).dtype

    def noise(self, batch: Batch, step: int) -> Tensor:
        """(B, c, h, w) from N(0, I), a function of seed, step and slot: the same on any number of processes."""
        return slot_noise(self.seed, step, batch.slot, self.autoencoder.latent_shape(batch.image)).to(batch.image)

    def synchronised(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over ranks with the last micro-batch only."""
        return nullcontext() if last else self.accelerator.no_sync(module)

    @contextmanager
    def frozen_discriminator(self) -> Iterator[Critic]:
        """The discriminator without its wrapper and without gradients of its own, in the run's precision."""
        discriminator = self.accelerator.unwrap_model(self.discriminator)
        discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            yield discriminator
        discriminator.requires_grad_(True)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Target and reconstruction by the present weights, with the step's own noise."""
        output = self.model(batch.image, noise=self.noise(batch, step), label=batch.label)
        return output.target, output.reconstruction
