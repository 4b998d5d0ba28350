from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from ldm_vae.family.likelihoods.levels import value_of_level
from ldm_vae.noise import SlotNoise
from tests.family.likelihoods.densities import CHANNELS, ConstantNoise, density, output

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("levels", [5, 256])
def test_equals_torch_distributions(levels: int) -> None:
    of = density("categorical", levels=levels)
    parameters = 3 * output(of)
    expected = Categorical(logits=parameters.reshape(3, CHANNELS, levels, 4, 4).movedim(2, -1))
    level = torch.randint(0, levels, (3, CHANNELS, 4, 4), generator=torch.Generator().manual_seed(3))
    nats = expected.log_prob(level).sum(dim=(1, 2, 3))
    image = value_of_level(level, levels, torch.float64)
    torch.testing.assert_close(of.log_prob(parameters, image), nats, rtol=1e-12, atol=0)
    # Values between levels have the probability of the nearest one.
    torch.testing.assert_close(of.log_prob(parameters, image + 0.9 / (levels - 1)), nats, rtol=1e-12, atol=0)


def test_mean_is_that_over_levels() -> None:
    of = density("categorical", levels=3)
    parameters = torch.tensor([0.2, 0.5, 0.3, 1.0, 0.0, 0.0]).log().clamp(min=-1e4).reshape(1, 6, 1, 1)
    torch.testing.assert_close(of.mean(parameters).flatten(), torch.tensor([0.1, -1.0]))


def test_a_level_of_probability_0_is_never_drawn() -> None:
    of = density("categorical", levels=3)
    logits = torch.tensor([-1e4, 0.0, 0.0]).repeat(CHANNELS).reshape(1, -1, 1, 1)
    assert (of.sample(logits, ConstantNoise(0.0)) == 0).all()


def test_draws_have_the_probabilities() -> None:
    of = density("categorical", levels=5)
    probabilities = torch.tensor([0.1, 0.0, 0.5, 0.3, 0.1])
    logits = probabilities.log().clamp(min=-1e4).repeat(CHANNELS).reshape(1, -1, 1, 1)
    drawn = of.sample(logits.expand(-1, -1, 200, 200), SlotNoise(0, 0, [0]))
    for level, probability in enumerate(probabilities.tolist()):
        share = (drawn == value_of_level(torch.tensor(level), 5, torch.float32)).double().mean().item()
        error = (probability * (1 - probability) / drawn.numel()) ** 0.5
        assert abs(share - probability) <= 5 * error
