"""A recipe -> the parts of a run, prepared by accelerate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from ldm_vae.devices import has_float64
from ldm_vae.errors import UserError
from ldm_vae.extras import require
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.load import build_network, encoder_hash, load_model, read_architecture, weights_hash
from ldm_vae.interop.origin import LatentOrigin
from ldm_vae.losses.adversary import Adversary
from ldm_vae.losses.objective import build_heads, build_objective
from ldm_vae.losses.perceptual import LPIPS, perceptual_channels
from ldm_vae.metrics.image import OF_TORCHMETRICS
from ldm_vae.networks.compiled import require_compiler
from ldm_vae.networks.network import Network, NetworkConfig
from ldm_vae.nn.norm import keep_types
from ldm_vae.parts import ADVERSARIES, NETWORKS
from ldm_vae.pretrained.frozen import pin
from train.ema import Ema
from train.guard import Guard
from train.initialise import initialise_average
from train.launch import check_launch, check_processes
from train.optimizer import OptimizerConfig, Update, build_update
from train.recipe import MODELS, ModelConfig, Recipe, resolve_precision
from train.snapshot import RUN_GROUPS
from train.state import Run
from train.trial import PROVEN, check_trains

# Of DistributedDataParallel:
# - Gradients are views of its buckets: no second copy of them, and no copying after the all-reduce.
# - Buffers are not sent before each forward pass. All ranks have the same: they start from one seed or checkpoint, a
#   bottleneck learns from sums over all ranks, and a network that sees its own batch only is refused.
# - No search for parameters without a gradient: every trained one has one, or DistributedDataParallel says so.
# - Not `static_graph`: it saves that search and nothing else, it fails under accumulation (pytorch#187732), and since
#   the forward pass returns an `Output`, in which it finds no tensors, it would never average gradients, in silence.
PARALLEL = DistributedDataParallelKwargs(
    gradient_as_bucket_view=True, broadcast_buffers=False, find_unused_parameters=False, static_graph=False
)


def build_accelerator(recipe: Recipe) -> Accelerator:
    """An accelerator for one process or data parallelism, in the recipe's precision.

    Raises UserError for a launch or a recipe that would train wrongly.
    """
    check_launch(recipe)
    check_installed(recipe)
    half = resolve_precision(recipe).precision == "bfloat16"
    accelerator = Accelerator(mixed_precision="bf16" if half else "no", kwargs_handlers=[PARALLEL])
    check_processes(accelerator)
    if accelerator.device.type not in PROVEN:
        check_trains(accelerator.device)
    if recipe.precision == "float64" and not has_float64(accelerator.device):
        raise UserError(f"precision: float64 on {accelerator.device}, which has none", "set precision=float32")
    if recipe.compile:
        require_compiler(accelerator.device)
    if accelerator.num_processes > 1 and recipe.discriminator is not None and recipe.discriminator.sees_batches:
        raise UserError(
            "discriminator.norm: batch sees one process's images, not the batch", "use group on several processes"
        )
    return accelerator


def check_installed(recipe: Recipe) -> None:
    """Raises MissingExtra where trackers or the metrics of the validation need a package that is not installed."""
    for tracker in recipe.log.trackers:
        require("train" if tracker == "tensorboard" else tracker, "log.trackers", package=tracker)
    if recipe.data.validation is not None and set(OF_TORCHMETRICS).intersection(recipe.validation.metrics):
        require("train", "validation.metrics", package="torchmetrics")


def build_autoencoder(
    recipe: Recipe, checkpoint: Checkpoint | None = None, *, device: str = "cpu"
) -> tuple[Network, Recipe]:
    """The autoencoder with its first weights, and the recipe with the architecture of `init_from` filled in.

    checkpoint: the checkpoint of a run that continues. It holds all weights, so `init_from` need not exist any more.
    device: "meta" for a network that is only counted: its weights have shapes and no values.
    """
    torch.manual_seed(recipe.seed)
    if recipe.model.init_from is None:
        with torch.device(device):
            model = build_network(_architecture(recipe), build_heads(recipe.loss))
            if recipe.model.initialisation == "average":
                initialise_average(model)
        return model, recipe
    source = load_model(recipe.model.init_from).model if checkpoint is None else None
    recipe = _take_architecture(recipe, source.config if source is not None else _architecture_of(checkpoint))
    with torch.device(device):
        model = build_network(_architecture(recipe), build_heads(recipe.loss))
    if source is not None and device != "meta":
        model.load_state_dict(model.state_dict() | source.exported_state())
    if recipe.model.train != "all":
        train_only(model, [*model.parts(recipe.model.train), model.heads])
    return model, recipe


def origin_of(recipe: Recipe, checkpoint: Checkpoint | None) -> LatentOrigin | None:
    """The codec that a run began with, by its checkpoint or `init_from`; None for a run that started anew."""
    if recipe.model.init_from is None:
        return None
    if checkpoint is not None:
        values = checkpoint.meta.get("origin")  # runs of 0.1.0 have none
        where = str(checkpoint.folder / "meta.json")
        return None if values is None else LatentOrigin.from_json(values, recipe.model.latent_channels, where)
    loaded = load_model(recipe.model.init_from)
    codecs = (weights_hash(loaded.model), *loaded.source.codecs)
    return LatentOrigin(encoder_hash(loaded.model), codecs, loaded.scale)


def train_only(model: Network, parts: Sequence[nn.Module]) -> None:
    """Freezes everything else in the model, as it is in evaluation: no dropout, and statistics that do not move."""
    model.eval()
    trained = set()
    for part in parts:
        part.train()
        trained |= set(part.parameters())  # what the network itself has frozen stays so
    for parameter in model.parameters():
        if parameter not in trained:
            parameter.requires_grad_(False)


def build_adversaries(recipe: Recipe) -> list[Adversary]:
    """The adversaries of a recipe: its discriminator, or none."""
    config = recipe.discriminator
    return [] if config is None else [ADVERSARIES.part_of(config)(config)]


def build_run(
    recipe: Recipe,
    accelerator: Accelerator,
    autoencoder: Network,
    frozen: Mapping[str, nn.Module],
    update: Callable[[nn.Module, OptimizerConfig, float, int], Update] = build_update,
) -> Run:
    """Networks, objective, updates and guard, on the accelerator's device.

    frozen: the networks that `build_frozen` returned.
    update: makes the optimizer of a network.
    """
    autoencoder = autoencoder.to(accelerator.device)
    torch.manual_seed(recipe.seed)
    adversaries = build_adversaries(recipe)
    _check_names(adversaries)
    networks = {adversary.name: adversary.build(recipe.model).to(accelerator.device) for adversary in adversaries}
    for module in frozen.values():
        module.to(accelerator.device).requires_grad_(False).eval()
    if recipe.precision == "float64":
        for module in (autoencoder, *networks.values(), *frozen.values()):
            module.double()

    if recipe.norms == "bfloat16":
        for network in (autoencoder, *networks.values()):
            keep_types(network)
    ema = Ema(autoencoder, recipe.ema)
    optimizer, lr = recipe.optimizer, recipe.optimizer.lr
    updates = {"model": update(autoencoder, optimizer, lr, recipe.steps)}
    model = accelerator.prepare_model(autoencoder)
    critics: dict[str, nn.Module] = {}
    for name, network in networks.items():
        updates[name] = update(network, optimizer, optimizer.discriminator_lr or lr, recipe.steps)
        critics[name] = accelerator.prepare_model(network)

    def mean_over_ranks(value: Tensor) -> Tensor:
        reduced: Tensor = accelerator.reduce(value, reduction="mean")
        return reduced

    objective = build_objective(recipe.loss, adversaries, frozen, autoencoder.anchors, mean_over_ranks)
    guard = Guard([autoencoder, *networks.values()], accelerator.device, optimizer.patience, recipe.log.every)
    return Run(
        accelerator=accelerator,
        autoencoder=autoencoder,
        model=model,
        critics=critics,
        objective=objective,
        updates=updates,
        ema=ema,
        guard=guard,
        seed=recipe.seed,
        bottleneck_learns=recipe.model.train == "all",  # else old latents would change
    )


def build_frozen(recipe: Recipe) -> tuple[dict[str, nn.Module], Recipe]:
    """The frozen networks by the name of their section, and the recipe with the hashes of their weights.

    Frozen networks belong to losses and are never trained. Their weights are downloaded where they are not cached.
    Raises UserError where they are not the weights that the recipe names.
    """
    frozen = frozen_networks(recipe)
    pins = {name: pin(getattr(recipe.loss, name), network, f"loss.{name}") for name, network in frozen.items()}
    return frozen, recipe.model_copy(update={"loss": recipe.loss.model_copy(update=pins)})


def frozen_networks(recipe: Recipe) -> dict[str, nn.Module]:
    """The frozen networks by the name of their section. On the `meta` device they need no weights."""
    config = recipe.loss.perceptual
    channels = perceptual_channels(config, recipe.model.out_channels) if config.weight > 0 else None
    if channels is None:
        return {}
    return {"perceptual": LPIPS(config.network, channels=channels, backbone=config.backbone)}


def _check_names(adversaries: Sequence[Adversary]) -> None:
    """Raises ValueError where two groups of a checkpoint would have the same name."""
    names = [adversary.name for adversary in adversaries]
    groups = [*RUN_GROUPS, *names, *(f"optimizer_{name}" for name in ("model", *names))]
    if len(set(groups)) < len(groups):
        raise ValueError(f"adversaries named {', '.join(names)}: each needs a name of its own, and none of a group")


def _architecture(recipe: Recipe) -> NetworkConfig:
    config = NETWORKS.config(recipe.model.kind)
    values = {name: getattr(recipe.model, name) for name in config.model_fields}
    return cast(NetworkConfig, config(**values))


def _architecture_of(checkpoint: Checkpoint | None) -> NetworkConfig:
    assert checkpoint is not None  # without one, the model of `init_from` has been loaded
    return read_architecture(checkpoint.meta["model"], str(checkpoint.folder))


def _take_architecture(recipe: Recipe, config: NetworkConfig) -> Recipe:
    """The recipe with the architecture of `init_from`. Raises UserError where the recipe asks for a different one."""
    model = recipe.model
    for name in model.model_fields_set & type(config).model_fields.keys() - {"gradient_checkpointing"}:
        if getattr(model, name) != getattr(config, name):
            raise UserError(
                f"model.{name} differs from that of {model.init_from} ({getattr(config, name)})",
                "leave the architecture out of a recipe with model.init_from",
            )
    own = ("gradient_checkpointing", *ModelConfig.model_fields.keys() - NetworkConfig.model_fields.keys())
    values = dict(config) | {name: getattr(model, name) for name in own}
    taken = MODELS.config(config.kind)(**values)
    recipe = recipe.model_copy(update={"model": taken})
    _check_channels(recipe)
    return recipe


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
