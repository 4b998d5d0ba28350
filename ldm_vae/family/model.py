"""A trained model of the family in Python: encode, decode, sample, and how likely images are.

>>> from ldm_vae.family.model import load
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_vae.arithmetic import exact_float32
from ldm_vae.devices import local_device
from ldm_vae.errors import UserError
from ldm_vae.family.networks.base import FamilyNetwork
from ldm_vae.interop.load import load_model
from ldm_vae.noise import SlotNoise

AT_ONCE = 256  # images of a forward pass, which are small


def load(ref: str | Path, *, device: torch.device | str | None = None) -> FamilyModel:
    """The model of a run, or of one of its checkpoints. Raises UserError for what cannot be loaded, and for a codec.

    device: None takes a GPU where there is one.
    """
    loaded = load_model(ref)
    if not isinstance(loaded.model, FamilyNetwork):
        what = f"{loaded.source.name} is a codec, whose latents follow no prior that can be drawn from"
        raise UserError(what, "train a diffusion model on them, or sample a model of the family (configs/family/)")
    return FamilyModel(loaded.model, local_device() if device is None else device)


class FamilyModel:
    """A network in evaluation mode, without gradients. Images are (B, C, side, side) in [-1, 1], latents (B, d, 1, 1).

    Draws are functions of a seed and of the place in the batch: the same on any device, however many are asked for.
    """

    def __init__(self, network: FamilyNetwork, device: torch.device | str) -> None:
        self.network = network.to(device).float().eval().requires_grad_(False)
        self.device = torch.device(device)

    @exact_float32()
    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The middle of each image's posterior."""
        hidden = self.network.encode(self.network.observe(self._images(images)))
        latents: Tensor = self.network.bottleneck(hidden).z
        return latents

    @exact_float32()
    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The mean of each image's distribution."""
        return self.network.decode(latents.to(self.device, torch.float32))

    @exact_float32()
    @torch.no_grad()
    def sample(self, count: int, *, temperature: float = 1.0, seed: int = 0, first: int = 0) -> Tensor:
        """Means of the images that draws from the prior give, (count, C, side, side).

        temperature: factor on the prior's standard deviation.
        first: place of the first one in the sequence of this seed.
        """
        like = torch.zeros(count, self.network.config.latent_channels, 1, 1, device=self.device)
        noise = SlotNoise(seed, 0, range(first, first + count))
        return self.network.decode(self.network.bottleneck.sample(like, noise, temperature))

    @exact_float32()
    @torch.no_grad()
    def bound(self, images: Tensor, *, samples: int = 1, seed: int = 0) -> Tensor:
        """(B,): a lower bound of ln p(image) in nats, in the mean over draws. More samples bring it nearer.

        Source: Burda et al. 2016, arXiv:1509.00519, eq. 8; of one sample it is an estimate of the ELBO.
        """
        noise = SlotNoise(seed, 0, range(len(images)))
        output = self.network(self._images(images), noise=noise, samples=samples)
        ratio = self.network.density.log_prob(output.parameters, output.target) - output.posterior.sampled_rate
        return ratio.view(-1, samples).logsumexp(dim=1) - math.log(samples)

    def _images(self, images: Tensor) -> Tensor:
        config = self.network.config
        wanted = (config.in_channels, config.side, config.side)
        if tuple(images.shape[1:]) != wanted:
            what = f"images of shape {_in_words(images.shape[1:])}, where the model takes {_in_words(wanted)}"
            raise UserError(what, "resize and crop them, and give (B, C, H, W)")
        return images.to(self.device, torch.float32)


def _in_words(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
