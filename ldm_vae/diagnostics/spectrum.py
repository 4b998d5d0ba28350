"""Power spectrum of latents beside that of the images they stand for: is there too much at high frequencies?

Diffusion makes low frequencies first and high ones last, from what the low ones tell it. A latent whose spectrum is
hot, flatter than an image's, hides information in high frequencies that must be guessed.
Source: Skorokhodov et al. 2025, "Improving the Diffusability of Autoencoders", arXiv:2502.14831, by DCT spectra.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.diagnostics.channels import bars, channel_names
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Number, Section, Verdict
from ldm_vae.diagnostics.rings import SMALLEST, Array, RingPower, high_share, ring_frequencies

WHITE = 0.75  # high-frequency share of white noise
# Places between the images' high-frequency share (0: an f x f average, the most image-like latent there is) and white
# noise's (1). Chosen, not derived. No multiple of the images' share would do: on photographs it is 7 % at f4, 10 % at
# f8, 17 % at f16 and 30 % at f32, so that noise itself is 11 times as hot at f4, and 2.5 times at f32.
WARM, HOT = 0.15, 0.45
SOURCE = "Skorokhodov et al. 2025, arXiv:2502.14831"


class LatentSpectrum:
    """Spectral density of raw latents, and of the images averaged over f x f pixels, on the same grid."""

    def __init__(self, latent_channels: int, image_channels: int, factor: int) -> None:
        self.factor = factor
        self.latents = RingPower(latent_channels)
        self.images = RingPower(image_channels)

    def update(self, z: Tensor, padded: Tensor) -> None:
        """z: (B, c, h, w).   padded: (B, C, h*f, w*f)."""
        small = F.avg_pool2d(padded, self.factor)
        self.latents.update(z, z)
        self.images.update(small, small)


def inspect_spectrum(spectrum: LatentSpectrum) -> Section:
    title = "Spectrum of latents"
    if not spectrum.latents.pictures:
        reason = f"no latent has {SMALLEST} positions along both sides"
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
        name="density", title="Power of latents and images by frequency", kind="line", source=SOURCE,
        definition="Spectral density over rings of equal frequency, summed over channels, Hann window, relative to "
        "white noise of the same variance; images are averaged over f x f pixels, to the grid of their latents.",
        x=Axis(title="frequency", unit="cycles per latent position"), y=Axis(title="power", unit="dB over white noise"),
        lines=tuple(
            Line(label=label, x=tuple(ring_frequencies().tolist()), y=_relative(density.sum(axis=0)))
            for label, density in (("latents", latents), ("images", images))
        ),
    )  # fmt: skip
    shares = bars(
        "high_share_per_channel", "High-frequency share per channel", channel_names(len(each)),
        100 * each, "%", SOURCE,
        f"Share of each channel's power above half of Nyquist; images have {100 * reference:.3g} %, white noise 75 %.",
    )  # fmt: skip
    verdict = _verdict(share, reference)
    return Section(name="spectrum", title=title, numbers=numbers, charts=(chart, shares), verdicts=(verdict,))


def _relative(density: Array) -> tuple[float | None, ...]:
    """dB over white noise of the same power."""
    area = ring_frequencies()  # of a ring, in proportion
    white = np.nansum(density * area) / area[np.isfinite(density)].sum()
    return tuple(10 * float(np.log10(d / white)) if np.isfinite(d) and d > 0 else None for d in density)


def _ratio(value: float | None, missing: str) -> Number:
    return Number(
        name="heat", title="High frequencies of latents over those of images", value=value, missing=missing,
        unit="times", source=SOURCE,
        definition="Share of the power above half of Nyquist (a quarter of a cycle per position) in raw latents, "
        "over the same share in the images averaged to the latents' grid.",
    )  # fmt: skip


def _share(name: str, of: str, share: float) -> Number:
    return Number(
        name=f"high_share_{name}", title=f"High-frequency share of {of}", value=100 * share, unit="%", source=SOURCE,
        definition="Share of the power above half of Nyquist, summed over channels; white noise has 75 %.",
    )  # fmt: skip


def _unknown(reason: str) -> Verdict:
    statement = f"Whether the spectrum is hot can't be told, because {reason}."
    return Verdict(name="hot_spectrum", level="unknown", statement=statement)


def _verdict(share: float, reference: float) -> Verdict:
    place = (share - reference) / max(WHITE - reference, np.finfo(float).eps)
    statement = (
        f"{100 * share:.2g} % of the latents' power is at high frequencies, {share / reference:.2g} times the "
        f"{100 * reference:.2g} % of images on the same grid; white noise has {100 * WHITE:.0f} %."
    )
    if place <= WARM:
        return Verdict(name="hot_spectrum", level="good", statement=statement)
    return Verdict(
        name="hot_spectrum",
        level="warning" if place <= HOT else "bad",
        statement=statement,
        advice="Diffusion models find such latents hard. Take fewer model.latent_channels, raise loss.rate.weight, or "
        "finetune (model.init_from) with a loss on downscaled latents, as scale equivariance does (arXiv:2502.14831, "
        "arXiv:2502.09509).",
    )
