"""Validation while training: held-out images through the averaged weights, on all ranks, each image once."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field
from torch import Tensor

from ldm_vae.atomic import atomic_file
from ldm_vae.bottlenecks.base import Latent
from ldm_vae.bottlenecks.gaussian import ACTIVE_VARIANCE
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import UsualMetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import Index, load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import DataConfig, ValidationBatches, validation_batches
from ldm_vae.devices import home_of_float64, in_float64
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import measure_batches
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.networks.measures import Measures
from ldm_vae.networks.network import Network
from ldm_vae.parts import NETWORKS
from ldm_vae.progress import ProgressMeter
from ldm_vae.recipe import Config
from ldm_vae.transfer import Courier
from train.pictures import Shown, draw_sheet, reconstruct
from train.preempt import Preemption
from train.sums import sum_over_ranks

logger = logging.getLogger(__name__)


class ValidationConfig(Config):
    """Validation while training, on the images of data.validation and with the averaged weights."""

    every: Annotated[int, Field(gt=0)] = 1000
    """Optimizer steps between two validations; the last step is always validated."""

    batch: Annotated[int, Field(gt=0)] = 8
    """Images per forward pass on each rank, all of one size."""

    resize: Annotated[int, Field(gt=0)] | None = None
    """Short side of the images in pixels; null leaves them as they are."""

    crop: Annotated[int, Field(gt=0)] | None = None
    """Side in pixels of the square cut from the middle; null cuts nothing."""

    metrics: tuple[UsualMetricName, ...] = ("psnr", "ssim", "lpips_vgg")
    """What is measured between image and reconstruction, beside the rate."""

    pictures: Annotated[int, Field(ge=0)] = 4
    """Number of images, the first ones, that are shown in samples/, original beside reconstruction."""


class ObservedCodec:
    """A codec that also sums up the rates and statistics of all latents and reconstructions that pass through it.

    Validation measures images by `measure`, as evaluation does. `measure` sees no latents, so the codec sums them up.
    """

    def __init__(self, codec: LatentCodec) -> None:
        self.codec, self.device = codec, codec.device
        home = home_of_float64(codec.device)
        self.bottleneck = copy.deepcopy(codec.model.bottleneck).to(home).double()
        channels, colours = codec.latent_channels, codec.model.config.out_channels
        zeros = {
            "rate": codec.model.bottleneck.groups(channels),
            "mean": channels,
            "mean_square": channels,
            "colour": colours,
            "colour_square": colours,
        }
        self.sums = {name: torch.zeros(size, dtype=torch.float64) for name, size in zeros.items()}
        self.sums |= {name: torch.zeros(1, dtype=torch.float64) for name in ("images", "positions")}

    def encode(self, images: Tensor) -> Tensor:
        self.seen: dict[str, Tensor] = {}
        moments = self.codec.moments(images)
        self.latent: Latent = self.bottleneck(in_float64(moments))
        return self.latent.z.to(moments)

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Decodes the latents of the last call of `encode`, all of them.

        Only then are they seen, because a batch that cannot be decoded is encoded again in part.
        """
        images = self.codec.decode(latents, size=size)
        mode, nats = self.latent.z, self.latent.nats
        colour = in_float64(images).mean(dim=(2, 3))
        self.seen = {
            "rate": nats.sum(dim=[0, *range(2, nats.ndim)]),
            "mean": mode.sum(dim=(0, 2, 3)),
            "mean_square": mode.square().sum(dim=(0, 2, 3)),
            "colour": colour.sum(dim=0),
            "colour_square": colour.square().sum(dim=0),
            "images": torch.tensor([float(len(mode))], dtype=torch.float64),
            "positions": torch.tensor([float(mode[:, 0].numel())], dtype=torch.float64),
        }
        return images

    def of_batch(self) -> dict[str, Tensor]:
        return self.seen

    def add(self, sums: Mapping[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] += value

    def summary(self, accelerator: Accelerator) -> dict[str, float]:
        """Values over the images of all ranks; of no image there is only their number. All ranks must call.

        rate: nats per image.
        active_channels_share: share of the latent channels that carry information.
        reconstruction_spread: standard deviation over images of a reconstruction's mean colour, range [-1, 1].
        """
        home = home_of_float64(self.device)  # where processes exchange float64
        sums = {name: sum_over_ranks(accelerator, value.to(home)).cpu() for name, value in self.sums.items()}
        images, positions = sums["images"], sums["positions"]
        if not images:
            return {"images": 0.0}
        variance = sums["mean_square"] / positions - (sums["mean"] / positions).square()
        spread = (sums["colour_square"] / images - (sums["colour"] / images).square()).clamp(min=0).mean().sqrt()
        per_channel = (sums["rate"] / images).tolist()
        return {
            "images": float(images),
            "rate": sum(per_channel),
            **{f"rate_channel_{i}": value for i, value in enumerate(per_channel)},
            "active_channels_share": float((variance > ACTIVE_VARIANCE).double().mean()),
            "reconstruction_spread": float(spread),
        }


class HeldOut(NamedTuple):
    """The images of a validation.

    batches: (images per batch, rank, ranks) -> that rank's part of the images, beginning with the first.
    images: their number on all ranks.
    """

    batches: Callable[[int, int, int], ValidationBatches]
    images: int


class Validation(ABC):
    """Measures held-out images at a step, and writes a picture of the first ones.

    names: what is shown of a validation, in this order.
    """

    names: Sequence[str]

    def __init__(self, config: ValidationConfig, held_out: HeldOut, folder: Path, accelerator: Accelerator) -> None:
        self.config, self.held_out = config, held_out
        self.folder, self.accelerator = folder, accelerator
        self.example = ""  # an image of this rank that the last validation has left out, and why
        self.fixed: list[Tensor] = []  # the images that are shown
        self.shown: list[Shown] = []  # what a codec has made of them in the last validation
        if accelerator.is_main_process and config.pictures:
            alone = held_out.batches(1, 0, 1)
            self.fixed = [batch.image for batch in islice(alone, config.pictures)]
            alone.close()
            if not self.fixed:
                first = alone.faults[0]
                raise UserError(
                    f"no validation image can be used, such as {first.url} {first.key} ({first.reason})",
                    "mend data.validation and validation.crop, or set data.validation=null",
                )

    def __call__(self, model: Network, taken: int, preemption: Preemption) -> dict[str, float]:
        """Means over the images of all ranks, by "validation/name". Raises Interrupted where a rank got a signal."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.held_out.batches(self.config.batch, rank, world)
        with ProgressMeter("image", f"validation {taken}") as progress:
            row = self.measure(
                model, _counted(preemption.together(batches), len(range(rank, self.held_out.images, world)), progress)
            )
        self.example = next((f"{fault.url} {fault.key}: {fault.reason}" for fault in batches.faults), "")
        left_out = torch.tensor(len(batches.faults), device=self.accelerator.device)
        row["left_out"] = int(self.accelerator.reduce(left_out, "sum"))  # broken images
        if self.fixed:
            picture = self.draw(model)
            with atomic_file(self.folder / self.picture(taken)) as path:
                picture.save(path)
        return {f"validation/{name}": value for name, value in row.items()}

    @abstractmethod
    def measure(self, model: Network, batches: Iterable[Batch]) -> dict[str, float]:
        """Values over the images of all ranks by name; all ranks must call.

        batches: those of this rank.
        """

    @abstractmethod
    def draw(self, model: Network) -> Image.Image:
        """A picture of what the network makes of `fixed`."""

    def picture(self, taken: int) -> str:
        """Where the picture of a validation lies in the run folder; empty where there is none."""
        return f"samples/step_{taken:08d}.png" if self.fixed else ""


class CodecValidation(Validation):
    """Measures a codec: distances between images and reconstructions, and its latents."""

    def __init__(self, config: ValidationConfig, held_out: HeldOut, folder: Path, accelerator: Accelerator) -> None:
        super().__init__(config, held_out, folder, accelerator)
        self.names = config.metrics
        self.metrics = ImageMetrics(config.metrics, accelerator.device)

    def measure(self, model: Network, batches: Iterable[Batch]) -> dict[str, float]:
        codec = ObservedCodec(LatentCodec(model, LatentScale()))
        rows = measure_batches(codec, batches, self.metrics, observer=codec)
        return self._means(rows) | codec.summary(self.accelerator)

    def draw(self, model: Network) -> Image.Image:
        codec = LatentCodec(model, LatentScale())
        self.shown = [reconstruct(codec, image) for image in self.fixed]
        return draw_sheet(self.shown)

    def _means(self, rows: Sequence[MeasuredImage]) -> dict[str, float]:
        """Means over the images that have a value; a metric that no image has is left out."""
        names = self.config.metrics
        local = [
            [sum(row.values.get(name, 0.0) for row in rows), sum(name in row.values for row in rows)] for name in names
        ]
        sums = torch.tensor(local, dtype=torch.float64, device=home_of_float64(self.accelerator.device))
        totals = sum_over_ranks(self.accelerator, sums).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}


class KindValidation(Validation):
    """Measures a network that is no codec, by what its kind says."""

    def __init__(
        self,
        config: ValidationConfig,
        held_out: HeldOut,
        folder: Path,
        accelerator: Accelerator,
        measures: type[Measures],
    ) -> None:
        super().__init__(config, held_out, folder, accelerator)
        self.names, self.measures = measures.names, measures

    @torch.no_grad()
    def measure(self, model: Network, batches: Iterable[Batch]) -> dict[str, float]:
        measures, device = self.measures(model), self.accelerator.device
        courier, sums = Courier(device), measures.sums(None)
        for batch in batches:
            for name, value in measures.sums(batch.by(courier, model.dtype)).items():
                sums[name] = sums[name] + value
        home = home_of_float64(device)  # where processes exchange float64
        sums = {name: sum_over_ranks(self.accelerator, value.to(home)).cpu() for name, value in sums.items()}
        images = float(sums["images"])
        return {"images": images, **(measures.summary(sums) if images else {})}

    @torch.no_grad()
    def draw(self, model: Network) -> Image.Image:
        return self.measures(model).picture([image.to(self.accelerator.device, model.dtype) for image in self.fixed])


def _counted(batches: Iterable[Batch], total: int, progress: ProgressMeter) -> Iterator[Batch]:
    """The batches; each is counted once the next one is asked for."""
    progress.advance(0, total)
    for batch in batches:
        yield batch
        progress.advance(len(batch.key), total)


def validation_data(config: ValidationConfig, data: DataConfig, index: Index) -> DataConfig:
    """How held-out images are read: whole, or cropped at the centre. A broken image is left out, on any rank."""
    image = ImageConfig(channels=data.image.channels, resize=config.resize, crop=config.crop, crop_mode="center")
    return data.model_copy(update={"image": image, "broken_budget": index.samples})


def build_validation(
    config: ValidationConfig, data: DataConfig, folder: Path, accelerator: Accelerator, model: Network
) -> Validation | None:
    """The validation of a recipe; None where it names no shards, and where nothing is measured of the network."""
    shards, measures = data.validation, NETWORKS.measures_of(model.config)
    if shards is None:
        return None
    if measures is None and not model.codec:
        if accelerator.is_main_process:
            logger.warning("not validated, because a network of kind %s is no codec of images", model.config.kind)
        return None
    index = load_index(shards, cache=folder / "index")
    data = validation_data(config, data, index)

    def batches(batch: int, rank: int, world: int) -> ValidationBatches:
        return validation_batches(data, index, batch=batch, rank=rank, world=world)

    if measures is None:
        return CodecValidation(config, HeldOut(batches, index.samples), folder, accelerator)
    return KindValidation(config, HeldOut(batches, index.samples), folder, accelerator, measures)
