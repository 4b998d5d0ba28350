"""Rate, activity and covariance against torch.distributions and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ldm_vae.diagnostics.channels import ChannelSums, inspect_channels
from ldm_vae.diagnostics.findings import Section
from ldm_vae.metrics.latent import LatentMoments
from tests.diagnostics.values import heights, level, value

pytestmark = pytest.mark.numerical

SIZES = [(5, 4), (7, 3), (5, 4)]
PIXELS = 3  # per position and image; any number serves


def posteriors(size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """(2, 3, h, w) each; a mean far from zero spoils naive sums of squares."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([1e4, -3.0, 0.0]).view(1, 3, 1, 1)
    mean = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64) + offsets
    return mean, torch.randn(2, 3, *size, generator=generator, dtype=torch.float64) - 2.0


def gathered(batches: list[tuple[Tensor, Tensor]]) -> ChannelSums:
    sums = ChannelSums(3)
    for mean, logvar in batches:
        sums.update(mean, logvar, PIXELS * mean.shape[2] * mean.shape[3])
    return sums


def test_kl_is_that_of_torch_distributions() -> None:
    batches = [posteriors(size, seed) for seed, size in enumerate(SIZES)]
    section = inspect_channels(gathered(batches))
    normals = [Normal(mean, (0.5 * logvar).exp()) for mean, logvar in batches]
    kl = [kl_divergence(normal, Normal(0.0, 1.0)).sum(dim=(0, 2, 3)) for normal in normals]
    expected = torch.stack(kl).sum(dim=0) / 6  # images
    bars = next(chart for chart in section.charts if chart.name == "kl_per_channel").lines[0]
    # float64 sums in another order
    np.testing.assert_allclose(heights(bars), expected.numpy(), rtol=1e-12)
    assert value(section, "kl") == pytest.approx(float(expected.sum()), rel=1e-12)
    pixels = sum(2 * PIXELS * height * width for height, width in SIZES)
    assert value(section, "rate") == pytest.approx(6 * float(expected.sum()) / pixels / math.log(2), rel=1e-12)


def test_covariance_is_numpys_and_batches_do_not_matter() -> None:
    batches = [posteriors(size, seed) for seed, size in enumerate(SIZES)]
    sums = gathered(batches)
    single = gathered([(m[i : i + 1], v[i : i + 1]) for m, v in batches for i in range(2)])
    flat = np.concatenate([mean.transpose(0, 1).flatten(1).numpy() for mean, _ in batches], axis=1)
    # an offset of 1e4 costs 8 of the 16 digits of float64 in a product
    np.testing.assert_allclose(sums.covariance, np.cov(flat, ddof=0), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(single.covariance, sums.covariance, rtol=1e-7, atol=1e-9)
    moments = LatentMoments(3)
    for mean, _ in batches:
        moments.update(mean)
    assert sums.std == pytest.approx(moments.total_std)
    variance = np.concatenate([v.exp().transpose(0, 1).flatten(1).numpy() for _, v in batches], axis=1)
    np.testing.assert_allclose(sums.posterior_variance, variance.mean(axis=1))
    np.testing.assert_allclose(sums.posterior_deviation, np.sqrt(variance).mean(axis=1))


def of(scales: list[float]) -> Section:
    """Three independent channels of these deviations; a repeated one is a copy of the first."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 3, 8, 8, generator=generator) * torch.tensor([abs(s) for s in scales]).view(1, 3, 1, 1)
    for channel in range(1, 3):
        if scales[channel] < 0:
            mean[:, channel] = -mean[:, 0]
    return inspect_channels(gathered([(mean, torch.zeros_like(mean))]))


def test_a_dead_channel_is_seen() -> None:
    section = of([1.0, 0.05, 2.0])  # a variance of 0.0025
    assert value(section, "active_channels") == 2
    assert level(section, "collapsed_channels") == "warning"
    verdict = next(v for v in section.verdicts if v.name == "collapsed_channels")
    assert verdict.statement.endswith(": 1.")
    assert "loss.rate.weight" in verdict.advice
    assert level(of([1.0, 0.2, 2.0]), "collapsed_channels") == "good"
    dead = of([0.0, 0.0, 0.0])
    assert level(dead, "collapsed_channels") == "bad"
    assert value(dead, "relative_noise") is None
    assert value(dead, "largest_correlation") is None
    assert level(dead, "redundant_channels") == "unknown"


def test_collapsed_channels_do_not_count_as_copies() -> None:
    """What two dead channels hold is the same, and the two active ones are independent."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 4, 8, 8, generator=generator)
    mean[:, 2:] = 1e-3 * mean[:, :1]
    sums = ChannelSums(4)
    sums.update(mean, torch.zeros_like(mean), 64)
    section = inspect_channels(sums)
    assert level(section, "redundant_channels") == "good"
    correlation = next(matrix for matrix in section.matrices if matrix.name == "correlation").values
    assert correlation[2][3] == pytest.approx(1.0)
    assert value(section, "largest_correlation") == pytest.approx(abs(correlation[0][1]))


def test_a_copied_channel_is_seen() -> None:
    section = of([1.0, 1.0, -1.0])
    assert value(section, "largest_correlation") == pytest.approx(1.0)
    assert level(section, "redundant_channels") == "warning"
    assert level(of([1.0, 1.0, 1.0]), "redundant_channels") == "good"
    correlation = next(matrix for matrix in section.matrices if matrix.name == "correlation")
    assert correlation.values[0][2] == pytest.approx(-1.0)
