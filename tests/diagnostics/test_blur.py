"""Blur against filters whose transfer function is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm_vae.diagnostics.blur import first_below, inspect_blur
from ldm_vae.diagnostics.findings import Section
from ldm_vae.diagnostics.rings import RINGS, RingPower, ring_frequencies
from tests.diagnostics.values import level, value

pytestmark = pytest.mark.numerical


def noise(seed: int = 0) -> Tensor:
    return torch.randn(4, 1, 128, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filtered(x: Tensor, transfer: Tensor) -> Tensor:
    """transfer: (128, 128), at the frequencies of fft2."""
    return torch.fft.ifft2(torch.fft.fft2(x) * transfer).real


def radius() -> Tensor:
    frequency = torch.fft.fftfreq(128, dtype=torch.float64)
    return torch.hypot(frequency[:, None], frequency[None])


def inspected(image: Tensor, reconstruction: Tensor) -> Section:
    power = RingPower(1)
    power.update(image, reconstruction)
    return inspect_blur(power, gaussian=True)


def line(section: Section, name: str) -> np.ndarray:
    return np.array(next(chart for chart in section.charts if chart.name == name).lines[0].y, dtype=float)


def test_a_gaussian_blur_has_its_transfer_function() -> None:
    """exp(-2 (pi f s)^2) for the amplitude, s the deviation in px: half the power at f = sqrt(ln 2 / 4) / (pi s)."""
    deviation = 0.8
    section = inspected(noise(), filtered(noise(), torch.exp(-2 * (math.pi * radius() * deviation) ** 2)))
    expected = -20 * math.log10(math.e) * 2 * (np.pi * ring_frequencies() * deviation) ** 2
    # The window mixes neighbouring frequencies, 1 / 128 apart; the slope is at most 0.3 dB between two of them.
    np.testing.assert_allclose(line(section, "power_ratio")[1:], expected[1:], atol=0.5)
    for pixels, (low, high) in {"8_to_16": (1 / 16, 1 / 8), "4_to_8": (1 / 8, 1 / 4), "2_to_4": (1 / 4, 1 / 2)}.items():
        f = np.linspace(low, high, 1000)
        passed = (np.exp(-4 * (np.pi * f * deviation) ** 2) * f).sum() / f.sum()  # of an octave's area in the plane
        assert value(section, f"octave_{pixels}_pixels") == pytest.approx(10 * math.log10(passed), abs=0.3)
    half = math.sqrt(math.log(2) / 4) / (math.pi * deviation)
    assert value(section, "resolution_loss") == pytest.approx(100 * (1 - 2 * half), abs=100 / RINGS)
    np.testing.assert_allclose(line(section, "ring_correlation"), 1.0, atol=0.02)  # weaker, but the same detail
    assert value(section, "faithful_up_to") == 0.5
    assert level(section, "blur") == "bad"  # -13 dB in the last octave


def test_what_is_whole_is_good() -> None:
    section = inspected(noise(), noise())
    np.testing.assert_allclose(line(section, "power_ratio"), 0.0, atol=1e-9)
    assert value(section, "resolution_loss") == 0
    assert value(section, "faithful_up_to") == 0.5
    assert level(section, "blur") == "good"


def test_invented_detail_has_power_and_no_correlation() -> None:
    """Above a quarter of a cycle the image's detail is replaced by as much of another's."""
    low = (radius() < 0.25).double()
    section = inspected(noise(), filtered(noise(), low) + filtered(noise(1), 1 - low))
    assert value(section, "octave_2_to_4_pixels") == pytest.approx(0, abs=0.3)
    assert value(section, "faithful_up_to") == pytest.approx(0.25, abs=0.5 / RINGS)


def test_power_of_an_octave_is_that_of_its_area() -> None:
    """The last octave keeps (3/8^2 - 1/4^2) / (1/2^2 - 1/4^2) = 5/12 of white noise that is cut off at 3/8 cycle."""
    section = inspected(noise(), filtered(noise(), (radius() < 0.375).double()))
    assert value(section, "octave_2_to_4_pixels") == pytest.approx(10 * math.log10(5 / 12), abs=0.2)


@pytest.mark.parametrize(("kept", "expected"), [(0.35, "good"), (0.2, "warning")])
def test_invented_detail_is_not_good(kept: float, expected: str) -> None:
    """As sharp as the image, and above `kept` cycles per pixel another image's."""
    low = (radius() < kept).double()
    section = inspected(noise(), filtered(noise(), low) + filtered(noise(1), 1 - low))
    assert value(section, "faithful_up_to") == pytest.approx(kept, abs=0.5 / RINGS)
    verdict = section.verdicts[0]
    assert verdict.level == expected
    assert ("invented" in verdict.statement) == ("discriminator.weight" in verdict.advice) == (expected == "warning")


def test_too_much_detail_is_no_blur() -> None:
    section = inspected(noise(), filtered(noise(), 1 + (radius() >= 0.25).double()))
    assert value(section, "octave_2_to_4_pixels") == pytest.approx(20 * math.log10(2), abs=0.3)
    verdict = section.verdicts[0]
    assert (verdict.level, "discriminator.weight" in verdict.advice) == ("warning", True)


def test_the_first_ring_below_the_limit_counts() -> None:
    values = np.array([5.0, np.nan, 1.0, 4.0])
    assert first_below(values, 2.0) == 0.25
    assert first_below(values, 0.5) == 0.5


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 64, 64), noise()[:, :, :6]], ids=["flat", "small"])
def test_images_without_detail_have_no_blur(image: Tensor) -> None:
    section = inspected(image, image)
    assert all(number.value is None and number.missing for number in section.numbers)
    assert level(section, "blur") == "unknown"
