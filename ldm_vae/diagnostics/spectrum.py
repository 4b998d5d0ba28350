"""The power spectrum of latents beside that of their images: do latents have too much power at high frequencies?

Diffusion generates low frequencies first, and predicts high ones from them. A hot spectrum is flatter than that of an
image: such a latent hides information in high frequencies, which the diffusion model must guess.
Source: Skorokhodov et al. 2025, "Improving the Diffusability of Autoencoders", arXiv:2502.14831, by DCT spectra.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.diagnostics.channels import bars, channel_names
from ldm_vae.diagnostics.findings import Axis, Chart, FloatArray, Line, Quantity, Section, Verdict, graded_verdict
from ldm_vae.diagnostics.rings import SHORTEST_SIDE, RingPower, high_share, ring_frequencies

WHITE = 0.75  # high-frequency share of white noise
# Places on a line from the high-frequency share of the images (0: an f x f average, the most image-like latent there
# is) to that of white noise (1). They were chosen, not derived. A multiple of the images' share would not do: on
# photographs that share is 7 % at f4, 10 % at f8, 17 % at f16 and 30 % at f32, so noise is 11 times as hot at f4 but
# 2.5 times at f32.
WARM, HOT = 0.15, 0.45
SKOROKHODOV = "Skorokhodov et al. 2025, arXiv:2502.14831"


class LatentSpectrum:
    """Spectral densities of raw latents and of the images averaged over f x f pixels, which have the same grid."""

    def __init__(self, latent_channels: int, image_channels: int, factor: int) -> None:
        self.factor = factor
        self.latents = RingPower(latent_channels)
        self.images = RingPower(image_channels)

    def update(self, z: Tensor, padded: Tensor) -> None:
        """z: (B, c, h, w).
        padded: (B, C, h*f, w*f).
        """
        small = F.avg_pool2d(padded, self.factor)
        self.latents.update(z, z)
        self.images.update(small, small)


def inspect_spectrum(spectrum: LatentSpectrum, *, gaussian: bool) -> Section:
    """How the power of the latents falls with frequency.

    gaussian: whether the codec has a Gaussian posterior, so that a higher price of the rate changes its latents.
    """
    title = "Spectrum of latents"
    if not spectrum.latents.pictures:
        reason = f"no latent has {SHORTEST_SIDE} positions along both sides"
        number = _ratio(None, reason)
        return Section(name="spectrum", title=title, numbers=(number,), verdicts=(_unknown(reason),))
    latents, images = spectrum.latents.density[0], spectrum.images.density[0]
    share, reference = high_share(latents.sum(axis=0)), high_share(images.sum(axis=0))
    if not reference > 0 or np.isnan(share):
        reason = "the images or their latents have no detail at all"
        return Section(name="spectrum", title=title, numbers=(_ratio(None, reason),), verdicts=(_unknown(reason),))
    numbers = (
        _ratio(share / reference, ""),
        _share("latents", "latents", share),
        _share("images", "images averaged to the same grid", reference),
    )
    each = np.array([high_share(channel) for channel in latents])
    chart = Chart(
        name="density", title="Power of latents and images by frequency", kind="line", source=SKOROKHODOV,
        definition="Spectral density over rings of equal frequency (Hann window, sum over channels), relative to white "
        "noise of the same variance. Images are averaged over f x f pixels, to the grid of their latents.",
        x=Axis(title="frequency", unit="cycles per latent position"), y=Axis(title="power", unit="dB over white noise"),
        lines=tuple(
            Line(label=label, x=tuple(ring_frequencies().tolist()), y=_relative(density.sum(axis=0)))
            for label, density in (("latents", latents), ("images", images))
        ),
    )  # fmt: skip
    shares = bars(
        "high_share_per_channel", "High-frequency share per channel", channel_names(len(each)),
        100 * each, "%", SKOROKHODOV,
        f"Share of each channel's power above half of Nyquist. Images have {100 * reference:.3g} %, white noise 75 %.",
    )  # fmt: skip
    verdict = _verdict(share, reference, gaussian)
    return Section(name="spectrum", title=title, numbers=numbers, charts=(chart, shares), verdicts=(verdict,))


def _relative(density: FloatArray) -> tuple[float | None, ...]:
    """The density in dB over white noise of the same power."""
    area = ring_frequencies()  # the area of a ring is proportional to its frequency
    white = np.nansum(density * area) / area[np.isfinite(density)].sum()
    return tuple(10 * float(np.log10(d / white)) if np.isfinite(d) and d > 0 else None for d in density)


def _ratio(value: float | None, missing: str) -> Quantity:
    return Quantity(
        name="heat", title="High frequencies of latents over those of images", value=value, missing=missing,
        unit="times", source=SKOROKHODOV,
        definition="Share of the power above half of Nyquist (a quarter of a cycle per position) in raw latents, "
        "divided by that share in the images averaged to the grid of the latents.",
    )  # fmt: skip


def _share(name: str, of: str, share: float) -> Quantity:
    return Quantity(
        name=f"high_share_{name}", title=f"High-frequency share of {of}", value=100 * share, unit="%",
        source=SKOROKHODOV,
        definition="Share of the power above half of Nyquist, summed over channels; white noise has 75 %.",
    )  # fmt: skip


def _unknown(reason: str) -> Verdict:
    statement = f"Whether the spectrum is hot is unknown, because {reason}."
    return Verdict(name="hot_spectrum", level="unknown", statement=statement)


def _verdict(share: float, reference: float, gaussian: bool) -> Verdict:
    place = (share - reference) / max(WHITE - reference, np.finfo(float).eps)
    statement = (
        f"{100 * share:.2g} % of the latents' power is at high frequencies: {share / reference:.2g} times as much as "
        f"in images on the same grid ({100 * reference:.2g} %). White noise has {100 * WHITE:.0f} %."
    )
    advice = (
        "Diffusion models learn such latents with difficulty. Take fewer model.latent_channels, "
        f"{'raise loss.rate.weight, ' if gaussian else ''}or finetune (model.init_from) with a loss on downscaled "
        "latents, as scale equivariance does (arXiv:2502.14831, arXiv:2502.09509)."
    )
    return graded_verdict("hot_spectrum", place, WARM, HOT, statement, advice)
