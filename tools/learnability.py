"""Measures how one codec reconstructs pictures, and how well a small diffusion transformer learns its latents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.codec import LatentCodec, NonFiniteError, from_numpy
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.errors import UserError
from ldm_vae.metrics.frechet import frechet_distance
from ldm_vae.metrics.image import psnr
from ldm_vae.metrics.latent import LatentMoments
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.noise import rng
from tools.denoiser import NO_LABEL, DenoiserConfig, build_denoiser, sample_latents, train_denoiser

AT_ONCE = 64  # pictures in a forward pass


@dataclass(frozen=True)
class Reconstruction:
    """What one codec makes of the pictures.

    psnr, lpips_vgg: means over the pictures.
    frechet_vgg16: distance of the reconstructions to the pictures.
    moments: (N, 2c, h, w), moments of the posteriors.
    real: (N, d), features of the pictures.
    """

    psnr: float
    lpips_vgg: float
    frechet_vgg16: float
    moments: Tensor
    real: Tensor


def reconstruct(codec: LatentCodec, pictures: Tensor, network: PairNetwork) -> Reconstruction:
    """Reconstructs from the posterior's mode, rounded to 8 bits.

    pictures: (N, 3, H, W), uint8.
    """
    decibels, distances, moments, features = [], [], [], []
    for image in torch.split(pictures, AT_ONCE):
        moments.append(codec.moments(from_numpy(image.permute(0, 2, 3, 1).numpy())).cpu())
        reconstruction = to_uint8(codec.decode_raw(codec.draw(moments[-1].to(codec.device))))
        image = image.to(codec.device)
        errors = (reconstruction.int() - image.int()).square().flatten(1).sum(dim=1)
        decibels.append(psnr(errors, image[0].numel()))
        with torch.no_grad():
            pair = network(reconstruction, image)
        distances.append(pair.distance.double())
        features.append(pair.features.cpu())
    both = torch.cat(features)
    return Reconstruction(
        torch.cat(decibels).mean().item(),
        torch.cat(distances).mean().item(),
        frechet_distance(both[:, 0].numpy(), both[:, 1].numpy()),
        torch.cat(moments),
        both[:, 1],
    )


def learn(
    codec: LatentCodec,
    reconstruction: Reconstruction,
    network: PairNetwork,
    config: DenoiserConfig,
    *,
    sampling_steps: int,
    done: Callable[[float], object],
) -> dict[str, Any]:
    """Trains a transformer on all latents, draws as many samples as there are latents, and measures them.

    done(loss): called after each step.

    `frechet_vgg16` is None where the samples are not finite; `missing` then says why.
    """
    model = build_denoiser(config, codec.latent_channels, reconstruction.moments.shape[-1]).to(codec.device)
    scale = standardise(codec, reconstruction.moments)
    losses = train_denoiser(model, batches(codec, reconstruction.moments, scale, config), config, done)
    tail = losses[-max(1, config.steps // 10) :]
    result: dict[str, Any] = {
        "seed": config.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": math.fsum(tail) / len(tail),
    }
    try:
        samples = sample(codec, model, scale, len(reconstruction.moments), sampling_steps, config.seed)
    except NonFiniteError:
        return result | {"frechet_vgg16": None, "missing": "the samples are not finite: the training diverged"}
    return result | {
        "frechet_vgg16": frechet_distance(picture_features(network, samples).numpy(), reconstruction.real.numpy())
    }


def draw_latents(codec: LatentCodec, moments: Tensor, generator: torch.Generator) -> Tensor:
    """Moments -> raw latents (B, c, h, w) to train on: samples, or the modes of a codec without a posterior."""
    return codec.draw(moments, sample=codec.model.bottleneck.random, generator=generator)


def standardise(codec: LatentCodec, moments: Tensor) -> LatentScale:
    """The scale that gives samples of these posteriors zero mean and unit variance in each channel."""
    statistics = LatentMoments(codec.latent_channels)
    statistics.update(draw_latents(codec, moments, torch.Generator().manual_seed(0)))
    if not statistics.std.all():
        raise UserError(f"latents of {codec.source.name} do not vary", "the codec has collapsed; train it differently")
    return LatentScale(1.0, mean=tuple(statistics.mean.tolist()), std=tuple(statistics.std.tolist()))


def batches(
    codec: LatentCodec, moments: Tensor, scale: LatentScale, config: DenoiserConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: scaled samples of the posteriors of random pictures, and labels for no class."""
    noise = torch.Generator().manual_seed(config.seed)
    for step in itertools.count():
        items = rng(config.seed, "learnability", step).integers(len(moments), size=config.batch)
        yield scale.apply(draw_latents(codec, moments[items], noise)), _no_labels(config.batch)


def sample(codec: LatentCodec, model: Any, scale: LatentScale, count: int, steps: int, seed: int) -> Sequence[Tensor]:
    """`count` pictures in batches (B, 3, H, W), uint8. Raises NonFiniteError."""
    shape = (count, model.config.in_channels, model.config.sample_size, model.config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    parts = (sample_latents(model, part, _no_labels(len(part)), steps) for part in torch.split(noise, AT_ONCE))
    return [to_uint8(codec.decode_raw(scale.remove(latents))) for latents in parts]


@torch.no_grad()
def picture_features(network: PairNetwork, parts: Sequence[Tensor]) -> Tensor:
    """Features (N, d) of pictures. The network takes pairs, so the first half of a batch is paired with the second."""
    features = []
    for part in parts:
        half = (len(part) + 1) // 2
        pairs = network(part[:half], part[-half:]).features.cpu()
        features += [pairs[:, 0], pairs[2 * half - len(part) :, 1]]  # in an odd batch the middle picture is in both
    return torch.cat(features)


def _no_labels(count: int) -> Tensor:
    return torch.full((count,), NO_LABEL)
