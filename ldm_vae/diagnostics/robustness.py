"""How much worse a reconstruction is where its latent is noisy, or stored in few bits."""

from __future__ import annotations

import numpy as np

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Quantity, Section, Verdict, gaps, graded_verdict
from ldm_vae.diagnostics.probes import (
    BLANK,
    NOISIER,
    Done,
    Probes,
    decode_in_batches,
    each,
    mean_psnr,
    noise_like,
    silent,
)
from ldm_vae.latents.roundtrip import round_to_bits
from ldm_vae.printable import counted

NOISE = (0.05, 0.1, 0.2, 0.5, 1.0)  # standard deviations of the latents
BITS = (8, 6, 4)
LOSSLESS = 0.1  # dB; nobody sees a smaller loss, and two trainings differ by more
TWICE = 3.0  # dB; twice the squared error
REACH = 4.0  # standard deviations on either side that the steps span; 1 Gaussian value in 16000 lies beyond
TESTED = 0.1  # standard deviations; the error of a good diffusion model, a signal-to-noise ratio of 20 dB
ROUNDING = 2 * REACH / 255 / 12**0.5  # standard deviations; the error of rounding to 8 bits


def inspect_robustness(codec: LatentCodec, probes: Probes, seed: int, done: Done = silent) -> Section:
    clean = mean_psnr(probes.reconstruction, probes.image)
    unit_noise = noise_like(probes.z, seed, "robustness")
    latents = {level: probes.z + level * probes.std * unit_noise for level in NOISE}
    latents |= {bits: round_to_bits(probes.z, bits) for bits in BITS}
    worse = {
        how: mean_psnr(decode_in_batches(codec, z), probes.image)
        for how, z in each(latents.items(), len(probes.image), done)
    }
    noisy, stored = {level: worse[level] for level in NOISE}, {bits: worse[bits] for bits in BITS}
    psnr = f"PSNR of the reconstruction on 8-bit values, mean over {counted(len(probes.image), 'probe')}"
    numbers = [_number("psnr_clean", "PSNR of the probes", clean, f"{psnr}; latents are unchanged.")]
    numbers += [
        _number(f"psnr_noise_{level:g}", f"PSNR at latent noise of {level:g}", value,
                f"{psnr}; Gaussian noise of {level:g} standard deviations of all latents is added.")
        for level, value in noisy.items()
    ]  # fmt: skip
    numbers += [
        _number(f"psnr_{bits}_bits", f"PSNR from latents of {bits} bits", value,
                f"{psnr}; latents are rounded to {2**bits} even steps between the smallest and the largest value of "
                "each channel of each image.")
        for bits, value in stored.items()
    ]  # fmt: skip
    levels = {0.0: clean} | noisy
    charts = (
        Chart(
            name="psnr_by_noise", title="PSNR by latent noise", definition=f"{psnr}.", kind="line",
            x=Axis(title="noise", unit="standard deviations of the latents"), y=Axis(title="PSNR", unit="dB"),
            lines=(Line(label="", x=tuple(levels), y=gaps(levels.values())),),
        ),
        Chart(
            name="psnr_by_bits", title="PSNR by bits per latent number", definition=f"{psnr}.", kind="bar",
            x=Axis(title="bits"), y=Axis(title="PSNR", unit="dB"),
            lines=(Line(label="", x=("float32", *map(str, stored)), y=gaps([clean, *stored.values()])),),
        ),
    )  # fmt: skip
    gaussian = codec.model.bottleneck.gaussian
    drops = {bits: clean - value for bits, value in stored.items()}
    verdicts: tuple[Verdict, ...] = (
        _noise(clean - noisy[TESTED], least_drop(clean, probes.spread, TESTED), gaussian),
        _storage(drops, least_drop(clean, probes.spread, ROUNDING), gaussian),
    )
    if probes.blank:
        verdicts = tuple(Verdict(name=verdict.name, level="unknown", statement=BLANK) for verdict in verdicts)
    return Section(
        name="robustness", title="Noise and storage", numbers=tuple(numbers), charts=charts, verdicts=verdicts
    )


def _number(name: str, title: str, value: float, definition: str) -> Quantity:
    finite = bool(np.isfinite(value))
    missing = "" if finite else "it is infinite, because a reconstruction equals its image"
    return Quantity(
        name=name, title=title, value=value if finite else None, unit="dB", missing=missing, definition=definition
    )


def least_drop(clean: float, spread: float, noise: float) -> float:
    """The loss in dB that latent noise causes if the decoder is linear with orthogonal directions.

    Such a decoder makes the noise as large in the picture as it is in the latent. A better codec loses more: for
    photographs, noise of 0.1 costs 0.6 dB at 24 dB and 9 dB at 40 dB. So no fixed number of dB shows that a decoder is
    sensitive.

    clean: PSNR of the codec without noise, in dB.
    spread: standard deviation of the images, range [-1, 1].
    noise: standard deviation of the noise, in standard deviations of the latents.
    """
    return float(10 * np.log10(1 + (noise * spread) ** 2 / 4 * 10 ** (clean / 10)))


def _noise(drop: float, least: float, gaussian: bool) -> Verdict:
    return _verdict(
        "noise_sensitivity",
        drop,
        least + TWICE,
        f"Latent noise of {TESTED:g} standard deviations costs {drop:z.1f} dB; a linear decoder of orthogonal "
        f"directions would lose {least:.1f} dB.",
        "Diffusion models make errors of that size. Finetune the decoder (model.train: decoder)"
        f"{f', or raise loss.rate.weight: {NOISIER}' if gaussian else ''}.",
    )


def _storage(drops: dict[int, float], least: float, gaussian: bool) -> Verdict:
    return _verdict(
        "quantisation",
        drops[8],
        LOSSLESS + 2 * least,
        f"Latents of {', '.join(f'{bits} bits cost {drop:z.2f} dB' for bits, drop in drops.items())}; a linear decoder "
        f"of orthogonal directions would lose {least:.2f} dB with 8 bits over {REACH:g} standard deviations on "
        "either side.",
        "Store latents as float16 (`ldm-vae encode` does). A few extreme values may widen the steps"
        f"{': see the variance of each channel, and raise loss.rate.weight' if gaussian else ''}.",
    )


def _verdict(name: str, drop: float, allowed: float, statement: str, advice: str) -> Verdict:
    """drop, allowed: loss of PSNR in dB."""
    if not np.isfinite(drop):
        equal = "Reconstructions equal their images, so no loss can be measured."
        return Verdict(name=name, level="unknown", statement=equal)
    return graded_verdict(name, drop, allowed, np.inf, statement, advice)
