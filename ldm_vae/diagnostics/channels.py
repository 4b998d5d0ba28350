"""What each latent channel carries: its rate, its noise, whether it is active, and how it correlates with others."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ldm_vae.bottlenecks.gaussian import ACTIVE_VARIANCE, gaussian_kl
from ldm_vae.devices import in_float64
from ldm_vae.diagnostics.findings import (
    Axis,
    Chart,
    FloatArray,
    Line,
    Matrix,
    Quantity,
    Section,
    Verdict,
    gaps,
    graded_verdict,
)
from ldm_vae.printable import counted

# At a correlation of 0.9 two channels share 81 % of their variance: together they carry little more than one alone.
REDUNDANT = 0.9
WIDE = 50  # ratio of the largest bar to the smallest, above which the axis is logarithmic


class ChannelSums:
    """Sums over images and positions, in float64. Memory does not grow with their number."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.positions = 0
        self.pixels = 0
        self.mean: FloatArray = np.zeros(channels)  # mean of the posterior mean
        self._scatter: FloatArray = np.zeros((channels, channels))  # sum of products of deviations from `mean`
        self._variance: FloatArray = np.zeros(channels)  # sum of the posterior variances
        self._deviation: FloatArray = np.zeros(channels)  # sum of the posterior standard deviations
        self._kl: FloatArray = np.zeros(channels)

    def update(self, mean: Tensor, logvar: Tensor | None, pixels: int) -> None:
        """mean, logvar: (B, C, h, w), finite; logvar is clamped already. None for a posterior without a variance.
        pixels: pixels of one image, without padding.
        """
        mean = in_float64(mean)
        flat = mean.transpose(0, 1).flatten(1).cpu().numpy()  # (C, B*h*w)
        self._add(flat)
        if logvar is not None:
            logvar = in_float64(logvar)
            self._variance += logvar.exp().sum(dim=(0, 2, 3)).cpu().numpy()
            self._deviation += (0.5 * logvar).exp().sum(dim=(0, 2, 3)).cpu().numpy()
            self._kl += gaussian_kl(mean, logvar).sum(dim=(0, 2, 3)).cpu().numpy()
        self.images += len(mean)
        self.pixels += len(mean) * pixels

    def _add(self, flat: FloatArray) -> None:
        """Updates mean and scatter by more positions. Source: Chan, Golub & LeVeque 1979, for products of channels."""
        count = flat.shape[1]
        total = self.positions + count
        mean = flat.mean(axis=1)
        centred = flat - mean[:, None]
        delta = mean - self.mean
        self._scatter += centred @ centred.T + np.outer(delta, delta) * (self.positions * count / total)
        self.mean = self.mean + delta * (count / total)
        self.positions = total

    @property
    def covariance(self) -> FloatArray:
        """(C, C), covariance of the posterior mean over images and positions (the population's: numpy's ddof=0)."""
        return self._scatter / self.positions

    @property
    def posterior_variance(self) -> FloatArray:
        """(C,), mean of sigma^2."""
        return self._variance / self.positions

    @property
    def posterior_deviation(self) -> FloatArray:
        """(C,), mean of sigma."""
        return self._deviation / self.positions

    @property
    def kl(self) -> FloatArray:
        """(C,), nats per image."""
        return self._kl / self.images

    @property
    def std(self) -> float:
        """One standard deviation for all channels together, around their common mean, as a scaling factor sees them."""
        return float(np.sqrt(np.diag(self.covariance).mean() + np.var(self.mean)))


def inspect_channels(sums: ChannelSums) -> Section:
    names = channel_names(len(sums.mean))
    variance = np.diag(sums.covariance)
    active = variance > ACTIVE_VARIANCE
    correlation, strongest, pair = _correlation(sums.covariance, active)
    bits = float(sums.kl.sum()) * sums.images / sums.pixels / math.log(2)
    noise = sums.posterior_deviation / np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    kingma = "Kingma & Welling 2013, arXiv:1312.6114, appendix B"
    burda = "Burda et al. 2016, arXiv:1509.00519, section 5.2"
    over = "over images and positions"
    wide = bool(variance.min() > 0 and variance.max() > WIDE * variance.min())
    numbers = (
        Quantity(
            name="kl", title="KL", value=float(sums.kl.sum()), unit="nats per image", source=kingma,
            definition="KL(q(z|x) || N(0, I)) of the posterior, summed over channels and positions; mean over images.",
        ),
        Quantity(
            name="rate", title="Rate", value=bits, unit="bits per pixel", source=kingma,
            definition="The KL of all images, divided by the number of their pixels (without padding) and by ln 2.",
        ),
        Quantity(
            name="active_channels", title="Active channels", value=float(active.sum()), unit=f"of {len(names)}",
            source=burda,
            definition=f"Channels whose posterior mean has a variance above {ACTIVE_VARIANCE:g} {over}.",
        ),
        Quantity(
            name="relative_noise", title="Posterior noise", source=kingma,
            value=float(np.mean(noise[active])) if active.any() else None, unit="standard deviations of the mean",
            missing="" if active.any() else "no channel is active",
            definition=f"Mean sigma of the posterior, divided by the standard deviation of the posterior mean {over}; "
            "mean over active channels.",
        ),
        Quantity(
            name="largest_correlation", title="Strongest correlation of two channels", value=strongest,
            missing="" if strongest is not None else "there are no two active channels",
            definition=f"Largest absolute Pearson correlation of the posterior means of two active channels {over}.",
        ),
    )  # fmt: skip
    charts = (
        bars("kl_per_channel", "KL per channel", names, sums.kl, "nats per image", kingma,
             "KL(q(z|x) || N(0, I)), summed over positions, mean over images."),
        bars("variance_per_channel", "Variance of the posterior mean", names, variance, "", burda,
             f"Variance {over}; a channel is active above {ACTIVE_VARIANCE:g}.", log=wide),
        bars("posterior_std_per_channel", "Posterior standard deviation", names, sums.posterior_deviation, "", kingma,
             f"Mean of sigma {over}, in units of the raw latent; 1 is the prior's."),
    )  # fmt: skip
    matrices = (
        _matrix("covariance", "Covariance of channels", names, sums.covariance,
                f"Covariance of the posterior mean {over}, raw latents (the sum divided by the number of positions)."),
        _matrix("correlation", "Correlation of channels", names, correlation,
                "The covariance divided by the product of the two standard deviations; 0 where a channel does not "
                "vary."),
    )  # fmt: skip
    verdicts = (_collapse(active, variance), _redundancy(strongest, pair))
    return Section(
        name="channels", title="Channels", numbers=numbers, charts=charts, matrices=matrices, verdicts=verdicts
    )


def channel_names(count: int) -> tuple[str, ...]:
    return tuple(f"channel {number}" for number in range(count))


def bars(
    name: str,
    title: str,
    names: tuple[str, ...],
    values: FloatArray,
    unit: str,
    source: str,
    definition: str,
    *,
    log: bool = False,
) -> Chart:
    """A chart with one bar for each channel, and no bar where the value is not finite."""
    return Chart(
        name=name,
        title=title,
        definition=definition,
        source=source,
        kind="bar",
        x=Axis(title="channel"),
        y=Axis(title=title, unit=unit, scale="log" if log else "linear"),
        lines=(Line(label="", x=names, y=gaps(values)),),
    )


def _matrix(name: str, title: str, names: tuple[str, ...], values: FloatArray, definition: str) -> Matrix:
    rows = tuple(tuple(row) for row in values.tolist())
    return Matrix(name=name, title=title, definition=definition, rows=names, columns=names, values=rows)


def _correlation(
    covariance: FloatArray, active: npt.NDArray[np.bool_]
) -> tuple[FloatArray, float | None, tuple[int, int]]:
    """The correlation matrix, the largest absolute correlation of two active channels, and which two these are.

    The correlation is None where fewer than two channels are active. Collapsed channels are left out: what remains in
    them is often the same trace of the image, which wastes nothing.
    """
    deviation = np.sqrt(np.diag(covariance))
    product = np.outer(deviation, deviation)
    correlation = np.divide(covariance, product, out=np.zeros_like(covariance), where=product > 0)
    if active.sum() < 2:
        return correlation, None, (0, 0)
    beside = np.abs(np.triu(correlation, k=1)) * np.outer(active, active)
    row, column = np.unravel_index(int(beside.argmax()), beside.shape)
    return correlation, float(beside[row, column]), (int(row), int(column))


def _collapse(active: npt.NDArray[np.bool_], variance: FloatArray) -> Verdict:
    collapsed = [str(channel) for channel in np.flatnonzero(~active)]
    if not collapsed:
        statement = (
            f"All {len(active)} channels are active; the smallest variance of a posterior mean is {variance.min():.3g}."
        )
        return Verdict(name="collapsed_channels", level="good", statement=statement)
    return Verdict(
        name="collapsed_channels",
        level="bad" if len(collapsed) == len(active) else "warning",
        statement=f"Of {counted(len(active), 'channel')}, {len(collapsed)} collapsed (variance of the mean at most "
        f"{ACTIVE_VARIANCE:g}): {', '.join(collapsed)}.",
        advice="Lower loss.rate.weight, raise loss.rate.warmup so that the decoder first learns to use all channels, "
        "let each have some nats free (loss.rate.free_nats), or take fewer model.latent_channels. A collapsed channel "
        "is noise that a diffusion model must learn all the same.",
    )


def _redundancy(strongest: float | None, pair: tuple[int, int]) -> Verdict:
    if strongest is None:
        statement = "Fewer than two channels are active, so no channel can repeat another."
        return Verdict(name="redundant_channels", level="unknown", statement=statement)
    statement = (
        f"Channels {pair[0]} and {pair[1]} are the most alike of the active ones: their correlation is {strongest:.2f}."
    )
    advice = (
        "They carry nearly the same. Train longer (steps), raise loss.rate.weight, which charges for every copy, or "
        "take fewer model.latent_channels."
    )
    return graded_verdict("redundant_channels", strongest, REDUNDANT, math.inf, statement, advice)
