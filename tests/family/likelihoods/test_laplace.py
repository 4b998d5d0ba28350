from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Laplace

from ldm_vae.noise import SlotNoise
from tests.family.likelihoods.densities import CHANNELS, density, draw, output, picture

pytestmark = pytest.mark.numerical
ROOT_2 = 2**0.5  # std / scale of a Laplace distribution


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_fixed_equals_torch_distributions(std: float) -> None:
    mean, image = draw(3, CHANNELS, 4, 4), picture(3, CHANNELS, 4, 4)
    found = density("laplace", variance="fixed", std=std).log_prob(mean, image)
    expected = Laplace(mean, std / ROOT_2).log_prob(image).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(Laplace(mean, std / ROOT_2).stddev, torch.full_like(mean, std))  # `std` is what it says


def test_shared_equals_torch_distributions() -> None:
    of, mean, image = density("laplace", std=0.4), draw(3, CHANNELS, 4, 4), picture(3, CHANNELS, 4, 4)
    with torch.no_grad():
        next(of.parameters()).fill_(0.75)
    scale = 0.4 * torch.tensor(0.75, dtype=torch.float64).exp() / ROOT_2
    found = of.log_prob(of.complete(mean), image)
    torch.testing.assert_close(found, Laplace(mean, scale).log_prob(image).sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)


def test_pixel_equals_torch_distributions() -> None:
    of, image = density("laplace", variance="pixel", std=0.4, std_range=None), picture(3, CHANNELS, 4, 4)
    parameters = output(of)
    mean, raw = parameters.chunk(2, dim=1)
    expected = Laplace(mean, 0.4 * raw.exp() / ROOT_2).log_prob(image).sum(dim=(1, 2, 3))
    torch.testing.assert_close(of.log_prob(parameters, image), expected, rtol=1e-12, atol=0)


def test_draws_have_the_distribution() -> None:
    of = density("laplace", variance="fixed", std=0.3)
    drawn = of.sample(torch.full((1, CHANNELS, 200, 200), 0.25, dtype=torch.float64), SlotNoise(0, 0, [0]))
    # A correct sampler fails at one seed in 10,000, and the seed is fixed.
    assert kstest(drawn.flatten(), "laplace", (0.25, 0.3 / ROOT_2)).pvalue > 1e-4
