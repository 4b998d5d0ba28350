"""How far the aggregate posterior, all latents of all images together, is from the prior N(0, I).

A latent is taken position by position, as vectors of C channels. It is compared raw, and after the codec's scale, since
a diffusion model learns scaled latents. There are two distances, because each misses something:
- the KL between Gaussians of equal moments has a closed form and no upper bound, but does not see the shape;
- the Kolmogorov-Smirnov distance of each channel sees shape and moments and is at most 1, but does not see how channels
  depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ldm_vae.bottlenecks.gaussian import gaussian_kl
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.diagnostics.channels import ChannelSums, bars, channel_names
from ldm_vae.diagnostics.findings import Chart, FloatArray, Quantity, Section, Verdict
from ldm_vae.extras import extra
from ldm_vae.noise import rng

# Noise schedules are made for unit variance. Half or twice the standard deviation changes the signal-to-noise ratio by
# a factor of 4, as another schedule would.
DEVIATIONS = (0.5, 2.0)  # lowest and highest standard deviation of a scaled channel that passes
OFFSET = 0.5  # largest absolute mean of a scaled channel that passes; a constant carries nothing
FEWEST_POSITIONS = 1000  # positions; with fewer, the Kolmogorov-Smirnov distance is mostly noise
NEAR = 0.1  # nats per position and channel: the KL of a Gaussian of mean 0 and standard deviation 0.7 or 1.33
MASSEY = "Massey 1951, doi:10.1080/01621459.1951.10500769"
TOO_FEW = f"it takes {FEWEST_POSITIONS} positions"
REASON = (
    "A KL term of tiny weight, such as 1e-6, gives good reconstructions and does not enforce the prior: the aggregate "
    "posterior has its own mean, its own scale, and its own correlations between channels and positions. A draw from "
    "N(0, I) is noise to the decoder."
)


@dataclass(frozen=True)
class Space:
    """Raw or scaled latents.

    name: raw or scaled.
    mean: (C,).
    covariance: (C, C), posterior noise included.
    sample: (N, C), or None where there are too few positions.
    """

    name: str
    mean: FloatArray
    covariance: FloatArray
    sample: FloatArray | None

    @cached_property
    def distances(self) -> FloatArray | None:
        """(C,), Kolmogorov-Smirnov distance of each channel to N(0, 1)."""
        return None if self.sample is None else kolmogorov_smirnov(self.sample)


def inspect_aggregate(sums: ChannelSums, moments: FloatArray | None, scale: LatentScale | None, seed: int) -> Section:
    """moments: (N, 2C), posterior means and log-variances at sampled positions; None where there are no positions."""
    names = channel_names(len(sums.mean))
    sample = None if moments is None or len(moments) < FEWEST_POSITIONS else _draw(moments, seed)
    raw = Space("raw", sums.mean, sums.covariance + np.diag(sums.posterior_variance), sample)
    scaled = None if scale is None else _scaled(raw, scale)
    numbers: list[Quantity] = []
    charts: list[Chart] = []
    for space in (raw,) if scaled is None else (raw, scaled):
        numbers += [_gaussian_kl(space), _distance(space)]
        charts += _per_channel(space, names)
    numbers.append(_shape(sample))
    verdicts = (_prior(gaussian_kl_of_moments(raw.mean, raw.covariance) / len(names)), _scale(scaled))
    return Section(
        name="aggregate_posterior", title="Aggregate posterior", numbers=tuple(numbers), charts=tuple(charts),
        verdicts=verdicts,
    )  # fmt: skip


def _gaussian_kl(space: Space) -> Quantity:
    value = gaussian_kl_of_moments(space.mean, space.covariance)
    return Quantity(
        name=f"gaussian_kl_{space.name}", title=f"KL of the fitted Gaussian to N(0, I), {space.name}",
        value=value if np.isfinite(value) else None, unit="nats per position",
        missing="" if np.isfinite(value) else "it is infinite, because a channel does not vary",
        definition="(tr S + m'm - C - ln det S) / 2 of the mean m and covariance S of the C channels over images and "
        f"positions, posterior noise included; {space.name} latents.",
    )  # fmt: skip


def _distance(space: Space) -> Quantity:
    positions = "" if space.sample is None else f"{len(space.sample)} "
    distances = space.distances
    return Quantity(
        name=f"kolmogorov_smirnov_{space.name}", title=f"Largest distance of a channel to N(0, 1), {space.name}",
        value=None if distances is None else float(distances.max()),
        missing="" if distances is not None else TOO_FEW,
        definition="Kolmogorov-Smirnov distance: the largest difference between the distribution function of a channel "
        f"and that of N(0, 1), from 0 to 1, over {positions}sampled positions; {space.name} latents.",
        source=MASSEY,
    )  # fmt: skip


def _per_channel(space: Space, names: tuple[str, ...]) -> list[Chart]:
    logvar = torch.from_numpy(
        np.diag(space.covariance).copy()
    ).log()  # -inf, and an infinite KL, where a channel does not vary
    kl = gaussian_kl(torch.from_numpy(space.mean), logvar).numpy()
    charts = [
        bars(f"gaussian_kl_per_channel_{space.name}", f"KL of moments to N(0, 1), {space.name}", names, kl,
             "nats per position", "",
             "KL(N(m, v) || N(0, 1)) = (v + m^2 - 1 - ln v) / 2 of each channel's mean m and variance v over images "
             f"and positions, posterior noise included; {space.name} latents.")
    ]  # fmt: skip
    if space.distances is not None:
        charts.append(
            bars(f"kolmogorov_smirnov_per_channel_{space.name}", f"Distance to N(0, 1), {space.name}", names,
                 space.distances, "", MASSEY,
                 f"Kolmogorov-Smirnov distance of each channel to N(0, 1), moments and shape; {space.name} latents.")
        )  # fmt: skip
    return charts


def _shape(sample: FloatArray | None) -> Quantity:
    value = None
    if sample is not None:
        value = float(kolmogorov_smirnov((sample - sample.mean(axis=0)) / sample.std(axis=0)).max())
    return Quantity(
        name="non_gaussian", title="Largest distance of a channel to its own Gaussian", value=value,
        missing=TOO_FEW if value is None else "", source=MASSEY,
        definition="The same distance after each channel is brought to mean 0 and standard deviation 1, so that only "
        "the shape counts. No scale can reduce it.",
    )  # fmt: skip


def gaussian_kl_of_moments(mean: FloatArray, covariance: FloatArray) -> float:
    """KL(N(mean, covariance) || N(0, I)) in nats; infinite where the covariance is singular."""
    sign, logarithm = np.linalg.slogdet(covariance)
    if sign <= 0:
        return float("inf")
    return float(0.5 * (np.trace(covariance) + mean @ mean - len(mean) - logarithm))


def kolmogorov_smirnov(rows: FloatArray) -> FloatArray:
    """(N, C) -> (C,), Kolmogorov-Smirnov distance of each column to N(0, 1)."""
    with extra("metrics"):
        from scipy.stats import kstest
    return np.array([kstest(column, "norm").statistic for column in rows.T])


def _draw(moments: FloatArray, seed: int) -> FloatArray:
    """(N, 2C) -> (N, C), a sample of each posterior."""
    mean, logvar = np.split(moments.astype(np.float64), 2, axis=1)
    draw: FloatArray = mean + np.exp(0.5 * logvar) * rng(seed, "aggregate posterior").standard_normal(mean.shape)
    return draw


def _scaled(raw: Space, scale: LatentScale) -> Space:
    zeros, ones = (torch.full((1, len(raw.mean), 1, 1), value, dtype=torch.float64) for value in (0.0, 1.0))
    shift = scale.apply(zeros).flatten().numpy()
    gain = scale.apply(ones).flatten().numpy() - shift
    sample = None if raw.sample is None else raw.sample * gain + shift
    return Space("scaled", raw.mean * gain + shift, raw.covariance * np.outer(gain, gain), sample)


def _prior(per_channel: float) -> Verdict:
    if not np.isfinite(per_channel):
        statement = (
            "A channel of the latents does not vary at all, so the distance of the latents to N(0, I) is infinite."
        )
        return Verdict(
            name="prior_mismatch", level="bad", statement=statement, advice="See the collapsed channels first."
        )
    statement = f"Raw latents are {per_channel:.3g} nats per position and channel away from N(0, I)."
    if per_channel <= NEAR:
        return Verdict(name="prior_mismatch", level="good", statement=statement)
    return Verdict(
        name="prior_mismatch",
        level="warning",
        statement=f"{statement} {REASON}",
        advice="This is usual before a latent diffusion model: give it scaled latents and let it learn their "
        "distribution. To sample from N(0, I) itself, raise loss.rate.weight by orders of magnitude.",
    )


def _scale(scaled: Space | None) -> Verdict:
    name = "latent_scale"
    if scaled is None:
        return Verdict(
            name=name,
            level="unknown",
            statement="The scale of these latents has not been measured, so they cannot be brought to unit variance.",
            advice="Measure it: `ldm-vae stats MODEL SHARDS --write` keeps the scale beside the model.",
        )
    mean, deviation = scaled.mean, np.sqrt(np.diag(scaled.covariance))
    statement = (
        f"Scaled channels have standard deviations from {deviation.min():.2f} to {deviation.max():.2f}; the largest "
        f"absolute mean is {np.abs(mean).max():.2f}."
    )
    if DEVIATIONS[0] <= deviation.min() and deviation.max() <= DEVIATIONS[1] and np.abs(mean).max() <= OFFSET:
        return Verdict(name=name, level="good", statement=statement)
    return Verdict(
        name=name,
        level="warning",
        statement=statement,
        advice=f"Noise schedules expect standard deviations of 1 and means of 0; {DEVIATIONS[0]} to {DEVIATIONS[1]} "
        f"and means up to {OFFSET} pass. Measure the scale on the data that you will encode (`ldm-vae stats --write`). "
        "`ldm-vae export --scale shift` subtracts a common mean; `--scale channel` scales each channel separately.",
    )
