"""Power spectra against white noise, single waves, known filters, and the plain transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_vae.diagnostics.rings import RINGS, RingPower, high_share, ring_frequencies

pytestmark = pytest.mark.numerical


def white(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, height, width, generator=generator, dtype=torch.float64)


def power(*pictures: torch.Tensor) -> RingPower:
    result = RingPower(pictures[0].shape[1])
    for picture in pictures:
        result.update(picture, picture)
    return result


def test_white_noise_is_flat_at_its_variance() -> None:
    density = power(3 * white(8, 96, 64), 3 * white(8, 50, 51, seed=1)).density[0, 0]
    # A ring of n independent frequencies has a relative error of 1 / sqrt(n); the Hann window leaves about 4/9 of them.
    np.testing.assert_allclose(density[4:], 9.0, rtol=0.12)
    assert high_share(density) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("frequency", [(0.1, 0.0), (0.0, 0.3), (0.2, 0.2), (-0.3, 0.25)])
def test_a_wave_lies_in_its_ring(frequency: tuple[float, float]) -> None:
    down, right = torch.meshgrid(torch.arange(80.0), torch.arange(90.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (frequency[0] * down + frequency[1] * right) + 1.0)
    density = power(wave[None, None]).density[0, 0]
    radius = np.hypot(*frequency)
    assert abs(ring_frequencies()[int(np.nanargmax(density))] - radius) <= 0.5 / RINGS
    far = np.abs(ring_frequencies() - radius) > 4 / 80  # beyond the window's main lobe
    assert np.nanmax(density[far]) < 1e-3 * np.nanmax(density)


def test_every_frequency_of_the_plane_counts_once() -> None:
    """Odd and even sides: the half plane of rfft2, weighted, equals a loop over the whole one."""
    for height, width in ((12, 10), (9, 12), (11, 13)):
        x = white(1, height, width)[0, 0].numpy()
        window = np.outer(*(np.sin(np.pi * np.arange(n) / n) ** 2 for n in (height, width)))
        centred = (x - (x * window).sum() / window.sum()) * window
        full = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
        sums, counts = np.zeros(RINGS), np.zeros(RINGS)
        for i, v in enumerate(np.fft.fftfreq(height)):
            for j, h in enumerate(np.fft.fftfreq(width)):
                radius = np.hypot(v, h)
                ring = RINGS - 1 if np.isclose(radius, 0.5) else int(radius * 2 * RINGS)
                if ring < RINGS and radius > 0:
                    sums[ring] += full[i, j]
                    counts[ring] += 1
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(
                power(torch.from_numpy(x)[None, None]).density[0, 0], sums / counts, rtol=1e-9, atol=1e-25
            )


def test_the_cross_spectrum_tells_what_is_shared() -> None:
    a, b = white(8, 64, 64), white(8, 64, 64, seed=1)
    rings = RingPower(1)
    rings.update(a, 0.6 * a + 0.8 * b)
    first, second, cross = rings.density[:, 0]
    np.testing.assert_allclose((cross / np.sqrt(first * second))[4:], 0.6, atol=0.1)


def test_small_pictures_are_passed_over() -> None:
    assert power(white(1, 7, 64)).pictures == 0
    assert np.isnan(power(white(1, 7, 64)).density).all()
