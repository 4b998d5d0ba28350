"""The diagonal Gaussian bottleneck of a KL autoencoder."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator
from torch import Tensor

from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.noise import Noise
from ldm_vae.precision import at_least_float32, without_autocast

# A channel is active where its posterior mean varies over the data by more than this variance.
# Source: Burda et al. 2016, arXiv:1509.00519, section 5.2.
ACTIVE_VARIANCE = 1e-2


class GaussianConfig(BottleneckConfig):
    """A posterior that is a diagonal Gaussian: the encoder gives its mean and log-variance."""

    kind: Literal["gaussian"] = "gaussian"
    """The kind of bottleneck."""

    logvar_range: tuple[float, float] = (-30.0, 20.0)
    """[low, high], natural logarithm: the log-variance is clamped to it, as in CompVis and diffusers."""

    @model_validator(mode="after")
    def _check_range(self) -> GaussianConfig:
        if self.logvar_range[0] >= self.logvar_range[1]:
            raise ValueError("give logvar_range as [low, high] with low < high")
        return self


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, e^logvar) || N(0, I)), element by element.

    mean, logvar: tensors of one shape.
    Returns nats in that shape; their sum over (C, h, w) is nats per image.
    Source: Kingma & Welling 2013, arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)


def gaussian_log_ratio(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mean, e^logvar) - log N(z; 0, I), element by element, in nats."""
    return 0.5 * (z.square() - (z - mean).square() * (-logvar).exp() - logvar)


class DiagonalGaussian(Bottleneck):
    """(B, 2C, h, w) moments and noise -> Latent. Computed in at least float32, whatever the networks run in."""

    width = 2
    gaussian = True
    random = True
    logvar_range: tuple[float, float]

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.logvar_range = config.logvar_range

    def groups(self, latent_channels: int) -> int:
        return latent_channels

    def forward(self, hidden: Tensor, noise: Noise | None = None) -> Latent:
        """The latent.

        hidden: (B, 2C, h, w), mean and log-variance.
        noise: draws the sample; None takes the mode.
        """
        with without_autocast(hidden.device):
            mean, logvar = at_least_float32(hidden).chunk(2, dim=1)
            logvar = logvar.clamp(*self.logvar_range)
            z = mean if noise is None else mean + (0.5 * logvar).exp() * noise.normal("noise", mean)
            nats = gaussian_kl(mean, logvar)
        stats = {"mean": mean, "logvar": logvar}
        return Latent(z, nats, stats, sampled=lambda: gaussian_log_ratio(z, mean, logvar))

    def sample(self, like: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Draws from N(0, I)."""
        return temperature * noise.normal("prior", like)
