"""What validation measures of the family: bounds on the likelihood, rates, units in use; and a sheet of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

import ldm_vae.networks.measures
from ldm_vae.bottlenecks.gaussian import ACTIVE_VARIANCE
from ldm_vae.data.stream.batch import Batch
from ldm_vae.devices import in_float64
from ldm_vae.family.likelihoods.base import bits_per_dimension
from ldm_vae.family.networks.base import FamilyNetwork
from ldm_vae.images import to_pil
from ldm_vae.networks.network import Network
from ldm_vae.noise import SlotNoise

SAMPLES = 5  # of the posterior, for each image
SEED = 0  # of all draws here: each validation draws the same
ROWS = 4  # of samples from the prior, below images and reconstructions


class Measures(ldm_vae.networks.measures.Measures):
    """Measures of a network of the family. Each image's draws are a function of its place alone."""

    names = ("bound", "importance_bound", "bits_per_dimension", "rate", "active_units")
    model: FamilyNetwork

    def __init__(self, model: Network) -> None:
        if not isinstance(model, FamilyNetwork):
            raise TypeError(f"a network of kind {model.config.kind} is not one of the family")
        super().__init__(model)

    def sums(self, batch: Batch | None) -> dict[str, Tensor]:
        if batch is None:
            groups, units = self.model.bottleneck.groups(self.model.config.latent_channels), self.units
            sizes = {"rate": groups, "mean": units, "mean_square": units}
            zeros = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
            scalars = ("images", "bound", "importance_bound", "colour", "colour_square")
            return zeros | {name: torch.zeros((), dtype=torch.float64) for name in scalars}
        output = self.model(batch.image, noise=SlotNoise(SEED, 0, batch.slot), label=batch.label, samples=SAMPLES)
        likelihood = self._of_images(self.model.density.log_prob(output.parameters, output.target))
        closed, sampled = self._of_images(output.posterior.rate), self._of_images(output.posterior.sampled_rate)
        rates = in_float64(output.posterior.rates).unflatten(0, (-1, SAMPLES)).mean(dim=1)  # type: ignore[no-untyped-call]
        middle = in_float64(output.posterior.stats.get("mean", output.latent).flatten(1))[::SAMPLES]
        colour = in_float64(output.reconstruction.flatten(1).mean(dim=1))[::SAMPLES]
        return {
            "images": torch.tensor(float(len(batch)), dtype=torch.float64),
            "bound": (likelihood - closed).mean(dim=1).sum(),
            "importance_bound": ((likelihood - sampled).logsumexp(dim=1) - math.log(SAMPLES)).sum(),
            "rate": rates.sum(dim=0),
            "mean": middle.sum(dim=0),
            "mean_square": middle.square().sum(dim=0),
            "colour": colour.sum(),
            "colour_square": colour.square().sum(),
        }

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Values by name.

        bound, importance_bound: nats per image, of one sample and of several.   rate, rate_unit_i: nats per image.
        active_units: units whose posterior mean varies; active_channels_share: their share.
        reconstruction_spread: standard deviation over images of a reconstruction's mean colour, range [-1, 1].
        """
        images = sums["images"]
        means = {name: value / images for name, value in sums.items() if name != "images"}
        active = means["mean_square"] - means["mean"].square() > ACTIVE_VARIANCE
        spread = (means["colour_square"] - means["colour"].square()).clamp(min=0).sqrt()
        rates, values = means["rate"].tolist(), self.model.config.out_channels * self.model.config.side**2
        return {
            "bound": float(means["bound"]),
            "importance_bound": float(means["importance_bound"]),
            "bits_per_dimension": float(bits_per_dimension(-means["bound"], values, self.model.density.volume)),
            "rate": sum(rates),
            **{f"rate_unit_{i}": rate for i, rate in enumerate(rates)},
            "active_units": float(active.sum()),
            "active_channels_share": float(active.double().mean()),
            "reconstruction_spread": float(spread),
        }

    def picture(self, images: Sequence[Tensor]) -> Image.Image:
        """Images, their reconstructions from the mode, and samples from the prior, in rows."""
        originals = self.model.observe(torch.cat(list(images)))
        samples = torch.chunk(self.samples(ROWS * len(originals)), ROWS)
        rows = [originals, self.model(originals).reconstruction, *samples]
        lines = [torch.cat(list(row.clamp(-1, 1).float().cpu()), dim=2) for row in rows]
        return to_pil(torch.cat(lines, dim=1)[None])[0]

    def samples(self, count: int) -> Tensor:
        """(count, C, side, side): means of the pixels, of draws from the prior."""
        like = torch.zeros(count, self.model.config.latent_channels, 1, 1, device=_device(self.model))
        z = self.model.bottleneck.sample(like, SlotNoise(SEED, 0, range(count)))
        return self.model.likelihood.mean(self.model.run_decoder(z.to(self.model.dtype)).parameters)

    @property
    def units(self) -> int:
        return self.model.config.latent_channels

    @staticmethod
    def _of_images(rows: Tensor) -> Tensor:
        """(B * SAMPLES,) -> (B, SAMPLES), in float64."""
        return in_float64(rows).view(-1, SAMPLES)


def _device(model: Network) -> torch.device:
    return next(model.parameters()).device
