"""Losses of the discriminator and of the generator against it, and when they apply."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ldm_vae.nn.discriminators.patch import NormKind
from ldm_vae.precision import at_least_float32
from ldm_vae.recipe import Config
from ldm_vae.schedules import ramp

AdversarialKind = Literal["hinge", "vanilla", "non_saturating"]
Step = Annotated[int, Field(ge=0)]


class DiscriminatorConfig(Config):
    """Steps are optimizer steps of the autoencoder, whatever the accumulation and the number of processes."""

    loss: AdversarialKind = "hinge"
    norm: NormKind = "group"
    layers: Annotated[int, Field(gt=0)] = 3  # convolutions of stride 2
    channels: Annotated[int, Field(gt=0)] = 64  # width after the first convolution
    weight: Annotated[float, Field(ge=0)] = 0.5  # of the generator's loss, times the adaptive weight where that is on
    adaptive: bool = True  # balance the gradients at the decoder's last convolution (losses/adaptive.py)
    start: Step = 0  # step from which the discriminator is trained
    generator_start: Step = 0  # step from which the generator feels it; leave the discriminator a head start
    ramp: Step = 0  # steps from generator_start up to the full weight
    order: Literal["shared", "compvis"] = "shared"
    # ^ what the discriminator learns from: the reconstructions of the generator's own update (shared), or new ones
    #   made after it (compvis), for one more forward pass

    @model_validator(mode="after")
    def _possible(self) -> DiscriminatorConfig:
        if self.weight == 0:
            raise ValueError("weight 0 leaves nothing for a discriminator to do: write `discriminator: null`")
        if self.generator_start < self.start:
            raise ValueError(
                f"generator_start {self.generator_start} must not be before start {self.start}: "
                "the generator would follow an untrained discriminator"
            )
        return self


def adversarial_factor(config: DiscriminatorConfig, step: int) -> float:
    """What the generator's loss is multiplied by: 0 up to generator_start, then linear over `ramp` steps, then 1."""
    return ramp(step, config.generator_start, config.ramp)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: AdversarialKind) -> Tensor:
    """(a(-real) + a(fake)) / 2, mean over patches; a(x) = max(0, 1 + x) for hinge, softplus(x) for the other kinds.

    real_logits, fake_logits: (B, 1, h, w).   Returns (B,) in at least float32.
    Sources: hinge, Lim & Ye 2017, arXiv:1705.02894; the others, cross-entropy, Goodfellow et al. 2014, arXiv:1406.2661;
    the half from CompVis/taming-transformers.
    """
    real, fake = at_least_float32(real_logits), at_least_float32(fake_logits)
    if kind == "hinge":
        return 0.5 * (_per_image(F.relu(1.0 - real)) + _per_image(F.relu(1.0 + fake)))
    return 0.5 * (_per_image(F.softplus(-real)) + _per_image(F.softplus(fake)))


def generator_loss(fake_logits: Tensor, kind: AdversarialKind) -> Tensor:
    """-logit (hinge, and vanilla as CompVis has it) or softplus(-logit) (non-saturating), mean over patches.

    fake_logits: (B, 1, h, w).   Returns (B,) in at least float32.
    """
    fake = at_least_float32(fake_logits)
    return _per_image(F.softplus(-fake) if kind == "non_saturating" else -fake)


def _per_image(values: Tensor) -> Tensor:
    return values.mean(dim=(1, 2, 3))
