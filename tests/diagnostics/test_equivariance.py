"""Equivariance of codecs that have it exactly, and of one that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.equivariance import SCALES, TURNS, inspect_equivariance, measure_change
from ldm_vae.diagnostics.probes import Probes
from tests.diagnostics.conftest import FACTOR, Averaging, pictures
from tests.diagnostics.values import level, value

pytestmark = pytest.mark.numerical

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


class Arbitrary(Averaging):
    """Its latents have nothing to do with the picture, nor with each other."""

    def encode(self, image: Tensor) -> Tensor:
        moments = super().encode(image)
        mean, logvar = moments.chunk(2, dim=1)
        return torch.cat([torch.randn_like(mean), logvar], dim=1)


def test_unrelated_latents_are_a_root_of_two_deviations_apart(probes_of: Make) -> None:
    torch.manual_seed(0)
    codec = LatentCodec(Arbitrary(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    section = inspect_equivariance(codec, probes_of(codec, pictures(3)))
    # 3 turns of 2304 numbers: the squared error errs by about 2 %
    assert value(section, "encoder_turns") == pytest.approx(100 * 2**0.5, rel=0.03)


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
    assert "(unrelated latents: 141 %)" in section.verdicts[0].statement
    assert level(section, "equivariance_scales") == "good"


class Wandering(Averaging):
    """Its latents hold a pattern that stays where it is when the picture turns, and its decoder takes it away."""

    def __init__(self, strength: float) -> None:
        super().__init__(3, [1.0] * 3, -6.0)
        self.strength = strength

    def pattern(self, side: int) -> Tensor:
        noise = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))
        return self.strength * noise

    def encode(self, image: Tensor) -> Tensor:
        moments = super().encode(image)
        moments[:, :3] += self.pattern(moments.shape[3])
        return moments

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z - self.pattern(z.shape[3]))


@pytest.mark.parametrize("detail", [0.02, 0.3], ids=["good codec", "poor codec"])
@pytest.mark.parametrize(("strength", "expected"), [(0.05, "good"), (0.15, "warning"), (2.0, "bad")])
def test_the_quality_of_the_codec_does_not_decide(
    probes_of: Make, strength: float, expected: str, detail: float
) -> None:
    """The same latents of pictures that the codec reconstructs well, and of ones that it does not: the
    loss in dB is many times as large for the better one, and the verdict the same."""
    flat = F.interpolate(F.avg_pool2d(pictures(4), FACTOR), scale_factor=FACTOR) * 0.6
    signs = torch.ones(FACTOR, FACTOR)
    signs[:, ::2] = -1
    images = flat + detail * signs.repeat(16, 16)  # gone in the average over 4 x 4
    network = Wandering(strength).eval().requires_grad_(False)
    codec = LatentCodec(network)
    probes = probes_of(codec, images)
    section = inspect_equivariance(codec, probes)
    assert level(section, "equivariance_turns") == expected
    spread = float((F.avg_pool2d(flat, FACTOR) + network.pattern(16)).std(dim=(0, 2, 3)).square().mean().sqrt())
    error = strength * 2**0.5 / spread  # two patterns that have nothing in common
    assert value(section, "encoder_turns") == pytest.approx(100 * error, rel=0.1)
    if expected == "good":
        drop = value(section, "drop_turns")
        assert drop is not None
        assert (drop > 3) == (detail == 0.02)


def test_nothing_is_lost_by_a_hair(codec: LatentCodec, probes_of: Make) -> None:
    """Rounding may make the loss -0.001 dB, which is 0.0 and not -0.0."""
    section = inspect_equivariance(codec, probes_of(codec, pictures(3)))
    assert all("-0.0" not in verdict.statement for verdict in section.verdicts)
    assert "costs 0.0 dB" in section.verdicts[0].statement


def test_latents_that_do_not_vary_have_no_relative_error(codec: LatentCodec, probes_of: Make) -> None:
    section = inspect_equivariance(codec, probes_of(codec, torch.zeros(2, 3, 64, 64)))
    assert value(section, "encoder_turns") is None
    assert level(section, "equivariance_turns") == "unknown"
