"""A recipe -> the parts of a run, prepared by accelerate."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.load import load_model
from ldm_vae.losses.objective import build_objective
from ldm_vae.losses.perceptual import LPIPS, perceptual_channels
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.nn.discriminators.patch import PatchDiscriminator
from ldm_vae.recipe import validate
from train.ema import Ema
from train.guard import Guard
from train.initialise import initialise_average
from train.optimizer import Update, build_update
from train.recipe import Recipe, resolve_precision
from train.state import Run

REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def build_accelerator(recipe: Recipe) -> Accelerator:
    """One process or data parallelism, in the recipe's precision. Raises UserError for what cannot be right."""
    for variable, name in REFUSED.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"{name} is not supported",
                "it shards one model and this trains two: launch with plain data parallelism (DDP)",
            )
    for tracker in recipe.log.trackers:
        if find_spec(tracker) is None:
            raise UserError(f"log.trackers: {tracker} is not installed", f'pip install "ldm-vae[{tracker}]"')
    half = resolve_precision(recipe).precision == "bf16"
    accelerator = Accelerator(
        mixed_precision="bf16" if half else "no", log_with=list(recipe.log.trackers) or None, project_dir=recipe.output
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE is {world} and accelerate sees {accelerator.num_processes} process(es)",
            "on CPU, launch with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N",
        )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise UserError(f"{accelerator.distributed_type} is not supported", "launch with data parallelism (DDP)")
    if world > 1 and recipe.discriminator is not None and recipe.discriminator.norm == "batch":
        raise UserError(
            "discriminator.norm: batch sees one process's images, not the batch", "use group on several processes"
        )
    return accelerator


def build_autoencoder(recipe: Recipe, checkpoint: Checkpoint | None = None) -> tuple[Autoencoder, Recipe]:
    """The autoencoder with its first weights, and the recipe with the architecture of `init_from` filled in.

    checkpoint: of the run that goes on; it holds all weights, and `init_from` may be gone by then.
    """
    torch.manual_seed(recipe.seed)
    learned_variance = recipe.loss.pixel.learned_variance
    if recipe.model.init_from is None:
        model = Autoencoder(_architecture(recipe), learned_variance=learned_variance)
        if recipe.model.initialisation == "average":
            initialise_average(model)
        return model, recipe
    source = load_model(recipe.model.init_from).model if checkpoint is None else None
    config = source.config if source is not None else _architecture_of(checkpoint)
    taken = config.model_dump()
    for name in recipe.model.model_fields_set & taken.keys() - {"gradient_checkpointing"}:
        if getattr(recipe.model, name) != getattr(config, name):
            raise UserError(
                f"model.{name} differs from that of {recipe.model.init_from} ({getattr(config, name)})",
                "leave the architecture out of a recipe with model.init_from",
            )
    changes = {"gradient_checkpointing": recipe.model.gradient_checkpointing, "bottleneck": config.bottleneck}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=taken | changes)})
    _check_channels(recipe)
    model = Autoencoder(_architecture(recipe), learned_variance=learned_variance)
    if source is not None:
        model.load_state_dict(source.exported_state(), strict=not learned_variance)
    if recipe.model.train == "decoder":
        model.encoder.requires_grad_(False)
        if model.quant_conv is not None:
            model.quant_conv.requires_grad_(False)
    return model, recipe


def build_run(recipe: Recipe, accelerator: Accelerator, autoencoder: Autoencoder) -> Run:
    """Networks, objective, updates and guard, on the accelerator's device."""
    autoencoder = autoencoder.to(accelerator.device)
    torch.manual_seed(recipe.seed)
    discriminator: nn.Module = nn.Identity()  # never called where there is no adversarial loss
    if recipe.discriminator is not None:
        config = recipe.discriminator
        discriminator = PatchDiscriminator(
            recipe.model.out_channels, channels=config.channels, layers=config.layers, norm=config.norm
        ).to(accelerator.device)
    lpips = build_lpips(recipe)
    if lpips is not None:
        lpips = lpips.to(accelerator.device)
    if recipe.precision == "float64":
        for module in (autoencoder, discriminator, *([lpips] if lpips is not None else [])):
            module.double()

    ema = Ema(autoencoder, recipe.ema)
    updates = {"model": _update(autoencoder, recipe, recipe.optimizer.lr)}
    model = accelerator.prepare_model(autoencoder)
    if recipe.discriminator is not None:
        lr = recipe.optimizer.discriminator_lr or recipe.optimizer.lr
        updates["discriminator"] = _update(discriminator, recipe, lr)
        discriminator = accelerator.prepare_model(discriminator)

    def mean_over_ranks(value: Tensor) -> Tensor:
        reduced: Tensor = accelerator.reduce(value, reduction="mean")
        return reduced

    objective = build_objective(
        recipe.loss, recipe.discriminator, lpips, autoencoder.decoder.conv_out.weight.shape, mean_over_ranks
    )
    guard = Guard([autoencoder, discriminator], accelerator.device, recipe.optimizer.patience, recipe.log.every)
    return Run(accelerator, autoencoder, model, discriminator, objective, updates, ema, guard, recipe.seed)


def build_lpips(recipe: Recipe) -> LPIPS | None:
    """The perceptual network, or None where there is no use for it. Its weights are fetched where not cached."""
    config = recipe.loss.perceptual
    channels = perceptual_channels(config, recipe.model.out_channels) if config.weight > 0 else None
    return None if channels is None else LPIPS(config.network, channels=channels, backbone=config.backbone)


def _update(module: nn.Module, recipe: Recipe, lr: float) -> Update:
    return build_update(module, recipe.optimizer, lr, recipe.steps)


def _architecture(recipe: Recipe) -> AutoencoderConfig:
    return AutoencoderConfig(**{name: getattr(recipe.model, name) for name in AutoencoderConfig.model_fields})


def _architecture_of(checkpoint: Checkpoint | None) -> AutoencoderConfig:
    assert checkpoint is not None  # else there was a source
    return validate(AutoencoderConfig, checkpoint.meta["model"], str(checkpoint.folder))


def _check_channels(recipe: Recipe) -> None:
    model = recipe.model
    if not model.in_channels == model.out_channels == recipe.data.image.channels:
        raise UserError(
            f"{model.init_from} maps {model.in_channels} to {model.out_channels} channels and data.image.channels is "
            f"{recipe.data.image.channels}",
            "make them equal",
        )
    if recipe.data.image.crop is not None and recipe.data.image.crop % model.factor:
        raise UserError(f"data.image.crop {recipe.data.image.crop}", f"make it a multiple of f = {model.factor}")
