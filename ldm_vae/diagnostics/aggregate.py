"""How far the aggregate posterior, all latents of all images together, is from the prior N(0, I).

The distance is taken at single positions, as vectors of C channels: raw, and after the codec's scale, which is what a
diffusion model starts from. Two ways, since each misses something: the KL between Gaussians of equal moments (closed
form, unbounded, blind to shape) and the Kolmogorov-Smirnov distance of each channel (shape and moments, at most 1,
blind to what channels do together).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import kstest

from ldm_vae.data.batch import rng
from ldm_vae.diagnostics.channels import ChannelSums, bars, channel_names
from ldm_vae.diagnostics.findings import Number, Section, Verdict
from ldm_vae.scale import LatentScale

Array = npt.NDArray[np.float64]
# Noise schedules are made for unit variance. Latents of half or twice the deviation see the noise of another schedule,
# shifted by a factor of 4 in signal-to-noise.
DEVIATIONS = (0.5, 2.0)  # of each scaled channel
OFFSET = 0.5  # |mean| of each scaled channel; more than half a deviation is wasted on a constant
FEW = 1000  # positions below which the distance of distributions is mostly noise
NEAR = 0.1  # nats per position and channel: a Gaussian of mean 0 and deviation 0.7 or 1.4
VERDICT = "prior_mismatch"
REASON = (
    "A weight of 1e-6 on the KL buys reconstruction, not a prior: the aggregate posterior has its own mean, scale and "
    "correlations, and N(0, I) is mostly outside of it."
)


def inspect_aggregate(sums: ChannelSums, moments: Array | None, scale: LatentScale | None, seed: int) -> Section:
    """moments: (N, 2C), posterior means and log-variances at sampled positions; None where there are none."""
    names = channel_names(len(sums.mean))
    covariance = sums.covariance + np.diag(sums.posterior_variance)
    sample = None if moments is None or len(moments) < FEW else _draw(moments, seed)
    raw = gaussian_kl_of_moments(sums.mean, covariance)
    spaces: dict[str, tuple[Array, Array, Array | None]] = {"raw": (sums.mean, covariance, sample)}
    if scale is not None:
        gain, shift = _affine(scale, len(names))
        scaled = None if sample is None else sample * gain + shift
        spaces["scaled"] = (sums.mean * gain + shift, covariance * np.outer(gain, gain), scaled)
    numbers, charts = [], []
    for space, (mean, spread, rows) in spaces.items():
        variance = np.diag(spread)
        with np.errstate(divide="ignore"):  # a channel that does not vary is infinitely far
            each = 0.5 * (variance + mean**2 - 1.0 - np.log(variance))
        charts.append(
            bars(f"gaussian_kl_{space}", f"KL of moments to N(0, 1), {space}", names, each, "nats per position", "",
                 "KL(N(m, v) || N(0, 1)) = (v + m^2 - 1 - ln v) / 2 of each channel's mean m and variance v over "
                 f"images and positions, posterior noise included; {space} latents.")
        )  # fmt: skip
        numbers.append(
            Number(
                name=f"gaussian_kl_{space}", title=f"KL of the fitted Gaussian to N(0, I), {space}",
                value=_finite(gaussian_kl_of_moments(mean, spread)), unit="nats per position",
                missing="" if _finite(gaussian_kl_of_moments(mean, spread)) is not None else "a channel does not vary",
                definition="(tr S + m'm - C - ln det S) / 2 of the mean m and covariance S of the C channels over "
                f"images and positions, posterior noise included; {space} latents.",
            )
        )  # fmt: skip
        distance = None if rows is None else kolmogorov_smirnov(rows)
        numbers.append(
            Number(
                name=f"kolmogorov_smirnov_{space}", title=f"Largest distance of a channel to N(0, 1), {space}",
                value=None if distance is None else float(distance.max()),
                missing="" if distance is not None else f"it takes {FEW} positions",
                definition="Kolmogorov-Smirnov: largest difference of the distribution functions of a channel's values "
                f"and of N(0, 1), from 0 to 1; {0 if rows is None else len(rows)} sampled positions, {space} latents.",
                source="Massey 1951, doi:10.1080/01621459.1951.10500769",
            )
        )  # fmt: skip
        if distance is not None:
            charts.append(
                bars(f"kolmogorov_smirnov_{space}", f"Distance to N(0, 1), {space}", names, distance, "", "",
                     "Kolmogorov-Smirnov distance of each channel's values to N(0, 1): moments and shape.")
            )  # fmt: skip
    shape = None if sample is None else kolmogorov_smirnov((sample - sample.mean(axis=0)) / sample.std(axis=0))
    numbers.append(
        Number(
            name="non_gaussian", title="Largest distance of a channel to its own Gaussian",
            value=None if shape is None else float(shape.max()),
            missing="" if shape is not None else f"it takes {FEW} positions",
            definition="The same distance after each channel is brought to mean 0 and deviation 1: shape alone. No "
            "scale mends it.",
            source="Massey 1951, doi:10.1080/01621459.1951.10500769",
        )
    )  # fmt: skip
    verdicts = (_prior(raw / len(names)), _scale(spaces.get("scaled")))
    return Section(
        name="aggregate_posterior", title="Aggregate posterior", numbers=tuple(numbers), charts=tuple(charts),
        verdicts=verdicts,
    )  # fmt: skip


def gaussian_kl_of_moments(mean: Array, covariance: Array) -> float:
    """KL(N(mean, covariance) || N(0, I)) in nats; infinite where the covariance is singular."""
    sign, logarithm = np.linalg.slogdet(covariance)
    if sign <= 0:
        return float("inf")
    return float(0.5 * (np.trace(covariance) + mean @ mean - len(mean) - logarithm))


def kolmogorov_smirnov(rows: Array) -> Array:
    """(N, C) -> (C,), distance of each column to N(0, 1)."""
    return np.array([kstest(column, "norm").statistic for column in rows.T])


def _draw(moments: Array, seed: int) -> Array:
    """(N, 2C) -> (N, C), a sample of each posterior."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    draw: Array = mean + np.exp(0.5 * logvar) * rng(seed, "aggregate posterior").standard_normal(mean.shape)
    return draw


def _affine(scale: LatentScale, channels: int) -> tuple[Array, Array]:
    """(C,), (C,): what a scale multiplies raw latents by, and then adds."""
    zeros, ones = (torch.full((1, channels, 1, 1), value, dtype=torch.float64) for value in (0.0, 1.0))
    shift = scale.apply(zeros)
    return (scale.apply(ones) - shift).flatten().numpy(), shift.flatten().numpy()


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _prior(per_channel: float) -> Verdict:
    if not np.isfinite(per_channel):
        statement = "A channel of the latents does not vary at all, so that their distance to N(0, I) is infinite."
        return Verdict(name=VERDICT, level="bad", statement=statement, advice="See the collapsed channels first.")
    statement = f"Raw latents are {per_channel:.3g} nats per position and channel from N(0, I)."
    if per_channel <= NEAR:
        return Verdict(name=VERDICT, level="good", statement=statement)
    return Verdict(
        name=VERDICT,
        level="warning",
        statement=f"{statement} {REASON}",
        advice="For a latent diffusion model this is the rule: give it scaled latents and let it learn their "
        "distribution. To sample from N(0, I) itself, raise loss.rate.weight by orders of magnitude.",
    )


def _scale(scaled: tuple[Array, Array, Array | None] | None) -> Verdict:
    name = "latent_scale"
    if scaled is None:
        return Verdict(
            name=name,
            level="unknown",
            statement="Nobody has measured the scale of these latents, so that they can't be brought to unit variance.",
            advice="`ldm-vae stats MODEL SHARDS --write` keeps it beside the model.",
        )
    mean, deviation = scaled[0], np.sqrt(np.diag(scaled[1]))
    statement = (
        f"Scaled channels have deviations from {deviation.min():.2f} to {deviation.max():.2f} and means of at most "
        f"{np.abs(mean).max():.2f} in magnitude."
    )
    if DEVIATIONS[0] <= deviation.min() and deviation.max() <= DEVIATIONS[1] and np.abs(mean).max() <= OFFSET:
        return Verdict(name=name, level="good", statement=statement)
    return Verdict(
        name=name,
        level="warning",
        statement=statement,
        advice=f"Noise schedules expect deviations of 1 and means of 0 (here {DEVIATIONS[0]} to {DEVIATIONS[1]}, "
        f"{OFFSET} pass). Measure on the data to be encoded (`ldm-vae stats --write`); `ldm-vae export --scale "
        "shift` takes a common mean away, `--scale channel` scales each channel by itself.",
    )
