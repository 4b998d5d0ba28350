from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from ldm_vae.noise import SlotNoise
from tests.family.likelihoods.densities import CHANNELS, density, draw, output, picture

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_fixed_equals_torch_distributions(std: float) -> None:
    mean, image = draw(3, CHANNELS, 4, 4), picture(3, CHANNELS, 4, 4)
    found = density("gaussian", variance="fixed", std=std).log_prob(mean, image)
    torch.testing.assert_close(found, Normal(mean, std).log_prob(image).sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)


def test_shared_equals_torch_distributions() -> None:
    of, mean, image = density("gaussian", std=0.4), draw(3, CHANNELS, 4, 4), picture(3, CHANNELS, 4, 4)
    assert of.channels(CHANNELS) == CHANNELS
    with torch.no_grad():
        next(of.parameters()).fill_(0.75)  # ln of the factor that learning has put before 0.4
    std = 0.4 * torch.tensor(0.75, dtype=torch.float64).exp()
    found = of.log_prob(of.complete(mean), image)
    torch.testing.assert_close(found, Normal(mean, std).log_prob(image).sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)


def test_pixel_equals_torch_distributions() -> None:
    of, image = density("gaussian", variance="pixel", std=0.4, std_range=None), picture(3, CHANNELS, 4, 4)
    parameters = output(of)
    mean, raw = parameters.chunk(2, dim=1)
    expected = Normal(mean, 0.4 * raw.exp()).log_prob(image).sum(dim=(1, 2, 3))
    torch.testing.assert_close(of.log_prob(parameters, image), expected, rtol=1e-12, atol=0)


def test_draws_have_the_deviation() -> None:
    of = density("gaussian", variance="fixed", std=0.3)
    drawn = of.sample(torch.zeros(1, CHANNELS, 200, 200), SlotNoise(0, 0, [0]))
    # The standard error of the deviation of n draws is std / sqrt(2n); five of them.
    assert (drawn.std(dim=(2, 3)) - 0.3).abs().max() < 5 * 0.3 / (2 * 200**2) ** 0.5
