"""A trained model of the family: latents, pictures, draws that depend on nothing but seed and place, and bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_vae import UserError
from ldm_vae.family.model import load


def test_encodes_decodes_and_bounds(family_run: Path) -> None:
    model = load(family_run, device="cpu")
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    latents = model.encode(images)
    assert latents.shape == (3, 4, 1, 1)
    assert model.decode(latents).shape == images.shape
    with torch.no_grad():
        hidden = model.network.encoder_out(model.network.encoder(images.flatten(1)))  # type: ignore[operator]
    torch.testing.assert_close(latents[:, :, 0, 0], hidden[:, :4])  # the mean comes before the log-variance
    # Jensen, for these very draws: the logarithm of a mean is at least the mean of logarithms.
    assert (model.bound(images, samples=20) > model.bound(images, samples=1) - 50).all()
    with pytest.raises(UserError, match=r"3 x 16 x 16, where the model takes 3 x 32 x 32"):
        model.encode(images[:, :, :16, :16])


def test_draws_depend_on_seed_and_place_alone(family_run: Path) -> None:
    model = load(family_run, device="cpu")
    whole = model.sample(6, seed=3)
    assert whole.shape == (6, 3, 32, 32)
    parts = torch.cat([model.sample(2, seed=3), model.sample(4, seed=3, first=2)])
    torch.testing.assert_close(parts, whole)  # a batch of another size sums in another order
    assert not torch.allclose(model.sample(6, seed=4), whole)
    middle = model.sample(2, temperature=0.0)
    torch.testing.assert_close(middle, model.decode(torch.zeros(2, 4, 1, 1)))
