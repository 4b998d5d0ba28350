"""What each latent channel carries: its rate, whether it is active, its noise, and how channels go together."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ldm_vae.bottlenecks.gaussian import gaussian_kl
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Matrix, Number, Section, Verdict, gaps

ACTIVE = 1e-2  # variance of the posterior mean from which on a unit counts as active (Burda et al. 2016)
# Two channels that share 81 % of their variance carry little more than one of them.
REDUNDANT = 0.9  # correlation
WIDE = 50  # times the smallest bar; a longer one needs a logarithmic axis
Array = npt.NDArray[np.float64]


class ChannelSums:
    """Float64 sums over images and positions; memory does not grow with either."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.positions = 0
        self.pixels = 0
        self.mean: Array = np.zeros(channels)  # of the posterior mean
        self._scatter: Array = np.zeros((channels, channels))  # sum of products of deviations from `mean`
        self._variance: Array = np.zeros(channels)  # sums of the posterior's own
        self._deviation: Array = np.zeros(channels)
        self._kl: Array = np.zeros(channels)

    def update(self, mean: Tensor, logvar: Tensor, pixels: int) -> None:
        """mean, logvar: (B, C, h, w), finite, logvar clamped.   pixels: of one image, without padding."""
        mean, logvar = mean.double(), logvar.double()
        flat = mean.transpose(0, 1).flatten(1).cpu().numpy()  # (C, B*h*w)
        self._add(flat)
        self._variance += logvar.exp().sum(dim=(0, 2, 3)).cpu().numpy()
        self._deviation += (0.5 * logvar).exp().sum(dim=(0, 2, 3)).cpu().numpy()
        self._kl += gaussian_kl(mean, logvar).sum(dim=(0, 2, 3)).cpu().numpy()
        self.images += len(mean)
        self.pixels += len(mean) * pixels

    def _add(self, flat: Array) -> None:
        """Chan, Golub & LeVeque 1979, for products of channels."""
        count = flat.shape[1]
        total = self.positions + count
        mean = flat.mean(axis=1)
        centred = flat - mean[:, None]
        delta = mean - self.mean
        self._scatter += centred @ centred.T + np.outer(delta, delta) * (self.positions * count / total)
        self.mean = self.mean + delta * (count / total)
        self.positions = total

    @property
    def covariance(self) -> Array:
        """(C, C), of the posterior mean over images and positions (of the population, as numpy with ddof=0)."""
        return self._scatter / self.positions

    @property
    def posterior_variance(self) -> Array:
        """(C,), mean of sigma^2."""
        return self._variance / self.positions

    @property
    def posterior_deviation(self) -> Array:
        """(C,), mean of sigma."""
        return self._deviation / self.positions

    @property
    def kl(self) -> Array:
        """(C,), nats per image."""
        return self._kl / self.images

    @property
    def std(self) -> float:
        """One number for all channels, as a scaling factor sees them: the root of the mean square around the mean."""
        return float(np.sqrt(np.diag(self.covariance).mean() + np.var(self.mean)))


def inspect_channels(sums: ChannelSums) -> Section:
    names = channel_names(len(sums.mean))
    variance = np.diag(sums.covariance)
    active = variance > ACTIVE
    correlation, strongest, pair = _correlation(sums.covariance, active)
    bits = float(sums.kl.sum()) * sums.images / sums.pixels / math.log(2)
    noise = sums.posterior_deviation / np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    kingma = "Kingma & Welling 2013, arXiv:1312.6114, appendix B"
    burda = "Burda et al. 2016, arXiv:1509.00519, section 5.2"
    over = "over images and positions"
    wide = bool(variance.min() > 0 and variance.max() > WIDE * variance.min())
    numbers = (
        Number(
            name="kl", title="KL", value=float(sums.kl.sum()), unit="nats per image", source=kingma,
            definition="KL(q(z|x) || N(0, I)) of the posterior, summed over channels and positions, mean over images.",
        ),
        Number(
            name="rate", title="Rate", value=bits, unit="bits per pixel", source=kingma,
            definition="All KL over all pixels of the images (without padding), divided by ln 2.",
        ),
        Number(
            name="active_channels", title="Active channels", value=float(active.sum()), unit=f"of {len(names)}",
            source=burda,
            definition=f"Channels whose posterior mean has a variance above {ACTIVE:g} {over}.",
        ),
        Number(
            name="relative_noise", title="Posterior noise", source=kingma,
            value=float(np.mean(noise[active])) if active.any() else None, unit="standard deviations of the mean",
            missing="" if active.any() else "no channel is active",
            definition=f"Mean sigma of the posterior over the deviation of its mean {over}; mean over active channels.",
        ),
        Number(
            name="largest_correlation", title="Strongest correlation of two channels", value=strongest,
            missing="" if strongest is not None else "there are no two active channels",
            definition=f"Largest |Pearson correlation| between the posterior means of two active channels {over}.",
        ),
    )  # fmt: skip
    charts = (
        bars("kl_per_channel", "KL per channel", names, sums.kl, "nats per image", kingma,
             "KL(q(z|x) || N(0, I)), summed over positions, mean over images."),
        bars("variance_per_channel", "Variance of the posterior mean", names, variance, "", burda,
             f"Variance {over}; a channel is active above {ACTIVE:g}.", log=wide),
        bars("posterior_std_per_channel", "Posterior standard deviation", names, sums.posterior_deviation, "", kingma,
             f"Mean of sigma {over}, in units of the raw latent; 1 is the prior's."),
    )  # fmt: skip
    matrices = (
        _matrix("covariance", "Covariance of channels", names, sums.covariance,
                f"Of the posterior mean {over}, raw latents, divided by their number."),
        _matrix("correlation", "Correlation of channels", names, correlation,
                "The covariance over the product of the two deviations; 0 beside a channel that does not vary."),
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
    values: Array,
    unit: str,
    source: str,
    definition: str,
    *,
    log: bool = False,
) -> Chart:
    """One bar a channel; none where the value is not finite."""
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


def _matrix(name: str, title: str, names: tuple[str, ...], values: Array, definition: str) -> Matrix:
    rows = tuple(tuple(row) for row in values.tolist())
    return Matrix(name=name, title=title, definition=definition, rows=names, columns=names, values=rows)


def _correlation(covariance: Array, active: npt.NDArray[np.bool_]) -> tuple[Array, float | None, tuple[int, int]]:
    """The matrix, the largest |entry| of two active channels (None where there are no two), and its place. What is left
    of collapsed channels is often one and the same trace of the image, and no waste."""
    deviation = np.sqrt(np.diag(covariance))
    product = np.outer(deviation, deviation)
    correlation = np.divide(covariance, product, out=np.zeros_like(covariance), where=product > 0)
    if active.sum() < 2:
        return correlation, None, (0, 0)
    beside = np.abs(np.triu(correlation, k=1)) * np.outer(active, active)
    row, column = np.unravel_index(int(beside.argmax()), beside.shape)
    return correlation, float(beside[row, column]), (int(row), int(column))


def _collapse(active: npt.NDArray[np.bool_], variance: Array) -> Verdict:
    dead = [str(channel) for channel in np.flatnonzero(~active)]
    if not dead:
        statement = f"Every channel ({len(active)}) is active; the smallest variance of a mean is {variance.min():.3g}."
        return Verdict(name="collapsed_channels", level="good", statement=statement)
    return Verdict(
        name="collapsed_channels",
        level="bad" if len(dead) == len(active) else "warning",
        statement=f"Collapsed channels (variance of the mean at most {ACTIVE:g}), {len(dead)} of {len(active)}: "
        f"{', '.join(dead)}.",
        advice="Lower loss.rate.weight, raise loss.rate.warmup so that the decoder learns to use them first, or take "
        "fewer model.latent_channels: a dead channel is noise that a diffusion model must learn all the same.",
    )


def _redundancy(strongest: float | None, pair: tuple[int, int]) -> Verdict:
    if strongest is None:
        statement = "Fewer than two channels are active, so that none can repeat another."
        return Verdict(name="redundant_channels", level="unknown", statement=statement)
    statement = f"The most alike active channels, {pair[0]} and {pair[1]}, have a correlation of {strongest:.2f}."
    if strongest <= REDUNDANT:
        return Verdict(name="redundant_channels", level="good", statement=statement)
    return Verdict(
        name="redundant_channels",
        level="warning",
        statement=statement,
        advice="They say nearly the same. Train longer (steps), raise loss.rate.weight, which charges for every "
        "copy, or take fewer model.latent_channels.",
    )
