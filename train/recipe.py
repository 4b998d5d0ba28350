"""The recipe of a run. It has a section for each part; a section is declared beside the code that it configures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from ldm_vae.choices import FORMER_PRECISIONS
from ldm_vae.data.stream.reader import DataConfig
from ldm_vae.devices import has_bfloat16, local_device
from ldm_vae.losses.adversarial import DiscriminatorConfig
from ldm_vae.losses.adversary import AdversaryConfig
from ldm_vae.losses.objective import LossConfig
from ldm_vae.losses.perceptual import SMALLEST_IMAGE
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.networks.network import NetworkConfig
from ldm_vae.parts import ADVERSARIES, NETWORKS
from ldm_vae.recipe import Config
from train.checkpoint import CheckpointConfig
from train.ema import EmaConfig
from train.log import LogConfig
from train.optimizer import OptimizerConfig
from train.validate import ValidationConfig


class ModelConfig(NetworkConfig):
    """The autoencoder: its architecture, the weights it starts from, and which of them are trained."""

    init_from: str | None = None
    """Run, checkpoint, exported folder or Hub id whose weights and architecture to start from; null starts anew."""

    initialisation: Literal["default", "average"] = "default"
    """First weights of a new autoencoder. default: PyTorch's. average: those of a codec that averages f x f pixels
    (train/initialise.py)."""

    train: str = "all"
    """Which weights are trained: all, or a part that the kind of network names. decoder: encoder and quant_conv stay
    bit-unchanged, so old latents stay valid."""


MODELS = NETWORKS.with_base(ModelConfig)


def _default_model() -> ModelConfig:
    model = MODELS.config(MODELS.default)()
    assert isinstance(model, ModelConfig)
    return model


class Recipe(Config):
    """The run as a whole."""

    output: Annotated[str, Field(min_length=1)]
    """Run folder; it is made where missing."""

    steps: Annotated[int, Field(gt=0)]
    """Optimizer steps of the autoencoder."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of first weights, order of the images, crops and noise."""

    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Arithmetic of the networks; weights stay float32. auto: bfloat16 on a GPU that has it, else float32. float64:
    everything, weights too. The former words no (float32) and bf16 are read as well."""

    norms: Literal["autocast", "bfloat16"] = "autocast"
    """With `precision: bfloat16`, the type that group norms read and write; statistics are float32 in both. autocast:
    what PyTorch chooses, on CUDA float32. bfloat16: takes a third less memory there (configs/RESULTS.md)."""

    tf32: bool = True
    """Whether a GPU may round the factors of float32 convolutions to TF32, 10 bits of 23, as PyTorch does by itself. It
    is true because the noise of the gradients is far larger, LPIPS stays in float32 beside bfloat16, and exact products
    take several times as long. Validation and a CPU are exact always."""

    deterministic: bool = False
    """Whether a run on a GPU repeats itself bit for bit, on one kind of card, one number of processes, and the same
    versions. PyTorch and cuDNN then take algorithms that add in one order, which are slower, and an operation without
    one ends the run with a line. A run on a CPU repeats itself anyway, on one processor and number of threads."""

    cudnn_benchmark: bool = False
    """Whether cuDNN times its kernels in the first steps, and takes the fastest. It pays where all images have one size
    (data.image.crop). Another start may choose others, so that the last digits differ; deterministic excludes it."""

    model: Annotated[SerializeAsAny[ModelConfig], MODELS] = Field(default_factory=_default_model)
    """The autoencoder."""

    data: DataConfig
    """The images."""

    loss: LossConfig = LossConfig()
    """What the autoencoder minimises beside the adversarial loss."""

    discriminator: Annotated[SerializeAsAny[AdversaryConfig] | None, ADVERSARIES] = DiscriminatorConfig()
    """The adversarial loss and its discriminator; null: no adversarial loss."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """How weights are updated."""

    ema: EmaConfig = EmaConfig()
    """The averaged weights, which are validated and exported."""

    compile: bool = False
    """Compiles encoder, decoder, discriminator and LPIPS with torch.compile: minutes before the first step, faster
    steps, sums in another order. Needs a C++ compiler, or Triton for a GPU. A run that goes on may change it."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved, and what is kept."""

    validation: ValidationConfig = ValidationConfig()
    """What is measured on held-out images, and when."""

    log: LogConfig = LogConfig()
    """What is logged, and when."""

    @field_validator("precision", mode="before")
    @classmethod
    def _in_words_of_today(cls, value: Any) -> Any:
        if value in ("fp16", "float16"):
            raise ValueError(
                f"{value} is refused, because two losses share one gradient scaler and it overflows in silence; "
                "use bfloat16"
            )
        return FORMER_PRECISIONS.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_fields_together(self) -> Recipe:
        model, image = self.model, self.data.image
        if self.norms == "bfloat16" and self.precision in ("float32", "float64"):
            raise ValueError(f"norms: bfloat16 is for precision: bfloat16 or auto, not {self.precision}")
        if self.deterministic and self.cudnn_benchmark:
            raise ValueError("deterministic and cudnn_benchmark exclude each other: keep one of them")
        if model.train not in ("all", *model.train_parts):
            known = ", ".join(("all", *model.train_parts))
            raise ValueError(f"model.train {model.train!r}: a network of kind {model.kind} knows {known}")
        if model.init_from is None and model.train != "all":
            raise ValueError(f"model.train: {model.train} needs model.init_from, whose other parts it keeps")
        controlled = self.loss.rate.capacity is not None or self.loss.rate.free_nats > 0
        if model.train == "decoder" and controlled:
            raise ValueError("loss.rate.capacity and free_nats steer the encoder, which model.train: decoder keeps")
        if model.init_from is None and model.in_channels != model.out_channels:
            raise ValueError(
                "model.in_channels and model.out_channels must be equal, since the image is its own target"
            )
        if model.init_from is None and image.channels != model.in_channels:
            raise ValueError(
                f"data.image.channels is {image.channels} and model.in_channels is {model.in_channels}: make them equal"
            )
        if image.crop is not None and model.init_from is None and image.crop % model.factor:
            raise ValueError(f"data.image.crop {image.crop} must be a multiple of f = {model.factor}")
        if model.init_from is not None and model.initialisation != "default":
            raise ValueError("model.initialisation and model.init_from exclude each other: keep one of them")
        perceptual = self.loss.perceptual
        without_perceptual = perceptual.weight == 0 or perceptual.channels == "off"
        if self.loss.pixel.weight == self.loss.likelihood.weight == 0 and without_perceptual:
            raise ValueError(
                "loss.pixel, loss.perceptual and loss.likelihood are off: nothing asks for a reconstruction"
            )
        if self.loss.likelihood.weight > 0 and not hasattr(model, "likelihood"):
            raise ValueError(f"loss.likelihood: the decoder of kind {model.kind} gives a picture and no distribution")
        if self.loss.bound == "iwae":
            self._check_importance_weights(without_perceptual=without_perceptual)
        if (side := image.crop or image.resize) is not None:  # else images come in their own sizes
            self._check_image_size(side)
        if self.optimizer.weight_decay and self.optimizer.kind == "adam":
            raise ValueError("optimizer.weight_decay is for kind: adamw")
        if self.checkpoint.best is not None:
            self._check_best_metric(self.checkpoint.best)
        if self.discriminator is not None and self.discriminator.sees_batches and self.optimizer.accumulation > 1:
            raise ValueError(
                "discriminator.norm: batch sees micro-batches, not the batch, under accumulation; use group"
            )
        return self

    def _check_importance_weights(self, *, without_perceptual: bool) -> None:
        """Refuses losses of which importance weights make no bound."""
        loss = self.loss
        weights = loss.likelihood.weight, loss.rate.weight, loss.rate.warmup, loss.pixel.weight
        controlled = loss.rate.capacity is not None or loss.rate.free_nats > 0
        others = controlled or not without_perceptual or self.discriminator is not None
        if weights != (1.0, 1.0, 0, 0.0) or others:
            raise ValueError(
                "loss.bound: iwae needs loss.likelihood and loss.rate of weight 1 without warm-up, capacity and free "
                "nats, no loss.pixel, no loss.perceptual and no discriminator"
            )

    def _check_image_size(self, side: int) -> None:
        """Refuses images that are too small for LPIPS or the discriminator.

        side: pixels along the shorter side.
        """
        perceptual, discriminator = self.loss.perceptual, self.discriminator
        if perceptual.weight > 0 and perceptual.channels != "off" and side < SMALLEST_IMAGE[perceptual.network]:
            raise ValueError(
                f"images of {side} pixels are too small for LPIPS: "
                f"use at least {SMALLEST_IMAGE[perceptual.network]}, or loss.perceptual.channels: off"
            )
        if discriminator is not None and side < discriminator.smallest_image:
            raise ValueError(
                f"images of {side} pixels are too small for the discriminator: "
                f"use at least {discriminator.smallest_image}, or fewer discriminator.layers"
            )

    def _check_best_metric(self, best: str) -> None:
        """Refuses a metric that is never measured at a step that is saved: it would silently keep no checkpoint."""
        known = [f"validation/{name}" for name in (*self.validation.metrics, "rate")]
        if best not in known or self.data.validation is None:
            given = "there is no data.validation" if self.data.validation is None else f"known are {', '.join(known)}"
            raise ValueError(f"checkpoint.best {best!r} is not measured: {given}")
        mode = "max" if describe_metric(best.removeprefix("validation/")).better == "higher" else "min"
        if self.checkpoint.mode != mode:
            raise ValueError(f"checkpoint.mode {self.checkpoint.mode} would keep the worst {best}: write {mode}")
        saved, validated = self.checkpoint.every, self.validation.every
        if saved % validated and validated % saved:
            raise ValueError(
                f"checkpoint.best compares checkpoints that are validated: make one of checkpoint.every {saved} and "
                f"validation.every {validated} a multiple of the other"
            )


def resolve_precision(recipe: Recipe) -> Recipe:
    """The recipe with `precision: auto` replaced by the precision for this machine."""
    if recipe.precision != "auto":
        return recipe
    half = has_bfloat16(torch.device(local_device()))
    return recipe.model_copy(update={"precision": "bfloat16" if half else "float32"})
