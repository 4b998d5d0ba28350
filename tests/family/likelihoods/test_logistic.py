from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, SigmoidTransform, TransformedDistribution, Uniform

from ldm_vae.family.likelihoods.levels import value_of_level
from ldm_vae.noise import SlotNoise
from tests.family.likelihoods.densities import CHANNELS, density, draw, output

pytestmark = pytest.mark.numerical


def mass(level: Tensor, location: Tensor, std: Tensor, levels: int) -> Tensor:
    """The probability of levels as a difference of the distribution function of torch.distributions."""
    scale = std * math.sqrt(3) / math.pi
    uniform = Uniform(torch.zeros_like(location), torch.ones_like(location), validate_args=False)
    transforms = [SigmoidTransform().inv, AffineTransform(location, scale)]
    logistic = TransformedDistribution(uniform, transforms, validate_args=False)
    value, half = value_of_level(level, levels, location.dtype), 1 / (levels - 1)
    upper = torch.where(level == levels - 1, torch.ones_like(location), logistic.cdf(value + half))
    return upper - torch.where(level == 0, torch.zeros_like(location), logistic.cdf(value - half))


def some_levels(levels: int, *shape: int) -> Tensor:
    """Levels that include the lowest and the highest."""
    level = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(3))
    level[0, :, 0], level[0, :, 1] = 0, levels - 1
    return level


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("std", [0.05, 0.5])
def test_one_component_equals_differences_of_the_distribution_function(levels: int, std: float) -> None:
    of = density("logistic", variance="fixed", std=std, levels=levels)
    level = some_levels(levels, 3, CHANNELS, 4, 4)
    image = value_of_level(level, levels, torch.float64)
    location = image + 3 * std * draw(3, CHANNELS, 4, 4).clamp(-2, 2)  # where the difference keeps its digits
    expected = mass(level, location, torch.full_like(location, std), levels).log().sum(dim=(1, 2, 3))
    torch.testing.assert_close(
        of.log_prob(location, image), expected, rtol=1e-9, atol=1e-12
    )  # the difference loses digits


def test_mixtures_equal_sums_of_differences() -> None:
    of = density("logistic", variance="pixel", std=0.4, std_range=None, components=3)
    parameters, level = output(of), some_levels(256, 3, CHANNELS, 4, 4)
    logits, location, raw = (part.reshape(3, CHANNELS, 3, 4, 4) for part in parameters.chunk(3, dim=1))
    masses = mass(level[:, :, None].expand_as(location), location, 0.4 * raw.exp(), 256)
    expected = (logits.softmax(dim=2) * masses).sum(dim=2).log().sum(dim=(1, 2, 3))
    found = of.log_prob(parameters, value_of_level(level, 256, torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "fields",
    [{}, {"std": 0.003}, {"components": 3}, {"variance": "pixel", "components": 3}, {"levels": 7, "std": 0.1}],
    ids=str,
)
def test_the_probabilities_of_all_levels_add_up_to_one(fields: dict[str, Any]) -> None:
    of = density("logistic", **fields)
    parameters, levels = of.complete(output(of, batch=1, side=1)), fields.get("levels", 256)
    image = value_of_level(torch.arange(levels), levels, torch.float64)[:, None, None, None]
    # Two channels, so two sums: the one channel stays at level 0 while the other passes through all.
    first = of.log_prob(parameters.expand(levels, -1, -1, -1), torch.cat([image, image[:1].expand_as(image)], dim=1))
    both = of.log_prob(parameters, image[:1].expand(1, CHANNELS, 1, 1))
    second = of.log_prob(parameters.expand(levels, -1, -1, -1), torch.cat([image[:1].expand_as(image), image], dim=1))
    # sum_i p1(i) p2(0) = p2(0), and likewise p1(0); their product is p1(0) p2(0).
    total = first.logsumexp(dim=0) + second.logsumexp(dim=0) - both
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-10)


def test_float32_is_right_far_from_the_location_and_at_narrow_deviations() -> None:
    """Where the plain difference of two sigmoids is 0."""
    of = density("logistic", variance="fixed", std=0.002)
    level = torch.arange(0, 256).reshape(1, 1, 16, 16).expand(1, CHANNELS, 16, 16)
    location = torch.full((1, CHANNELS, 16, 16), 0.5).requires_grad_()
    image = value_of_level(level, 256, torch.float32)
    found = of.log_prob(location, image)
    exact = of.log_prob(location.double(), image.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    assert (mass(level, location.detach(), torch.full_like(location, 0.002), 256) == 0).any()
    assert torch.autograd.grad(found.sum(), location)[0].abs().min() > 0


def test_mean_is_that_over_levels() -> None:
    of = density("logistic", variance="pixel", components=2, levels=9)
    parameters = output(of, batch=1, side=1)
    image = value_of_level(torch.arange(9), 9, torch.float64).reshape(9, 1, 1, 1)
    alone = [  # the log-probabilities of one channel, up to a constant
        of.log_prob(parameters.expand(9, -1, -1, -1), torch.cat(pair, dim=1)).softmax(dim=0)
        for pair in ([image, image[:1].expand_as(image)], [image[:1].expand_as(image), image])
    ]
    expected = torch.stack([(probabilities * image.flatten()).sum() for probabilities in alone])
    torch.testing.assert_close(of.mean(parameters).flatten(), expected)


def test_draws_have_the_probabilities() -> None:
    of = density("logistic", variance="pixel", components=3, levels=5)
    parameters = output(of, batch=1, side=1).expand(-1, -1, 200, 200)
    drawn = of.sample(parameters, SlotNoise(0, 0, [0]))
    values = value_of_level(torch.arange(5), 5, torch.float64)
    for value in values:
        for other in values:
            pair = torch.stack([value, other]).reshape(1, CHANNELS, 1, 1)
            probability = of.log_prob(parameters[:, :, :1, :1], pair).exp().item()
            share = ((drawn[:, 0] == value) & (drawn[:, 1] == other)).double().mean().item()
            assert abs(share - probability) <= 5 * (probability * (1 - probability) / 200**2) ** 0.5
