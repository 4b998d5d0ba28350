"""Distances to the prior against torch.distributions, and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.distributions import MultivariateNormal, kl_divergence

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.diagnostics.aggregate import gaussian_kl_of_moments, inspect_aggregate, kolmogorov_smirnov
from ldm_vae.diagnostics.channels import ChannelSums
from ldm_vae.diagnostics.findings import Section
from tests.diagnostics.values import heights, level, measured, value

pytestmark = pytest.mark.numerical


def inspected(deviations: list[float], offsets: list[float], logvar: float, scale: LatentScale | None) -> Section:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, 2, 32, 32, generator=generator) * torch.tensor(deviations).view(1, 2, 1, 1)
    mean += torch.tensor(offsets).view(1, 2, 1, 1)
    sums = ChannelSums(2)
    moments = torch.cat([mean, torch.full_like(mean, logvar)], dim=1)
    sums.update(mean, moments[:, 2:], 1)
    return inspect_aggregate(sums, moments.permute(0, 2, 3, 1).flatten(0, 2).numpy(), scale, seed=0)


def test_kl_of_moments_is_that_of_torch_distributions() -> None:
    root = np.random.default_rng(0).normal(size=(4, 4))
    mean, covariance = np.arange(4.0), root @ root.T
    theirs = kl_divergence(
        MultivariateNormal(torch.from_numpy(mean), torch.from_numpy(covariance)),
        MultivariateNormal(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)),
    )
    assert gaussian_kl_of_moments(mean, covariance) == pytest.approx(float(theirs))
    assert gaussian_kl_of_moments(mean, np.zeros((4, 4))) == float("inf")


def test_kolmogorov_smirnov_is_its_definition() -> None:
    values = np.random.default_rng(0).normal(0.3, 2.0, size=(200, 1))
    ordered = norm.cdf(np.sort(values[:, 0]))
    steps = np.arange(201) / 200
    expected = max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max())
    assert kolmogorov_smirnov(values)[0] == pytest.approx(expected)


def test_latents_from_the_prior_are_near_it() -> None:
    """Means of variance 3/4 with noise of variance 1/4 are N(0, 1) together."""
    section = inspected([0.75**0.5] * 2, [0.0, 0.0], float(np.log(0.25)), LatentScale())
    assert level(section, "prior_mismatch") == "good"
    assert level(section, "latent_scale") == "good"
    # 4096 positions: 1.95 / 64 = 0.03 is the 0.1 % point of the distribution of D; moments err by 1 / 64
    assert measured(section, "kolmogorov_smirnov_raw") < 0.03
    assert measured(section, "gaussian_kl_raw") < 1e-3
    assert measured(section, "non_gaussian") < 0.03


def test_the_scale_mends_what_it_can() -> None:
    """Raw deviations of 4 and 1 around 8 and 0; only the scale by channel brings both to N(0, 1)."""
    everywhere = LatentScale(1.0, mean=(8.0, 0.0), std=(4.0, 1.0))
    mended = inspected([4.0, 1.0], [8.0, 0.0], -20.0, everywhere)
    assert level(mended, "prior_mismatch") == "warning"
    assert level(mended, "latent_scale") == "good"
    assert value(mended, "gaussian_kl_raw") == pytest.approx(0.5 * (16 + 64 - 1 - np.log(16)), rel=0.03)
    assert measured(mended, "gaussian_kl_scaled") < 0.01
    assert measured(mended, "kolmogorov_smirnov_raw") > 0.8
    assert measured(mended, "kolmogorov_smirnov_scaled") < 0.03
    bars = {chart.name: heights(chart.lines[0]) for chart in mended.charts}
    assert bars["gaussian_kl_per_channel_raw"] == pytest.approx(
        [0.5 * (16 + 64 - 1 - np.log(16)), 0.0], rel=0.03, abs=0.01
    )
    far, near = bars["kolmogorov_smirnov_per_channel_raw"]
    assert far > 0.8 and near < 0.03
    assert max(bars["kolmogorov_smirnov_per_channel_scaled"]) < 0.03
    factor = inspected([4.0, 1.0], [8.0, 0.0], -20.0, LatentScale(0.2))
    assert level(factor, "latent_scale") == "warning"
    assert level(inspected([4.0, 1.0], [8.0, 0.0], -20.0, None), "latent_scale") == "unknown"


def test_what_cannot_be_had_is_missing() -> None:
    sums = ChannelSums(2)
    mean = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mean[:, 1] = 0
    sums.update(mean, torch.full_like(mean, -torch.inf), 1)  # no noise: the second channel does not vary at all
    section = inspect_aggregate(sums, None, None, seed=0)
    missing = {number.name: number.missing for number in section.numbers if number.value is None}
    assert set(missing) == {"gaussian_kl_raw", "kolmogorov_smirnov_raw", "non_gaussian"}
    assert all(missing.values())
    assert not any("over 0 " in number.definition for number in section.numbers)
    assert level(section, "prior_mismatch") == "bad"
