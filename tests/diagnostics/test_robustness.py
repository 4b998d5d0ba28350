"""Noise and rounding of the latents of a linear codec have a known error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.diagnostics import robustness
from ldm_vae.diagnostics.equivariance import inspect_equivariance
from ldm_vae.diagnostics.probes import Probes
from ldm_vae.diagnostics.robustness import BITS, NOISE, inspect_robustness, least_drop
from ldm_vae.diagnostics.smoothness import inspect_smoothness
from ldm_vae.latents.roundtrip import round_to_bits
from tests.diagnostics.conftest import FACTOR, Averaging, averaging, pictures
from tests.diagnostics.values import level, measured, value

pytestmark = pytest.mark.numerical

Make = Callable[[LatentCodec, Tensor], Probes]
ROUNDING = 2 / 12 / 127.5**2  # of image and reconstruction to 8 bits, each by 1/12 of a squared step


def test_noise_adds_its_variance(probes_of: Make) -> None:
    codec, images = averaging(gains=[3.0] * 3), pictures(8) * 0.5  # far from the clamp at -1 and 1
    probes = probes_of(codec, images)
    section = inspect_robustness(codec, probes, seed=0)
    blocks = F.interpolate(F.avg_pool2d(images, FACTOR), scale_factor=FACTOR)
    clean = (blocks - images).square().mean(dim=(1, 2, 3))
    averages = F.avg_pool2d(images, FACTOR).std(correction=0)
    for noise in NOISE[:4]:
        error = clean + (noise * averages) ** 2 + ROUNDING
        expected = (10 * torch.log10(4 / error)).mean()
        # 768 numbers of noise an image: their power errs by 5 %, the mean over 8 images by 0.08 dB
        assert value(section, f"psnr_noise_{noise:g}") == pytest.approx(float(expected), abs=0.2)
    assert value(section, "psnr_clean") == pytest.approx(
        float((10 * torch.log10(4 / (clean + ROUNDING))).mean()), abs=0.1
    )


def test_eight_bits_round_evenly_spread_values_by_the_error_that_is_expected() -> None:
    """Over four deviations either way."""
    values = torch.linspace(-4, 4, 100_000, dtype=torch.float64)[None, None, None]
    found = (round_to_bits(values, 8) - values).square().mean().sqrt()
    assert float(found) == pytest.approx(robustness.ROUNDING, rel=1e-3)


def test_rounding_is_that_of_a_loop(probes_of: Make) -> None:
    codec, images = averaging(), pictures(3)
    section = inspect_robustness(codec, probes_of(codec, images), seed=0)
    averages = F.avg_pool2d(images, FACTOR)
    for bits in BITS:
        psnrs = []
        for image, z in zip(images, averages, strict=True):
            rounded = torch.empty_like(z)
            for channel in range(3):
                low, high = float(z[channel].min()), float(z[channel].max())
                levels = torch.linspace(low, high, 2**bits)
                nearest = (z[channel].flatten()[:, None] - levels).abs().argmin(dim=1)
                rounded[channel] = levels[nearest].view_as(z[channel])
            reconstruction = F.interpolate(rounded[None], scale_factor=FACTOR)[0]
            error = (to_uint8(reconstruction).double() - to_uint8(image).double()).square().mean()
            psnrs.append(10 * math.log10(255**2 / error))
        # values half-way between two levels may go either way
        assert value(section, f"psnr_{bits}_bits") == pytest.approx(sum(psnrs) / 3, abs=0.02)
    assert level(section, "quantisation") == "good"


class Amplifying(Averaging):
    """It reconstructs as the other does, from latents that hold their values in the third digit after an offset."""

    def encode(self, image: Tensor) -> Tensor:
        hidden = super().encode(image)
        hidden[:, :3] = 1e-3 * hidden[:, :3] + torch.sign(torch.randn(1, 3, *hidden.shape[2:], generator=_seeded()))
        return hidden

    def decode(self, z: Tensor) -> Tensor:
        return super().decode((z - torch.sign(z)) * 1e3)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_fragile_latents_are_found(probes_of: Make) -> None:
    codec = LatentCodec(Amplifying(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    section = inspect_robustness(codec, probes_of(codec, pictures(2)), seed=0)
    assert measured(section, "psnr_clean") > 25
    assert level(section, "noise_sensitivity") == "warning"
    assert level(section, "quantisation") == "warning"
    assert "float16" in next(v.advice for v in section.verdicts if v.name == "quantisation")


def test_a_good_codec_is_not_called_sensitive(probes_of: Make) -> None:
    """Flat squares and a little noise: PSNR of 40 dB, of which noise of the size of its latents' tenth leaves 30."""
    blocks = F.interpolate(F.avg_pool2d(pictures(8) * 0.8, FACTOR), scale_factor=FACTOR)
    images = blocks + 0.02 * torch.randn(blocks.shape, generator=_seeded())
    codec = averaging()
    section = inspect_robustness(codec, probes_of(codec, images), seed=0)
    clean, noisy = (value(section, name) for name in ("psnr_clean", "psnr_noise_0.1"))
    assert clean is not None and noisy is not None
    assert clean - noisy > 5
    spread = float(images.std(dim=(0, 2, 3), correction=0).square().mean().sqrt())
    assert clean - noisy == pytest.approx(least_drop(clean, spread, 0.1), abs=0.3)
    assert level(section, "noise_sensitivity") == "good"


def test_eight_bits_may_cost_a_good_codec_more(probes_of: Make) -> None:
    """46 dB: rounding over the range of the latents costs more than 0.1 dB, as it must. One extreme value in each
    channel, which the decoder ignores, widens the steps tenfold, and is found."""
    blocks = F.interpolate(F.avg_pool2d(pictures(8), FACTOR), scale_factor=FACTOR)
    images = blocks + 0.01 * torch.randn(blocks.shape, generator=_seeded())
    section = inspect_robustness(averaging(), probes_of(averaging(), images), seed=0)
    clean, stored = value(section, "psnr_clean"), value(section, "psnr_8_bits")
    assert clean is not None and stored is not None
    assert clean == pytest.approx(46, abs=0.5)
    assert clean - stored > 0.1
    assert level(section, "quantisation") == "good"
    codec = LatentCodec(Extreme(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    probes = probes_of(codec, images)
    probes = Probes(probes.image, probes.z, probes.reconstruction, float(averaging_std(images)))
    assert level(inspect_robustness(codec, probes, seed=0), "quantisation") == "warning"


def averaging_std(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, FACTOR).std(correction=0)


class Extreme(Averaging):
    """It adds ten to the first value of each channel, and its decoder takes it away."""

    def encode(self, image: Tensor) -> Tensor:
        moments = super().encode(image)
        moments[:, :3, 0, 0] += 10
        return moments

    def decode(self, z: Tensor) -> Tensor:
        z = z.clone()
        z[:, :, 0, 0] -= 10
        return super().decode(z)


class Blank(Averaging):
    """Whatever the latent is, it gives grey."""

    def decode(self, z: Tensor) -> Tensor:
        return torch.zeros_like(super().decode(z))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_codec_that_reconstructs_nothing_loses_nothing(probes_of: Make, seed: int) -> None:
    """No noise, no rounding and no turn changes a grey square: that is no merit."""
    codec = LatentCodec(Blank(3, [1.0] * 3, -6.0).eval().requires_grad_(False))
    probes = probes_of(codec, pictures(3, seed=seed))
    for section in (
        inspect_robustness(codec, probes, seed),
        inspect_equivariance(codec, probes),
        inspect_smoothness(codec, probes, seed),
    ):
        assert {verdict.level for verdict in section.verdicts} == {"unknown"}, section.name
        assert all("reconstructs nothing" in verdict.statement for verdict in section.verdicts)


def test_an_infinite_psnr_is_missing(codec: LatentCodec, probes_of: Make) -> None:
    section = inspect_robustness(codec, probes_of(codec, torch.zeros(2, 3, 64, 64)), seed=0)
    assert value(section, "psnr_clean") is None
    assert "equals its image" in next(number.missing for number in section.numbers)
    assert level(section, "noise_sensitivity") == "unknown"
