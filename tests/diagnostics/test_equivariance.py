"""Equivariance of codecs that have it exactly, and of one that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.equivariance import SCALES, TURNS, inspect_equivariance, measure_change
from ldm_vae.diagnostics.probes import Probes
from tests.diagnostics.conftest import Averaging, pictures
from tests.diagnostics.test_channels import level, value

Make = Callable[[LatentCodec, Tensor], Probes]


def test_averages_turn_exactly_and_shrink_in_the_encoder(codec: LatentCodec, probes_of: Make) -> None:
    probes = probes_of(codec, pictures(3))
    for change in TURNS.values():
        found = measure_change(codec, probes, change)
        assert found.encoder < 1e-4  # %, order of summation in float32
        assert found.decoder == float("inf")
        assert found.drop == pytest.approx(0, abs=1e-6)
    for change in SCALES.values():
        assert measure_change(codec, probes, change).encoder < 1e-4
    section = inspect_equivariance(codec, probes)
    assert value(section, "decoder_turns") is None  # infinite, and said so
    assert "infinite" in next(number.missing for number in section.numbers if number.name == "decoder_turns")
    assert value(section, "drop_turns") == pytest.approx(0, abs=1e-6)
    assert level(section, "equivariance_turns") == "good"


class Shifted(Averaging):
    """Its encoder moves the picture to the right by a quarter of its width, and its decoder moves it back."""

    def encode(self, image: Tensor) -> Tensor:
        return super().encode(image.roll(image.shape[3] // 4, dims=3))

    def decode(self, z: Tensor) -> Tensor:
        image = super().decode(z)
        return image.roll(-image.shape[3] // 4, dims=3)


def test_a_codec_with_a_direction_is_found(probes_of: Make) -> None:
    """As good at reconstruction as the other; only turning the latent shows it."""
    codec = LatentCodec(Shifted(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    probes = probes_of(codec, pictures(3))
    plain = Averaging(3, [1.0] * 3, -6.0)
    torch.testing.assert_close(probes.reconstruction, plain.decode(plain.encode(probes.image)[:, :3]))
    section = inspect_equivariance(codec, probes)
    # E(Tx) and T E(x) are pictures moved in different directions. Unrelated ones would be sqrt(2) deviations apart.
    assert value(section, "encoder_turns") == pytest.approx(141, abs=50)
    assert level(section, "equivariance_turns") == "bad"
    assert "EQ-VAE" in next(v.advice for v in section.verdicts if v.name == "equivariance_turns")
    assert level(section, "equivariance_scales") == "good"


def test_latents_that_do_not_vary_have_no_relative_error(codec: LatentCodec, probes_of: Make) -> None:
    section = inspect_equivariance(codec, probes_of(codec, torch.zeros(2, 3, 64, 64)))
    assert value(section, "encoder_turns") is None
