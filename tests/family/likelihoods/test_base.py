"""What all likelihoods have in common, and bits per dimension."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import norm

from ldm_vae.errors import UserError
from ldm_vae.family.likelihoods.base import bits_per_dimension
from ldm_vae.family.likelihoods.spread import SpreadDensity
from ldm_vae.networks.likelihood import Likelihood
from ldm_vae.noise import SlotNoise
from ldm_vae.parts import LIKELIHOODS
from tests.family.likelihoods.densities import ALL, CHANNELS, ConstantNoise, density, draw, output, picture

every = pytest.mark.parametrize("fields", ALL, ids=lambda fields: "-".join(str(value) for value in fields.values()))


def test_every_kind_is_among_them_and_the_default_is_gaussian() -> None:
    assert {fields["kind"] for fields in ALL} == LIKELIHOODS.table.keys()
    assert LIKELIHOODS.default == "gaussian"


@every
def test_shapes(fields: dict[str, Any]) -> None:
    of = density(**fields)
    as_the_engine_reads_it: Likelihood = of
    parameters = of.complete(output(of))
    assert as_the_engine_reads_it.mean(parameters).shape == (3, CHANNELS, 4, 4)
    assert of.log_prob(parameters, picture(3, CHANNELS, 4, 4)).shape == (3,)
    assert of.sample(parameters, SlotNoise(0, 0, range(3))).shape == (3, CHANNELS, 4, 4)


@every
def test_log_prob_is_the_sum_over_the_image(fields: dict[str, Any]) -> None:
    of, image = density(**fields), picture(3, CHANNELS, 4, 4)
    parameters = of.complete(output(of))
    pixels = [
        of.log_prob(parameters[:, :, y : y + 1, x : x + 1], image[:, :, y : y + 1, x : x + 1])
        for y in range(4)
        for x in range(4)
    ]
    torch.testing.assert_close(of.log_prob(parameters, image), torch.stack(pixels).sum(dim=0))


@every
@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_computed_in_at_least_float32(fields: dict[str, Any], given: torch.dtype, expected: torch.dtype) -> None:
    of = density(**fields)
    parameters, image = of.complete(output(of, dtype=given)), picture(3, CHANNELS, 4, 4, dtype=given)
    assert parameters.dtype == given
    assert of.log_prob(parameters, image).dtype == of.sample(parameters, SlotNoise(0, 0, range(3))).dtype == expected
    exact = of.log_prob(parameters.double(), image.double())
    # Float32: some hundred terms of some nats, each with a few roundings. In bfloat16 errors would be 1e-2.
    torch.testing.assert_close(of.log_prob(parameters, image).double(), exact, rtol=1e-5, atol=1e-5)


@every
@pytest.mark.parametrize("raw", [1e15, -1e15])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_gradients_are_finite_at_extremes(fields: dict[str, Any], raw: float, value: float) -> None:
    of = density(**fields)
    own = torch.full((1, of.channels(CHANNELS), 2, 2), raw)
    own[:, ::2] = -raw  # locations and logits of both signs
    own.requires_grad_()
    nats = of.log_prob(of.complete(own), torch.full((1, CHANNELS, 2, 2), value))
    (gradient,) = torch.autograd.grad(nats.sum(), own)
    assert nats.isfinite().all() and gradient.isfinite().all()


@every
def test_draws_have_the_mean(fields: dict[str, Any]) -> None:
    of = density(**fields)
    parameters = of.complete(output(of, batch=1, side=1)).expand(-1, -1, 200, 200)
    drawn = of.sample(parameters, SlotNoise(0, 0, [0]))
    error = drawn.std(dim=(2, 3)) / 200  # of the mean of 40,000 draws
    assert ((drawn.mean(dim=(2, 3)) - of.mean(parameters).mean(dim=(2, 3))).abs() < 5 * error).all()
    assert error.min() > 0


@every
def test_without_noise_the_draw_is_the_mean(fields: dict[str, Any]) -> None:
    of = density(**fields)
    parameters = of.complete(output(of))
    assert torch.equal(of.sample(parameters, None), of.mean(parameters))


@every
@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_uniform_draws_give_an_image(fields: dict[str, Any], uniform: float) -> None:
    of = density(**fields)
    drawn = of.sample(of.complete(output(of, side=16, dtype=torch.float32)), ConstantNoise(uniform))
    assert drawn.isfinite().all()
    if of.volume == 1:  # the levels end at black and white
        assert drawn.abs().max() <= 1


@every
def test_draws_are_those_of_the_slots(fields: dict[str, Any]) -> None:
    of = density(**fields)
    parameters = of.complete(output(of))
    whole = of.sample(parameters, SlotNoise(0, 0, range(3)))
    assert torch.equal(whole[1:], of.sample(parameters[1:], SlotNoise(0, 0, [1, 2])))


@every
def test_all_gradients_pass_through_the_parameters(fields: dict[str, Any]) -> None:
    """The objective differentiates down to the parameters first, and from there with their gradient."""
    of, image = density(**fields), picture(3, CHANNELS, 4, 4)
    own = output(of).requires_grad_()
    learned = [own, *of.parameters()]
    direct = torch.autograd.grad(of.log_prob(of.complete(own), image).sum(), learned)
    parameters = of.complete(own)
    leaf = parameters.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(of.log_prob(leaf, image).sum(), leaf)
    for one, other in zip(direct, torch.autograd.grad(parameters, learned, gradient), strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0
    assert len(learned) == (2 if isinstance(of, SpreadDensity) and of.config.variance == "shared" else 1)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "logistic"])
@pytest.mark.parametrize("value", [-1.01, 1.01, 255.0, math.nan, math.inf])
def test_data_outside_of_the_range_are_refused(kind: str, value: float) -> None:
    image = picture(1, CHANNELS, 4, 4)
    image[0, 0, 0, 0] = value
    with pytest.raises(UserError, match=rf"^a {kind} likelihood needs data in \[0, 1\], and these go from .*gaussian$"):
        density(kind).observe(image)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "categorical", "logistic"])
def test_what_is_observed_is_the_image(kind: str) -> None:
    image = picture(1, CHANNELS, 4, 4)
    assert density(kind).observe(image, SlotNoise(0, 0, [0])) is image


def test_bits_of_equally_probable_levels_are_eight() -> None:
    of = density("categorical")
    nats = -of.log_prob(torch.zeros(3, of.channels(CHANNELS), 4, 4), picture(3, CHANNELS, 4, 4))
    bits = bits_per_dimension(nats, CHANNELS * 4 * 4, of.volume)
    torch.testing.assert_close(bits, torch.full((3,), 8.0))


def test_bits_of_a_density_are_those_of_its_mass_at_each_level() -> None:
    """Where the density hardly changes within a level: the next term of the series is (width / std)^2 / 24 of it."""
    of, image, mean = (
        density("gaussian", variance="fixed", std=0.5),
        picture(1, CHANNELS, 4, 4),
        draw(1, CHANNELS, 4, 4),
    )
    half = 1 / 255
    mass = norm.cdf(image + half, mean, 0.5) - norm.cdf(image - half, mean, 0.5)
    bits = bits_per_dimension(-of.log_prob(mean, image), image[0].numel(), of.volume)
    torch.testing.assert_close(bits, -torch.from_numpy(mass).log2().mean()[None], rtol=0, atol=1e-4)
