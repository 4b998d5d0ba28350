"""The denoiser against what is known in closed form: the least loss, and where the flow carries a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_vae.errors import UserError
from tools.denoiser import NO_LABEL, TIMESTEPS, DenoiserConfig, build_denoiser, sample_latents, train_denoiser

pytestmark = pytest.mark.numerical

CHANNELS, SIDE = 2, 8


def config(**options: Any) -> DenoiserConfig:
    return DenoiserConfig(**(dict(width=64, depth=2, tokens=4, steps=120, batch=64, lr=2e-3) | options))


def nothing(count: int) -> Tensor:
    return torch.full((count,), NO_LABEL)


def white() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(64, CHANNELS, SIDE, SIDE, generator=generator), nothing(64)


def flat() -> Iterator[tuple[Tensor, Tensor]]:
    """Latents of unit variance, too, but one value a channel."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(64, CHANNELS, 1, 1, generator=generator).expand(-1, -1, SIDE, SIDE), nothing(64)


def test_white_noise_is_learnt_to_the_least_possible_loss() -> None:
    """The variance of noise - latent given their mixture is 1 / ((1 - t)^2 + t^2); its mean over t is pi / 2.

    Over the 30 last steps the draws of t alone scatter the mean by 0.33 / sqrt(30 * 64) = 0.0075.
    """
    times = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    assert torch.trapezoid(1 / ((1 - times) ** 2 + times**2), times).item() == pytest.approx(math.pi / 2, abs=1e-6)
    model = build_denoiser(config(), CHANNELS, SIDE)
    losses = train_denoiser(model, white(), config())
    assert losses[0] == pytest.approx(2.0, abs=0.1)  # the velocity is 0 at first, and two unit variances are missed
    assert sum(losses[-30:]) / 30 == pytest.approx(math.pi / 2, abs=0.025)


def test_structure_takes_the_loss_below_that_of_white_noise() -> None:
    """One value in 64 positions is nearly known from the mixture: the least loss is pi / 2 / 64."""
    model = build_denoiser(config(), CHANNELS, SIDE)
    losses = train_denoiser(model, flat(), config())
    assert sum(losses[-10:]) / 10 < math.pi / 4
    latents = sample_latents(model, torch.randn(64, CHANNELS, SIDE, SIDE), nothing(64), 20)
    within, between = latents.std(dim=(2, 3)).mean(), latents.mean(dim=(2, 3)).std()
    assert within < between / 4  # white noise of this size: 8


def test_classes_are_learnt_and_withheld() -> None:
    """Two classes of opposite sign; without a class both come."""

    def signs() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            labels = torch.randint(2, (64,), generator=generator)
            yield (2.0 * labels - 1).view(-1, 1, 1, 1).expand(-1, CHANNELS, SIDE, SIDE), labels

    setting = config(label_dropout=0.3)
    model = build_denoiser(setting, CHANNELS, SIDE)
    train_denoiser(model, signs(), setting)
    noise = torch.randn(48, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(3).repeat_interleave(16)
    labels[labels == 2] = NO_LABEL
    first, second, either = sample_latents(model, noise, labels, 20).mean(dim=(1, 2, 3)).chunk(3)
    assert first.max() < -0.5 and second.min() > 0.5
    assert either.min() < -0.5 and either.max() > 0.5


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_sampling_is_the_flow_that_training_defines(deviation: float) -> None:
    """For a Gaussian the velocity is linear in the mixture, and the flow multiplies the noise by the deviation.

    25 steps of a second-order solver on a smooth flow, which starts at t = 0.999: 2 %.
    """

    def velocity(noisy: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        t, variance = (timestep / TIMESTEPS).view(-1, 1, 1, 1), deviation**2
        return SimpleNamespace(sample=noisy * (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2))

    class Exact:
        device = torch.device("cpu")
        __call__ = staticmethod(velocity)

    noise = torch.randn(8, CHANNELS, SIDE, SIDE)
    latents = sample_latents(Exact(), noise, nothing(8), 25)
    torch.testing.assert_close(latents, deviation * noise, rtol=0.02, atol=0.01)


def test_equal_seeds_give_equal_weights() -> None:
    def trained(seed: int) -> tuple[list[float], Tensor]:
        setting = config(steps=3, seed=seed)
        model = build_denoiser(setting, CHANNELS, SIDE)
        return train_denoiser(model, white(), setting), model.proj_out_2.weight.detach().clone()

    torch.manual_seed(1)
    losses, weight = trained(0)
    torch.manual_seed(2)
    torch.rand(3)
    again, same = trained(0)
    assert again == losses
    assert torch.equal(same, weight)
    assert weight.abs().max() > 0  # it started at 0
    assert trained(1)[0] != losses


def test_equal_tokens_are_equal_work() -> None:
    """Codecs of factor 4 and 8 meet networks that differ only in the layers that touch the latent."""
    large, small = build_denoiser(config(), 3, 16), build_denoiser(config(), 16, 8)
    assert large.pos_embed.pos_embed.shape == small.pos_embed.pos_embed.shape == (1, 16, 64)
    assert (large.config.patch_size, small.config.patch_size) == (4, 2)
    differing = {
        name.split(".")[0]
        for (name, ours), (_, theirs) in zip(large.named_parameters(), small.named_parameters(), strict=True)
        if ours.shape != theirs.shape
    }
    assert differing == {"pos_embed", "proj_out_2"}


def test_sides_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(UserError, match="side 10 are not divisible into 4 patches"):
        build_denoiser(config(), CHANNELS, 10)
