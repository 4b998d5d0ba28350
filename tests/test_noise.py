"""Noise of a training step: a function of seed, step, slot and purpose alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_vae.noise import GivenNoise, SlotNoise, rng


def test_normal_noise_is_a_function_of_seed_step_and_slot() -> None:
    like = torch.zeros(8, 4, 2, 2)
    whole = SlotNoise(0, 3, range(8)).normal("noise", like)
    assert whole.dtype == torch.float32 and whole.shape == like.shape
    assert torch.equal(SlotNoise(0, 3, torch.tensor([5, 1])).normal("noise", like[:2]), whole[[5, 1]])
    assert not torch.equal(SlotNoise(0, 4, range(8)).normal("noise", like), whole)
    assert not torch.equal(SlotNoise(0, 3, range(8)).normal("dropout", like), whole)
    many = SlotNoise(1, 0, range(4096)).normal("noise", torch.zeros(4096, 16))
    # 65536 normal numbers: the mean's standard error is 1/256, the standard deviation's 1/362; five of each
    assert abs(many.mean().item()) < 5 / 256 and abs(many.std().item() - 1) < 5 / 362


def test_the_draws_of_earlier_versions_stay() -> None:
    """A run that is resumed meets the noise that it would have met."""
    found = SlotNoise(7, 11, [2]).normal("noise", torch.zeros(1, 3))
    expected = rng(7, "noise", 11, 2).standard_normal(3, dtype=np.float32)
    assert found[0].tolist() == expected.tolist()


def test_samples_of_an_image_differ_and_the_first_is_that_of_one_sample() -> None:
    noise = SlotNoise(0, 0, [4, 9])
    once, thrice = noise.normal("noise", torch.zeros(2, 5)), noise.normal("noise", torch.zeros(6, 5))
    assert torch.equal(thrice[[0, 3]], once)
    assert len({tuple(row) for row in thrice.tolist()}) == 6
    with pytest.raises(ValueError, match="5 rows for 2 images"):
        noise.normal("noise", torch.zeros(5, 5))


def test_uniform_noise_and_what_the_batch_shares() -> None:
    found = SlotNoise(0, 0, range(1000)).uniform("dropped labels", torch.zeros(1000, 1))
    assert found.min() >= 0 and found.max() < 1
    assert abs(found.mean().item() - 0.5) < 5 / (12 * 1000) ** 0.5  # five standard errors
    ranks = [SlotNoise(3, 8, slots).shared("view").integers(1000) for slots in ([0, 1], [2, 3])]
    assert ranks[0] == ranks[1] != SlotNoise(3, 9, [0, 1]).shared("view").integers(1000)


def test_torch_draws_by_step_and_slot() -> None:
    drawn = []
    for noise in (SlotNoise(0, 1, [4]), SlotNoise(0, 1, [5]), SlotNoise(0, 2, [4]), SlotNoise(0, 1, [4])):
        noise.seed_torch()
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[3] and len({tuple(row) for row in drawn}) == 3


def test_given_noise_is_normal_noise_alone() -> None:
    value = torch.randn(2, 3)
    assert torch.equal(GivenNoise(value).normal("noise", torch.zeros(2, 3)), value)
    with pytest.raises(ValueError, match="only normal noise"):
        GivenNoise(value).uniform("noise", value)
    with pytest.raises(ValueError, match="only normal noise"):
        GivenNoise(value).shared("noise")
