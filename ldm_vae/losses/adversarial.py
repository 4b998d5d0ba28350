"""Losses of the discriminator and of the generator against it, and when they apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ldm_vae.losses.adversary import Adversary, AdversaryConfig, Pair
from ldm_vae.networks.network import NetworkConfig, Output
from ldm_vae.nn.discriminators.patch import NormKind, PatchDiscriminator, smallest_side
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32
from ldm_vae.schedules import ramp

AdversarialKind = Literal["hinge", "vanilla", "non_saturating"]
StepNumber = Annotated[int, Field(ge=0)]


class DiscriminatorConfig(AdversaryConfig):
    """The adversarial loss, and the PatchGAN discriminator that judges patches of the reconstruction.

    Steps are optimizer steps of the autoencoder, whatever the accumulation and the number of processes.
    """

    kind: Literal["patch"] = "patch"
    """The kind of adversary: a discriminator that judges patches."""

    loss: AdversarialKind = "hinge"
    """Losses of the two networks. hinge: hinge for the discriminator, minus the logit for the autoencoder. vanilla:
    cross-entropy, minus the logit. non_saturating: cross-entropy for both."""

    norm: NormKind = "group"
    """Normalisation in the discriminator. batch, CompVis' own, makes the logits of an image depend on its batch and
    process; images and reconstructions are judged in calls of their own then."""

    layers: Annotated[int, Field(gt=0)] = 3
    """Convolutions of stride 2 in the discriminator; each about doubles the side of a patch."""

    channels: Annotated[int, Field(gt=0)] = 64
    """Width, in channels, after the first convolution; it doubles with every layer, up to eight times."""

    weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the autoencoder's adversarial loss, multiplied by the adaptive weight where `adaptive` is on."""

    adaptive: bool = True
    """Multiplies the weight by |gradient of the reconstruction loss| / |gradient of the adversarial loss|, measured at
    the decoder's last convolution (losses/adaptive.py)."""

    start: StepNumber = 0
    """Step from which the discriminator is trained."""

    generator_start: StepNumber = 0
    """Step from which the autoencoder feels the discriminator, not before `start`; a later step gives the discriminator
    a head start."""

    ramp: StepNumber = 0
    """Steps from generator_start up to the full weight, linearly."""

    @model_validator(mode="after")
    def _check_weight_and_start(self) -> DiscriminatorConfig:
        if self.weight == 0:
            raise ValueError("weight 0 leaves nothing for a discriminator to do: write `discriminator: null`")
        if self.generator_start < self.start:
            raise ValueError(
                f"generator_start {self.generator_start} must not be before start {self.start}: "
                "the generator would follow an untrained discriminator"
            )
        return self

    @property
    def smallest_image(self) -> int:
        return smallest_side(self.layers)

    @property
    def sees_batches(self) -> bool:
        return self.norm == "batch"


class PatchAdversary(Adversary):
    """A PatchGAN learns to tell images from reconstructions, and the autoencoder learns to deceive it.

    Source: Isola et al. 2017, arXiv:1611.07004; Esser et al. 2021, arXiv:2012.09841, eq. 7.
    """

    felt = "pixels"

    def __init__(self, config: DiscriminatorConfig, name: str = "discriminator") -> None:
        self.config, self.name = config, name
        self.balance = "decoder" if config.adaptive else None

    def build(self, model: NetworkConfig) -> nn.Module:
        config = self.config
        return PatchDiscriminator(model.out_channels, channels=config.channels, layers=config.layers, norm=config.norm)

    def learns(self, step: int) -> bool:
        return step >= self.config.start

    def weight(self, step: int) -> float:
        return adversarial_factor(self.config, step) * self.config.weight

    def term(self, network: nn.Module, output: Output) -> Tensor:
        return generator_loss(network(output.reconstruction), self.config.loss)

    def pair(self, output: Output, noise: Noise) -> Pair:
        return output.target, output.reconstruction.detach()

    def loss(self, network: nn.Module, pair: Pair, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        target, reconstruction = pair
        real, fake = self._judge(network, target, reconstruction.to(target))
        accuracy = 0.5 * ((real > 0).to(target).mean() + (fake < 0).to(target).mean())
        values = {
            "discriminator_accuracy": accuracy,
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        return discriminator_loss(real, fake, self.config.loss).mean(), values

    def _judge(self, network: nn.Module, target: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of images and of reconstructions.

        One call judges both, which is faster, where an image's logits are its own. Where they depend on the batch, each
        has a call of its own, as `term` judges reconstructions alone: else the autoencoder would follow another
        function than the one that learns. CompVis judges images first, so running statistics follow in that order.
        """
        if self.config.sees_batches:
            return network(target), network(reconstruction)
        real, fake = network(torch.cat([target, reconstruction])).chunk(2)
        return real, fake


def adversarial_factor(config: DiscriminatorConfig, step: int) -> float:
    """The factor on the generator's loss: 0 before generator_start, then a linear rise to 1 over `ramp` steps."""
    return ramp(step, config.generator_start, config.ramp)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: AdversarialKind) -> Tensor:
    """(a(-real) + a(fake)) / 2, mean over patches; a(x) = max(0, 1 + x) for hinge, softplus(x) for the other kinds.

    real_logits, fake_logits: (B, 1, h, w).
    Returns (B,) in at least float32.
    Sources: hinge, Lim & Ye 2017, arXiv:1705.02894; the others, cross-entropy, Goodfellow et al. 2014, arXiv:1406.2661;
    the half from CompVis/taming-transformers.
    """
    real, fake = at_least_float32(real_logits), at_least_float32(fake_logits)
    if kind == "hinge":
        return 0.5 * (_per_image(F.relu(1.0 - real)) + _per_image(F.relu(1.0 + fake)))
    return 0.5 * (_per_image(F.softplus(-real)) + _per_image(F.softplus(fake)))


def generator_loss(fake_logits: Tensor, kind: AdversarialKind) -> Tensor:
    """-logit for hinge and vanilla (as in CompVis), softplus(-logit) for non_saturating; mean over patches.

    fake_logits: (B, 1, h, w).
    Returns (B,) in at least float32.
    """
    fake = at_least_float32(fake_logits)
    return _per_image(F.softplus(-fake) if kind == "non_saturating" else -fake)


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)
