"""The emulation of TF32, and what it shows: the flag is worth more than the storage of latents in float16 costs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm_vae import LatentCodec, from_pil
from tests.conftest import ROOT, picture
from tools.rounding import RoundedConvolutions, as_tf32, changed_pixels, latent_errors

pytestmark = pytest.mark.numerical


def test_ten_bits_of_the_mantissa_stay() -> None:
    bit = 2.0**-10  # the last one that stays, beside 1
    given = torch.tensor(
        [1.0, 1 + bit, 1 + 0.49 * bit, 1 + 0.5 * bit, -1 - 0.5 * bit, 1 + 0.51 * bit, 3 * 2.0**-90, 0.0]
    )
    kept = torch.tensor([1.0, 1 + bit, 1.0, 1 + bit, -1 - bit, 1 + bit, 3 * 2.0**-90, 0.0])
    assert torch.equal(as_tf32(given), kept)
    many = torch.randn(10_000)
    error = ((as_tf32(many) - many) / many).abs().max().item()
    assert bit / 4 < error <= bit / 2  # half of the last bit at most


def test_both_factors_are_rounded_and_nothing_else() -> None:
    image, weight, bias = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3), torch.randn(3)
    with RoundedConvolutions():
        found, product = F.conv2d(image, weight, bias), image @ image
    assert torch.equal(found, F.conv2d(as_tf32(image), as_tf32(weight), bias))
    assert torch.equal(product, image @ image) and not torch.equal(found, F.conv2d(image, weight, bias))


def test_tf32_moves_latents_further_than_their_storage_does() -> None:
    """By 3.5e-4 of their deviation against 2.0e-4, with this small network; deeper ones lose more."""
    codec = LatentCodec.load(ROOT / "tests" / "golden" / "codec", device="cpu")
    images = torch.cat([from_pil(picture(seed, (64, 64))) for seed in range(4)])
    errors = {name: error.square().mean().sqrt().item() for name, error in latent_errors(codec, images).items()}
    assert errors["TF32"] > errors["stored in float16"] > 0
    assert changed_pixels(codec, images) > 0.01  # 3 % of their 8-bit values
