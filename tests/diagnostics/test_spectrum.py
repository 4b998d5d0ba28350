"""Is the spectrum of latents hot? Latents that are averages of the image, noise, and too few positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.diagnostics.findings import Section
from ldm_vae.diagnostics.spectrum import LatentSpectrum, inspect_spectrum
from tests.diagnostics.conftest import FACTOR, pictures
from tests.diagnostics.values import heights, level, value

pytestmark = pytest.mark.numerical


def inspected(z: Tensor, images: Tensor) -> Section:
    spectrum = LatentSpectrum(z.shape[1], images.shape[1], FACTOR)
    spectrum.update(z, images)
    return inspect_spectrum(spectrum, gaussian=True)


def test_an_average_of_the_image_is_as_warm_as_the_image() -> None:
    images = pictures(4)
    section = inspected(5 * F.avg_pool2d(images, FACTOR) + 1, images)
    assert value(section, "heat") == pytest.approx(1.0)
    assert level(section, "hot_spectrum") == "good"
    latents, reference = next(chart for chart in section.charts if chart.name == "density").lines
    # relative to white noise of the same power, so that the factor of 5 is gone
    assert [y for y in latents.y if y is not None] == pytest.approx([y for y in reference.y if y is not None])


def test_densities_are_relative_to_white_noise_of_the_same_power() -> None:
    """Which is 1 at every frequency: the mean of the curve over rings, by their areas, is 1."""
    section = inspected(F.avg_pool2d(pictures(4, side=128), FACTOR), pictures(4, side=128))
    for line in next(chart for chart in section.charts if chart.name == "density").lines:
        known = [(2 * ring + 1, 10 ** (y / 10)) for ring, y in enumerate(line.y) if y is not None]
        areas, powers = zip(*known, strict=True)
        assert max(powers) > 10 * min(powers)
        assert sum(a * p for a, p in known) / sum(areas) == pytest.approx(1.0)


def test_noise_on_top_is_hot() -> None:
    images = pictures(4)
    clean = F.avg_pool2d(images, FACTOR)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    section = inspected(noise, images)
    assert value(section, "high_share_latents") == pytest.approx(75, abs=5)
    assert level(section, "hot_spectrum") == "bad"
    assert "arXiv:2502.14831" in next(v.advice for v in section.verdicts)
    assert "White noise has 75 %" in section.verdicts[0].statement
    one = inspected(torch.cat([clean[:, :2], noise[:, :1]], dim=1), images)
    shares = heights(next(chart for chart in one.charts if chart.name == "high_share_per_channel").lines[0])
    assert shares[2] > 10 * max(shares[:2])


@pytest.mark.parametrize(("detail", "low", "high"), [(0.0, 0, 15), (0.4, 25, 50)], ids=["low f", "high f"])
def test_noise_is_hot_whatever_share_the_images_have(detail: float, low: float, high: float) -> None:
    """Averaged over many pixels, images are close to noise themselves: a third of their power is high at f32."""
    generator = torch.Generator().manual_seed(0)
    clean = F.avg_pool2d(pictures(4, side=128), FACTOR)
    small = clean + detail * torch.randn(clean.shape, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    section = inspected(noise, F.interpolate(small, scale_factor=FACTOR))
    reference = value(section, "high_share_images")
    assert reference is not None and low <= reference <= high
    assert level(section, "hot_spectrum") == "bad"
    halfway = small + noise * (small.var() / 3).sqrt()  # a quarter of the power is noise
    assert level(inspected(halfway, F.interpolate(small, scale_factor=FACTOR)), "hot_spectrum") == "warning"


@pytest.mark.parametrize("images", [pictures(2, side=28), torch.zeros(2, 3, 64, 64)], ids=["small", "flat"])
def test_what_cannot_be_told_is_missing(images: Tensor) -> None:
    section = inspected(F.avg_pool2d(images, FACTOR), images)
    assert value(section, "heat") is None
    assert section.numbers[0].missing
    assert level(section, "hot_spectrum") == "unknown"
