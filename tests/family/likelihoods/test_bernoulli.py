from __future__ import annotations

import logging

import pytest
import torch
from torch.distributions import Bernoulli

from ldm_vae.noise import SlotNoise
from tests.family.likelihoods.densities import CHANNELS, density, draw, picture


def binary(*shape: int) -> torch.Tensor:
    return draw(*shape, seed=2).sign()


@pytest.mark.numerical
def test_equals_torch_distributions() -> None:
    logits, image = 5 * draw(3, CHANNELS, 4, 4), binary(3, CHANNELS, 4, 4)
    expected = Bernoulli(logits=logits).log_prob((image + 1) / 2).sum(dim=(1, 2, 3))
    torch.testing.assert_close(density("bernoulli").log_prob(logits, image), expected, rtol=1e-12, atol=0)


@pytest.mark.numerical
def test_grey_pixels_cost_the_cross_entropy() -> None:
    logits, image = 5 * draw(3, CHANNELS, 4, 4), picture(3, CHANNELS, 4, 4)
    white, probability = (image + 1) / 2, logits.sigmoid()
    expected = white * probability.log() + (1 - white) * (1 - probability).log()
    found = density("bernoulli").log_prob(logits, image)
    torch.testing.assert_close(found, expected.sum(dim=(1, 2, 3)), rtol=1e-10, atol=0)  # 1 - probability loses digits


def test_mean_is_the_probability_of_white_from_black_to_white() -> None:
    logits = 5 * draw(3, CHANNELS, 4, 4)
    torch.testing.assert_close((density("bernoulli").mean(logits) + 1) / 2, Bernoulli(logits=logits).mean)


def test_draws_are_black_or_white() -> None:
    drawn = density("bernoulli").sample(draw(3, CHANNELS, 4, 4), SlotNoise(0, 0, range(3)))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}


def test_grey_pixels_are_kept_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    of, image = density("bernoulli"), picture(3, CHANNELS, 4, 4)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(of.observe(binary(3, CHANNELS, 4, 4)), binary(3, CHANNELS, 4, 4))
        assert caplog.messages == []
        assert of.observe(image, SlotNoise(0, 0, range(3))) is image
        of.observe(image)
    assert len(caplog.messages) == 1 and "binarize" in caplog.text


@pytest.mark.parametrize("binarize", ["threshold", "stochastic"])
def test_binarized_pixels_need_no_warning(binarize: str, caplog: pytest.LogCaptureFixture) -> None:
    observed = density("bernoulli", binarize=binarize).observe(picture(3, CHANNELS, 4, 4), SlotNoise(0, 0, range(3)))
    assert set(observed.unique().tolist()) == {-1.0, 1.0} and observed.dtype == torch.float64
    assert caplog.messages == []


def test_threshold_is_the_middle_and_the_default_without_noise() -> None:
    image = torch.tensor([-1.0, -1 / 255, 1 / 255, 1.0]).reshape(1, 1, 2, 2)
    expected = torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    assert torch.equal(density("bernoulli", binarize="threshold").observe(image, SlotNoise(0, 0, [0])), expected)
    assert torch.equal(density("bernoulli", binarize="stochastic").observe(image), expected)


def test_stochastic_binarization_keeps_the_brightness_and_changes_with_the_step() -> None:
    of = density("bernoulli", binarize="stochastic")
    image = torch.tensor([-1.0, -0.5, 0.4, 1.0]).reshape(1, 4, 1, 1).expand(1, 4, 200, 200)
    observed = of.observe(image, SlotNoise(0, 0, [0]))
    error = observed.std(dim=(2, 3)) / 200  # 0 for black and for white, which stay
    assert ((observed - image).mean(dim=(2, 3)).abs() <= 5 * error + 1e-6).all()
    assert torch.equal(observed, of.observe(image, SlotNoise(0, 0, [0])))
    assert not torch.equal(observed, of.observe(image, SlotNoise(0, 1, [0])))
