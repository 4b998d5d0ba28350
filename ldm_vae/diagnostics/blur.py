"""How much of an image's detail is left in its reconstruction, frequency by frequency: blur in dB.

Two questions are asked in every ring of equal frequency. Is there as much detail as in the image? The ratio of powers
answers it. Is it the same detail? The correlation answers it: the Fourier ring correlation of microscopy.
"""

from __future__ import annotations

import numpy as np

from ldm_vae.diagnostics.findings import Axis, Chart, FloatArray, Line, Quantity, Section, Verdict, gaps
from ldm_vae.diagnostics.rings import SHORTEST_SIDE, RingPower, ring_frequencies

OCTAVES = ((1 / 16, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2))  # cycles per pixel
HALF = -3.0  # dB; half the power, the usual resolution limit of an optical system
TENTH = -10.0  # dB; a tenth of the power
EXCESS = 3.0  # dB; with twice the image's power, a reconstruction has detail that the image does not have
SHARED = 0.5  # ring correlation; with less, detail does not count as the image's own (van Heel & Schatz 2005)
FRC = "Saxton & Baumeister 1982; van Heel & Schatz 2005, doi:10.1016/j.jsb.2005.05.009"
POWER = (
    "Spectral density of 8-bit reconstructions divided by that of their images "
    "(Hann window; sums over channels and images)"
)


def inspect_blur(power: RingPower, *, gaussian: bool) -> Section:
    """How much detail of the images the reconstructions keep.

    power: spectra of 8-bit images and their reconstructions.
    gaussian: whether the codec has a Gaussian posterior, so that a lower price of the rate leaves more detail in it.
    """
    title = "Detail of reconstructions"
    image, reconstruction, cross = power.density.sum(axis=1)
    if not power.pictures or not np.nansum(image) > 0:
        too_small = f"no image of at least {SHORTEST_SIDE} pixels a side was reconstructed"
        reason = too_small if not power.pictures else "the images have no detail at all"
        verdict = Verdict(name="blur", level="unknown", statement=f"Blur cannot be measured, because {reason}.")
        numbers = tuple(_octave(low, high, None, reason) for low, high in OCTAVES)
        numbers += (_loss(None, reason), _faithful(None, reason))
        return Section(name="blur", title=title, numbers=numbers, verdicts=(verdict,))
    ratio = _decibel(reconstruction, image)
    octaves = [_band(image, reconstruction, low, high) for low, high in OCTAVES]
    shared = np.divide(
        cross, np.sqrt(image * reconstruction), out=np.full_like(cross, np.nan), where=image * reconstruction > 0
    )
    limit, faithful = first_below(ratio, HALF), first_below(shared, SHARED)
    numbers = tuple(
        _octave(low, high, value, "" if value is not None else "images or reconstructions have no power there")
        for (low, high), value in zip(OCTAVES, octaves, strict=True)
    )
    numbers += (_loss(100 * (1 - 2 * limit), ""), _faithful(faithful, ""))
    frequencies = tuple(ring_frequencies().tolist())
    x = Axis(title="frequency", unit="cycles per pixel")
    charts = (
        Chart(
            name="power_ratio", title="Power of reconstruction over image", definition=f"{POWER}.", kind="line",
            x=x, y=Axis(title="power", unit="dB"), lines=(Line(label="", x=frequencies, y=gaps(ratio)),),
        ),
        Chart(
            name="ring_correlation", title="Correlation of reconstruction and image", source=FRC, kind="line",
            definition="Fourier ring correlation: the cross-spectrum divided by the root of the product of both "
            "densities. 1 is the same detail, 0 is unrelated detail.",
            x=x, y=Axis(title="correlation"), lines=(Line(label="", x=frequencies, y=gaps(shared)),),
        ),
    )  # fmt: skip
    return Section(
        name="blur",
        title=title,
        numbers=numbers,
        charts=charts,
        verdicts=(_verdict(octaves[-1], limit, faithful, gaussian),),
    )


def first_below(values: FloatArray, limit: float) -> float:
    """The lower edge, in cycles per sample, of the first ring with a value below `limit`; 0.5 where no ring has one."""
    below = np.flatnonzero(values < limit)
    return 0.5 * float(below[0]) / len(values) if len(below) else 0.5


def _band(image: FloatArray, reconstruction: FloatArray, low: float, high: float) -> float | None:
    frequencies = ring_frequencies()
    inside = (frequencies >= low) & (frequencies < high) & np.isfinite(image)
    area = frequencies[inside]  # the area of a ring is proportional to its frequency
    ours, theirs = (reconstruction[inside] * area).sum(), (image[inside] * area).sum()
    return float(10 * np.log10(ours / theirs)) if ours > 0 and theirs > 0 else None


def _decibel(a: FloatArray, b: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a > 0) & (b > 0), 10 * np.log10(a / b), np.nan)


def _octave(low: float, high: float, value: float | None, missing: str) -> Quantity:
    return Quantity(
        name=f"octave_{round(1 / high)}_to_{round(1 / low)}_pixels", value=value, unit="dB", missing=missing,
        title=f"Power of detail of {round(1 / high)} to {round(1 / low)} pixels",
        definition=f"{POWER}, over frequencies from 1/{round(1 / low)} to 1/{round(1 / high)} cycles per pixel; 0 dB "
        "is the power of the image.",
    )  # fmt: skip


def _loss(value: float | None, missing: str) -> Quantity:
    return Quantity(
        name="resolution_loss", title="Resolution loss", value=value, unit="%", missing=missing,
        definition="Share of the frequencies up to Nyquist that lie above the first ring with less than half the "
        "image's power (-3 dB); 0 % where no ring has so little.",
    )  # fmt: skip


def _faithful(value: float | None, missing: str) -> Quantity:
    return Quantity(
        name="faithful_up_to", title="Faithful up to", value=value, unit="cycles per pixel", missing=missing,
        source=FRC,
        definition=f"Frequency at which the ring correlation of reconstruction and image first falls below {SHARED}. "
        "Above it, detail is invented or lost. 0.5 is Nyquist.",
    )  # fmt: skip


def _verdict(top: float | None, limit: float, faithful: float, gaussian: bool) -> Verdict:
    if top is None:
        return Verdict(name="blur", level="bad", statement="Reconstructions have no detail of 2 to 4 pixels at all.",
                       advice="Train longer (steps), and watch whether the validation PSNR still rises.")  # fmt: skip
    statement = (
        f"Detail of 2 to 4 pixels has {top:+.1f} dB of the image's power. Half of the power is lost from "
        f"{limit:.2f} cycles per pixel on; up to {faithful:.2f} the detail is the image's own."
    )
    if top > EXCESS:
        return Verdict(
            name="blur", level="warning", statement=statement,
            advice="Reconstructions have detail or patterns that the image does not have. Lower discriminator.weight, "
            "start it later (discriminator.generator_start), or raise ema.decay.",
        )  # fmt: skip
    if top >= HALF and faithful < OCTAVES[-1][0]:
        return Verdict(
            name="blur", level="warning", statement=f"{statement} The finest detail is there, but it is invented.",
            advice="Lower discriminator.weight or start it later (discriminator.generator_start). For a latent that "
            "can hold the detail, take more model.latent_channels or a lower f"
            f"{', or lower loss.rate.weight' if gaussian else ''}.",
        )  # fmt: skip
    if top >= HALF:
        return Verdict(name="blur", level="good", statement=statement)
    return Verdict(
        name="blur",
        level="warning" if top >= TENTH else "bad",
        statement=statement,
        advice="Train longer (steps). Raise loss.perceptual.weight or discriminator.weight (in effect from "
        "discriminator.generator_start on), which penalise missing detail. Take more model.latent_channels or a lower "
        f"f (one level less in model.block_out_channels).{' Lower loss.rate.weight.' if gaussian else ''}",
    )
