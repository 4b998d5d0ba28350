"""Power spectra of pictures of any size, averaged over rings of equal spatial frequency.

The spectral density of a picture x under a window w is |FFT(w (x - mean))|^2 / sum(w^2): white noise of variance v has
density v at every frequency. The Hann window keeps the jump between opposite edges from leaking into high frequencies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm_vae.devices import in_float64
from ldm_vae.diagnostics.findings import FloatArray

RINGS = 32  # rings between frequency 0 and Nyquist, half a cycle per sample
SHORTEST_SIDE = 8  # samples; a shorter side has too few frequencies to fill an octave


def ring_frequencies() -> FloatArray:
    """(RINGS,), frequency in the middle of each ring, in cycles per sample."""
    return (np.arange(RINGS) + 0.5) * 0.5 / RINGS


class RingPower:
    """Mean spectral densities and cross-spectrum of pairs of pictures a and b of equal size, ring by ring.

    Every frequency of every picture has the same weight. Frequencies beyond Nyquist are left out: only diagonals have
    them.
    """

    def __init__(self, channels: int) -> None:
        self.pictures = 0
        self._count = np.zeros(RINGS)  # frequencies per ring, per channel
        self._sums = np.zeros((3, channels, RINGS))  # |A|^2, |B|^2, Re(A conj B)

    def update(self, a: Tensor, b: Tensor) -> None:
        """a, b: (B, channels, h, w), finite. Pictures with a side shorter than SHORTEST_SIDE are left out."""
        height, width = a.shape[2:]
        self.add(summed_powers(a, b).cpu(), len(a), height, width)

    def add(self, powers: Tensor, pictures: int, height: int, width: int) -> None:
        """Adds what `summed_powers` gave of so many pictures of one size, on the host; it leaves out as `update`."""
        if min(height, width) < SHORTEST_SIDE:
            return
        ring, weight = _rings(height, width)
        summed = powers.flatten(2).numpy()  # (3, channels, frequencies)
        for part, row in np.ndindex(*summed.shape[:2]):
            values = summed[part, row] * weight
            self._sums[part, row] += np.bincount(ring, values, minlength=RINGS + 1)[:RINGS]
        self._count += pictures * np.bincount(ring, weight, minlength=RINGS + 1)[:RINGS]
        self.pictures += pictures

    @property
    def density(self) -> FloatArray:
        """(3, channels, RINGS): density of a, density of b, their cross-spectrum; NaN in rings without a frequency."""
        with np.errstate(invalid="ignore"):
            result: FloatArray = self._sums / np.where(self._count > 0, self._count, np.nan)
        return result


def summed_powers(a: Tensor, b: Tensor) -> Tensor:
    """Power of a, power of b and their cross-spectrum at each frequency, summed over the pictures, on their device.

    a, b: (B, channels, h, w), finite.
    Returns (3, channels, h, w // 2 + 1), float64.
    """
    first, second = _transform(a), _transform(b)
    parts = torch.stack([first.abs().square(), second.abs().square(), (first * second.conj()).real])
    return parts.sum(dim=1)


def high_share(density: FloatArray) -> float:
    """(RINGS,) -> share of the power above half of Nyquist, a quarter of a cycle per sample.

    White noise has 3/4. The share is NaN where there is no power.
    """
    known = np.isfinite(density)
    if not known.any() or not density[known].sum() > 0:
        return float("nan")
    radius = ring_frequencies()
    filled = np.interp(radius, radius[known], density[known])  # small pictures have rings without a frequency
    power = filled * radius  # a ring's area grows with its radius
    return float(power[RINGS // 2 :].sum() / power.sum())


def _transform(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, h, w // 2 + 1), complex, such that |.|^2 is the spectral density."""
    x = in_float64(x)
    window = torch.outer(*(torch.hann_window(n, dtype=x.dtype, device=x.device) for n in x.shape[2:]))
    mean = (x * window).sum(dim=(2, 3), keepdim=True) / window.sum()
    return torch.fft.rfft2((x - mean) * window) / window.square().sum().sqrt()


def _rings(height: int, width: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """For each frequency that rfft2 gives, flat: its ring (RINGS for none), and how often the full plane has it."""
    vertical, horizontal = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    radius = np.hypot(vertical[:, None], horizontal[None])
    ring = np.minimum(np.floor(radius * 2 * RINGS), RINGS).astype(np.int64)
    ring[np.isclose(radius, 0.5)] = RINGS - 1  # Nyquist itself belongs to the last ring
    ring[radius == 0] = RINGS  # the mean, which was taken away
    twice = np.full(width // 2 + 1, 2.0)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return ring.ravel(), np.broadcast_to(twice, radius.shape).ravel()
