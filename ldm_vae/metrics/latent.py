"""Mean and standard deviation of latents, summed image by image in float64, and the file that keeps them.

The numbers do not depend on how images are batched, and those of several processes can be merged: Chan, Golub &
LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, FiniteFloat, model_validator
from torch import Tensor

from ldm_vae.atomic import atomic_file
from ldm_vae.bottlenecks.scale import SMALLEST, LatentScale
from ldm_vae.choices import ScaleKind
from ldm_vae.documents import read_json
from ldm_vae.errors import UserError
from ldm_vae.passwords import without_secrets
from ldm_vae.recipe import Config, Positive, validate

NotNegative = Annotated[FiniteFloat, Field(ge=0)]


class StoredMoments(Config):
    """What `LatentMoments.state` gives."""

    images: Annotated[int, Field(ge=0)]
    values: Annotated[int, Field(ge=0)]
    mean: tuple[FiniteFloat, ...]
    square: tuple[NotNegative, ...]


class LatentMoments:
    """Count, mean and sum of squared deviations of every channel, over all images and positions."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.values = 0  # per channel
        self.mean: npt.NDArray[np.float64] = np.zeros(channels)
        self.square: npt.NDArray[np.float64] = np.zeros(channels)  # sum of squared deviations from the mean

    def update(self, latents: Tensor) -> None:
        """Adds a batch.

        latents: (B, C, h, w), finite.
        """
        means, squares = self.of_each(latents)
        self.add_each(means.cpu(), squares.cpu(), latents.shape[2] * latents.shape[3])

    @staticmethod
    def of_each(latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> means and sums of squared deviations from them, of each image: (B, C), float64."""
        flat = latents.detach().double().flatten(2)  # (B, C, h*w)
        means = flat.mean(dim=2)
        return means, (flat - means[:, :, None]).square().sum(dim=2)

    def add_each(self, means: Tensor, squares: Tensor, values: int) -> None:
        """Adds what `of_each` gave of a batch, on the host.

        values: in each channel of an image.
        """
        for mean, square in zip(means.numpy(), squares.numpy(), strict=True):
            self._add(1, values, mean, square)

    def merge(self, other: LatentMoments) -> None:
        """Adds the sums of another process, or of another shard."""
        self._add(other.images, other.values, other.mean, other.square)

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """(C,) The standard deviation of each channel, of the population (numpy's default)."""
        return np.sqrt(self.square / max(self.values, 1))

    @property
    def total_mean(self) -> float:
        """The mean over all channels."""
        return float(self.mean.mean())

    @property
    def total_std(self) -> float:
        """The standard deviation over all channels, around `total_mean`."""
        between = np.square(self.mean - self.total_mean)
        return float(np.sqrt((self.square / max(self.values, 1) + between).mean()))

    def state(self) -> StoredMoments:
        """The sums; `from_state` restores them to the last bit."""
        mean, square = tuple(self.mean.tolist()), tuple(self.square.tolist())
        return StoredMoments(images=self.images, values=self.values, mean=mean, square=square)

    @staticmethod
    def from_state(state: StoredMoments) -> LatentMoments:
        moments = LatentMoments(len(state.mean))
        moments._add(state.images, state.values, np.asarray(state.mean), np.asarray(state.square))
        return moments

    def _add(self, images: int, values: int, mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64]) -> None:
        if not values:
            return
        total = self.values + values
        delta = mean - self.mean
        self.mean = self.mean + delta * (values / total)
        self.square = self.square + square + np.square(delta) * (self.values * values / total)
        self.values = total
        self.images += images


class Activation(Config):
    """The largest |value| that any layer gave, for the question whether float16 would overflow (beyond 65504)."""

    largest: NotNegative
    """The largest |value| in any layer of encoder and decoder, in float32."""

    layer: str
    """Name of the layer that gave it."""

    images: int
    """Number of images that were looked at."""


class LatentStatistics(Config):
    """What `ldm-vae stats` writes, and export reads."""

    format: Literal["ldm_vae.latent_statistics"] = "ldm_vae.latent_statistics"

    version: Literal[1] = 1

    codec: str
    """sha256 of the weights that gave the latents."""

    latents: Literal["mode", "sample"]
    """What of the posterior was measured."""

    protocol: dict[str, Any]
    """How images were prepared: resize, crop, padding, precision."""

    data: Annotated[str, AfterValidator(without_secrets)]
    """The shards that were read."""

    images: Positive

    values: Positive
    """Values per channel, over all images and positions."""

    mean: FiniteFloat
    """Mean over all channels."""

    std: NotNegative
    """Standard deviation over all channels."""

    channel_mean: tuple[FiniteFloat, ...]

    channel_std: tuple[NotNegative, ...]

    activation: Activation | None = None

    @model_validator(mode="after")
    def _check_channels(self) -> LatentStatistics:
        if not self.channel_mean or len(self.channel_mean) != len(self.channel_std):
            raise ValueError("channel_mean and channel_std need a number for each channel")
        return self

    @staticmethod
    def of(moments: LatentMoments, **rest: Any) -> LatentStatistics:
        """The statistics of `moments`.

        rest: the fields that do not follow from them.
        """
        return LatentStatistics(
            images=moments.images,
            values=moments.values,
            mean=moments.total_mean,
            std=moments.total_std,
            channel_mean=tuple(moments.mean.tolist()),
            channel_std=tuple(moments.std.tolist()),
            **rest,
        )

    def scale(self, kind: ScaleKind) -> LatentScale:
        """The scale to unit variance: over all channels ("factor"), with zero mean too ("shift"), or per channel."""
        if min(self.std, *self.channel_std) < SMALLEST:
            raise UserError("the measured latents do not vary", "the codec has collapsed; train it differently")
        scale = LatentScale(1.0 / self.std, shift=self.mean if kind == "shift" else None)
        if kind == "channel":
            scale = LatentScale(1.0, mean=self.channel_mean, std=self.channel_std)
        if (problem := scale.problem(len(self.channel_mean))) is not None:
            raise UserError(f"the measured latents give no scale: {problem}", "measure again with `ldm-vae stats`")
        return scale

    def write(self, path: Path) -> None:
        with atomic_file(path) as stage:
            stage.write_text(self.to_text())

    def to_text(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    @staticmethod
    def read(path: Path) -> LatentStatistics:
        """Reads such a file. Raises UserError if it is missing, or something else."""
        remedy = "make it with `ldm-vae stats MODEL SHARDS --json FILE`"
        try:
            return validate(LatentStatistics, read_json(path, remedy), str(path))
        except FileNotFoundError:
            raise UserError(f"statistics {path} cannot be read", remedy) from None
