"""What a reconstruction loses when its latent is noisy or stored in few bits."""

from __future__ import annotations

import numpy as np

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Number, Section, Verdict, counted, gaps
from ldm_vae.diagnostics.probes import BLANK, Probes, decode_in_batches, mean_psnr, noise_like
from ldm_vae.latents.roundtrip import round_to_bits

NOISE = (0.05, 0.1, 0.2, 0.5, 1.0)  # standard deviations of the latents
BITS = (8, 6, 4)
LOSSLESS = 0.1  # dB; nobody sees less, and reruns of training differ by more
TWICE = 3.0  # dB; twice the squared error
REACH = 4.0  # standard deviations either way that the steps span; beyond it lies 1 Gaussian value in 16000
TESTED = 0.1  # standard deviations; the error that a good diffusion model leaves, a signal-to-noise ratio of 20 dB
ROUNDING = 2 * REACH / 255 / 12**0.5  # standard deviations; the error of rounding to 8 bits


def inspect_robustness(codec: LatentCodec, probes: Probes, seed: int) -> Section:
    clean = mean_psnr(probes.reconstruction, probes.image)
    unit_noise = noise_like(probes.z, seed, "robustness")
    noisy = {
        level: mean_psnr(decode_in_batches(codec, probes.z + level * probes.std * unit_noise), probes.image)
        for level in NOISE
    }
    stored = {bits: mean_psnr(decode_in_batches(codec, round_to_bits(probes.z, bits)), probes.image) for bits in BITS}
    against = f"PSNR against the image on 8-bit values, mean over {counted(len(probes.image), 'probe')}"
    numbers = [_number("psnr_clean", "PSNR of the probes", clean, f"{against}; latents as they are.")]
    numbers += [
        _number(f"psnr_noise_{level:g}", f"PSNR at latent noise of {level:g}", value,
                f"{against}; Gaussian noise of {level:g} of the standard deviation of all latents is added.")
        for level, value in noisy.items()
    ]  # fmt: skip
    numbers += [
        _number(f"psnr_{bits}_bits", f"PSNR from latents of {bits} bits", value,
                f"{against}; latents rounded to {2**bits} even steps between the least and largest value of each "
                "channel of each image.")
        for bits, value in stored.items()
    ]  # fmt: skip
    levels = {0.0: clean} | noisy
    charts = (
        Chart(
            name="psnr_by_noise", title="PSNR by latent noise", definition=f"{against}.", kind="line",
            x=Axis(title="noise", unit="standard deviations of the latents"), y=Axis(title="PSNR", unit="dB"),
            lines=(Line(label="", x=tuple(levels), y=gaps(levels.values())),),
        ),
        Chart(
            name="psnr_by_bits", title="PSNR by bits per latent number", definition=f"{against}.", kind="bar",
            x=Axis(title="bits"), y=Axis(title="PSNR", unit="dB"),
            lines=(Line(label="", x=("float32", *map(str, stored)), y=gaps([clean, *stored.values()])),),
        ),
    )  # fmt: skip
    verdicts: tuple[Verdict, ...] = (
        _noise(clean - noisy[TESTED], least_drop(clean, probes.spread, TESTED)),
        _storage({bits: clean - value for bits, value in stored.items()}, least_drop(clean, probes.spread, ROUNDING)),
    )
    if probes.blank:
        verdicts = tuple(Verdict(name=verdict.name, level="unknown", statement=BLANK) for verdict in verdicts)
    return Section(
        name="robustness", title="Noise and storage", numbers=tuple(numbers), charts=charts, verdicts=verdicts
    )


def _number(name: str, title: str, value: float, definition: str) -> Number:
    finite = bool(np.isfinite(value))
    missing = "" if finite else "is infinite, because a reconstruction equals its image"
    return Number(
        name=name, title=title, value=value if finite else None, unit="dB", missing=missing, definition=definition
    )


def least_drop(clean: float, spread: float, noise: float) -> float:
    """dB that a codec of PSNR `clean` loses to latent noise if its decoder is linear with orthogonal directions, so
    that the noise is as large in the picture as in the latent. The better the codec, the more: noise of 0.1 costs
    0.6 dB from 24 dB and 9 dB from 40 dB for photographs, so that no fixed number of dB tells a sensitive decoder.

    spread: standard deviation of the images, range [-1, 1].   noise: in standard deviations of the latents.
    """
    return float(10 * np.log10(1 + (noise * spread) ** 2 / 4 * 10 ** (clean / 10)))


def _noise(drop: float, least: float) -> Verdict:
    return _verdict(
        "noise_sensitivity",
        drop,
        least + TWICE,
        f"Noise of {TESTED:g} of the latents' deviation costs {drop:z.1f} dB; a linear decoder of orthogonal "
        f"directions would lose {least:.1f} dB.",
        "Errors of that size are what diffusion models make. Raise loss.rate.weight, whose noise teaches the "
        "decoder to bear it, or finetune the decoder (model.train: decoder).",
    )


def _storage(drops: dict[int, float], least: float) -> Verdict:
    return _verdict(
        "quantisation",
        drops[8],
        LOSSLESS + 2 * least,
        f"Latents of {', '.join(f'{bits} bits cost {drop:z.2f} dB' for bits, drop in drops.items())}; a linear decoder "
        f"of orthogonal directions would lose {least:.2f} dB by 8 bits over {REACH:g} deviations either way.",
        "Store latents as float16 (`ldm-vae encode` does). A few extreme values may widen the steps: see the "
        "spread of channels, and raise loss.rate.weight.",
    )


def _verdict(name: str, drop: float, allowed: float, statement: str, advice: str) -> Verdict:
    """drop, allowed: dB."""
    if not np.isfinite(drop):
        equal = "Reconstructions equal their images, so that no drop exists."
        return Verdict(name=name, level="unknown", statement=equal)
    if drop <= allowed:
        return Verdict(name=name, level="good", statement=statement)
    return Verdict(name=name, level="warning", statement=statement, advice=advice)
