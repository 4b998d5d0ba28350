"""The parts of a run that a training step works on: networks, objective, updates and noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm_vae.data.stream.batch import Batch
from ldm_vae.interop.origin import LatentOrigin
from ldm_vae.losses.adversary import Adversary, Pair
from ldm_vae.losses.objective import Objective
from ldm_vae.networks.network import Network, Output
from ldm_vae.noise import SlotNoise
from ldm_vae.views.view import Views, no_view
from train.ema import Ema
from train.guard import Guard
from train.optimizer import Update


@dataclass(frozen=True)
class Run:
    """Everything that a step reads or changes.

    accelerator: the processes and their precision.
    autoencoder: the autoencoder without accelerate's wrapper.
    model: the autoencoder as accelerate has prepared it; gradients pass through it, so that they are synchronised.
    critics: the networks of the objective's adversaries by name, as accelerate has prepared them.
    objective: what the autoencoder minimises.
    updates: the optimizers of "model" and of each critic, by name.
    ema: the averaged autoencoder.
    guard: counts the steps that were not finite.
    seed: seed of all noise.
    bottleneck_learns: whether the bottleneck learns from the sums of a step.
    views: chooses the view of a step.
    origin: the codec that the run began with, for its checkpoints.
    """

    accelerator: Accelerator
    autoencoder: Network
    model: nn.Module
    critics: Mapping[str, nn.Module]
    objective: Objective
    updates: Mapping[str, Update]
    ema: Ema
    guard: Guard
    seed: int
    bottleneck_learns: bool = True
    views: Views = no_view
    origin: LatentOrigin | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and images: float32, or float64 where the recipe asks for it."""
        return self.autoencoder.dtype

    @property
    def adversaries(self) -> Sequence[Adversary]:
        """The adversaries, in the order of their updates."""
        return self.objective.adversaries

    def noise(self, batch: Batch, step: int) -> SlotNoise:
        """The noise of a step: a function of seed, step and slot, and so the same on any number of processes."""
        return SlotNoise(self.seed, step, batch.slot)

    def forward(self, batch: Batch, step: int) -> Output:
        """Runs the prepared model on a micro-batch, with the noise and the view of the step."""
        self.autoencoder.latent_shape(batch.image)  # refuses sizes that are no multiple of f
        noise = self.noise(batch, step)
        noise.seed_torch()
        view = self.views(step, noise.shared("view"))
        samples = self.objective.samples
        output: Output = self.model(batch.image, noise=noise, label=batch.label, samples=samples, view=view)
        return output

    def synchronised(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A context in which gradients are averaged over ranks with the last micro-batch only."""
        return nullcontext() if last else self.accelerator.no_sync(module)

    @contextmanager
    def frozen_critics(self) -> Iterator[Mapping[str, nn.Module]]:
        """The critics without wrappers and with frozen parameters, in the run's precision."""
        critics = {name: self.accelerator.unwrap_model(critic) for name, critic in self.critics.items()}
        trained = [value for critic in critics.values() for value in critic.parameters() if value.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with self.accelerator.autocast():
                yield critics
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def pairs(self, batch: Batch, step: int) -> dict[str, Pair]:
        """What each adversary learns from: a forward pass with the present weights and the step's noise and view."""
        output = self.forward(batch, step)
        return {adversary.name: adversary.pair(output, self.noise(batch, step)) for adversary in self.adversaries}

    def drop_step(self) -> None:
        """Forgets a step that was not finished and has changed no weight: its gradients, and what it did to buffers."""
        for update in self.updates.values():
            update.optimizer.zero_grad(set_to_none=True)
        self.guard.restore()

    def update_bottleneck(self, sums: Sequence[Mapping[str, Tensor]], batch: Batch, step: int) -> None:
        """Lets the bottleneck learn from the sums of the micro-batches of all ranks."""
        if not self.bottleneck_learns or not sums or not sums[0]:
            return
        total = {
            name: self.accelerator.reduce(torch.stack([each[name] for each in sums]).sum(dim=0), reduction="sum")
            for name in sums[0]
        }
        self.autoencoder.bottleneck.learn(total, self.noise(batch, step))
