"""A reference to a model -> its network, its scale, and where it came from."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.documents import read_text, read_yaml
from ldm_vae.errors import UserError
from ldm_vae.interop import hub
from ldm_vae.interop.checkpoint import Checkpoint, read_latest
from ldm_vae.interop.diffusers import CONFIG, STATISTICS, read_config
from ldm_vae.interop.layouts.layout import exchanged_state, layout_named
from ldm_vae.interop.native import architecture_in, is_native
from ldm_vae.interop.origin import LatentOrigin
from ldm_vae.interop.results import RESULTS, Measurement, StoredResults
from ldm_vae.interop.weights import modern_names, read_codecs, read_weights, weight_files
from ldm_vae.metrics.latent import LatentStatistics
from ldm_vae.networks.network import HEADS, Network, NetworkConfig
from ldm_vae.parts import NETWORKS
from ldm_vae.precision import floats_as_float32
from ldm_vae.recipe import validate

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_SIDE = 2**20  # pixels; nobody trains on larger images
HOW_TO_NAME_A_MODEL = (
    "give a run, one of its checkpoints, an exported folder (diffusers' or our own), or a Hub id such as "
    "stabilityai/sd-vae-ft-mse"
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from.

    name: what the user called it.
    kind: what it was loaded from.
    folder: the run or the exported folder, where its statistics lie; None for a live model or one of the Hub.
    step: optimizer steps taken, of a run.
    weights: which of a run's two sets of weights was loaded.
    resolution: side of the training images in pixels; None where it is unknown.
    force_upcast: whether the model must decode in float32 in a pipeline of float16, by its configuration.
    codecs: sha256 of all weights of codecs with the same encoder, whose stored latents are this model's, too.
    keeps_scale: whether the scale is that of the codec which the encoder is from, so that statistics don't change it.
    """

    name: str
    kind: Literal["run", "diffusers", "native", "live"]
    folder: Path | None = None
    step: int | None = None
    weights: Literal["ema", "model"] | None = None
    resolution: int | None = None
    force_upcast: bool = True
    codecs: tuple[str, ...] = ()
    keeps_scale: bool = False

    def in_words(self) -> str:
        """Where the model came from, in a few words."""
        if self.kind == "live":
            return self.name
        trained = "" if self.step is None else f", step {self.step:,}"
        weights = {"ema": ", EMA weights", "model": ", weights without EMA", None: ""}[self.weights]
        where = "the Hub" if self.folder is None and self.kind != "run" else self.kind
        return f"{self.name} ({where}{trained}{weights})"

    @cached_property
    def recipe(self) -> str | None:
        """recipe.yaml of the run; None where there is none."""
        path = None if self.folder is None else self.folder / "recipe.yaml"
        return read_text(path, "put it back") if path is not None and path.is_file() else None

    @property
    def training_sources(self) -> list[dict[str, Any]]:
        """The sources in data.train of the recipe, a mapping for each; empty where there is no recipe or no source."""
        if self.folder is None or self.recipe is None:
            return []
        train = _section(read_yaml(self.folder / "recipe.yaml"), "data").get("train") or []
        sources = train if isinstance(train, list) else [{"shards": train}]
        return [source for source in sources if isinstance(source, dict)]

    @property
    def training_data(self) -> str | None:
        """The shards of `training_sources`, as text."""
        return ", ".join(str(source.get("shards")) for source in self.training_sources) or None

    @property
    def measurements(self) -> list[Measurement]:
        """What `ldm-vae evaluate` keeps in the run's results.json, the newest first; empty where there is none.

        Raises UserError where the file is damaged.
        """
        if self.folder is None or not (path := self.folder / RESULTS).is_file():
            return []
        return StoredResults.read(path).measurements


@dataclass(frozen=True)
class LoadedModel:
    """A network with its scale.

    scale: None for a run whose latents nobody has measured yet.
    source: where the model came from.
    """

    model: Network
    scale: LatentScale | None
    source: ModelSource


def load_model(
    ref: str | Path | AutoencoderKL,
    *,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> LoadedModel:
    """Loads a model. Raises UserError for what cannot be loaded.

    Files are read to the CPU, and tensors keep the type that they have in the file; a live model's tensors are shared.
    A run gives the EMA weights of its newest whole checkpoint.

    ref: a run, a checkpoint, an exported folder (diffusers' or our own, or one with it under vae/), a Hub id, or a live
    AutoencoderKL.
    variant: of a folder of diffusers, the file of rounded weights to read, such as fp16; None prefers those that were
    not rounded.
    revision: of a model on the Hub, the branch, tag or commit; None takes its newest state.
    subfolder: the folder inside `ref` that holds the codec. None looks at the top, then under vae/.
    """
    if not isinstance(ref, str | Path):
        return _load_live(ref)
    if variant is not None:
        weight_files(variant)  # refuses what is no word
    path = Path(ref)
    if not path.exists() and isinstance(ref, str) and _HUB_ID.fullmatch(ref) and not ref.startswith("."):
        return _load_folder(hub.fetch(ref, variant, revision=revision, subfolder=subfolder), ref, None, variant)
    if revision is not None:
        raise UserError(f"revision {revision!r} of {ref}", "only a model on the Hub has one: leave it out")
    if subfolder is not None:
        path, ref = path / subfolder, f"{ref}/{subfolder}"
    if path.is_file():
        raise _single_file(path)
    if not path.is_dir():
        problem = "is no folder" if path.exists() else "not found"
        raise UserError(f"model {ref} {problem}", HOW_TO_NAME_A_MODEL)
    if (path / "meta.json").is_file():
        return _load_checkpoint(Checkpoint.open(path), str(ref))
    if (path / "checkpoints").is_dir():
        return read_latest(path, lambda checkpoint: _load_checkpoint(checkpoint, str(ref)))
    for folder in (path, path / "vae"):
        if (folder / CONFIG).is_file():
            return _load_folder(folder, str(ref), folder, variant)
    raise UserError(f"{ref} holds no model", HOW_TO_NAME_A_MODEL)


def _single_file(path: Path) -> UserError:
    """What to do with a file where a folder is wanted: diffusers knows the formats in which others publish one file."""
    if (path.parent / CONFIG).is_file() or (path.parent / "meta.json").is_file():
        return UserError(f"model {path} is a file of a model", f"give its folder: {path.parent}")
    if path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        read = f"AutoencoderKL.from_single_file({str(path)!r})"
        remedy = f"diffusers reads it: {read}.save_pretrained(FOLDER), then give FOLDER; or LatentCodec.load({read})"
        return UserError(f"model {path} is a single file", remedy)
    return UserError(f"model {path} is no folder", HOW_TO_NAME_A_MODEL)


def weights_hash(model: Network) -> str:
    """The sha256 of names, shapes and values of the exported weights: floating point in float32, the rest as it is.

    It is the same for a run's weights and for their export, so that latents can name the codec that made them.
    """
    return _hash(exchanged_state(model))


def encoder_hash(model: Network) -> str:
    """The same hash of the weights that latents depend on alone: all but the decoder's. -0 counts as 0.

    A decoder that was trained for existing latents has another `weights_hash` than their codec, and this one.
    """
    kept = {name: value for name, value in exchanged_state(model).items() if not name.startswith(model.decoder_names)}
    return _hash({name: value + 0 if value.is_floating_point() else value for name, value in kept.items()})


def _hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(floats_as_float32(value.detach()).cpu().numpy().tobytes())
    return digest.hexdigest()


def statistics_of(source: ModelSource, codec: str) -> LatentStatistics | None:
    """The statistics that `ldm-vae stats` wrote beside the model; None where there are none.

    codec: hash of the model's weights. Statistics of other weights are not used, with a warning.
    """
    if source.folder is None or not (path := source.folder / STATISTICS).is_file():
        return None
    statistics = LatentStatistics.read(path)
    if statistics.codec != codec:
        logger.warning("%s is about other weights and is not used; measure again with `ldm-vae stats`", path)
        return None
    return statistics


def _load_live(vae: Any) -> LoadedModel:
    from diffusers import AutoencoderKL

    from ldm_vae.interop.untouched import MODULES, Blueprint

    known: Any = AutoencoderKL  # its attributes come from mixins without types
    if not isinstance(vae, known):
        raise UserError(f"cannot load a model from a {type(vae).__name__}", HOW_TO_NAME_A_MODEL)
    name = "the live AutoencoderKL"
    values = dict(vae.config)
    config = layout_named("AutoencoderKL", name).from_config(values, name)
    blueprint = Blueprint(values)
    if changed := next((what for part in MODULES if (what := blueprint.difference(vae, part))), None):
        raise UserError(
            f"{name} does not compute what its configuration says: {changed}", "load it anew, from its folder"
        )
    model = _assemble(config, vae.state_dict(), name)
    scale = LatentScale.from_config(values, config.latent_channels, name)
    return LoadedModel(model, scale, ModelSource(name, "live", None, **_pipeline_values(values)))


def _pipeline_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What pipelines go by in a config.json of diffusers or of our own: resolution and force_upcast."""
    size = config.get("sample_size")
    sides = [_side(side) for side in (size if isinstance(size, list | tuple) else [size])]
    resolution = max((side for side in sides if side is not None), default=None)
    return {"resolution": resolution, "force_upcast": bool(config.get("force_upcast", True))}


def _load_folder(folder: Path, name: str, home: Path | None, variant: str | None = None) -> LoadedModel:
    """A folder of diffusers or of our own."""
    values = read_config(folder)
    where = str(folder / CONFIG)
    if native := is_native(values):
        config = read_architecture(architecture_in(values, where), where)
    else:
        config = layout_named(str(values.get("_class_name", "AutoencoderKL")), where).from_config(values, where)
    model = _assemble(config, read_weights(folder, variant), str(folder))
    scale = LatentScale.from_config(values, config.latent_channels, where)
    kind: Literal["diffusers", "native"] = "native" if native else "diffusers"
    source = ModelSource(name, kind, home, codecs=read_codecs(folder), **_pipeline_values(values))
    return LoadedModel(model, scale, source)


def network_in(checkpoint: Checkpoint) -> tuple[Network, Literal["ema", "model"]]:
    """The network with its averaged weights, where there are any, and which weights these are."""
    config = read_architecture(checkpoint.meta["model"], str(checkpoint.folder / "meta.json"))
    weights: Literal["ema", "model"] = "ema" if "ema" in checkpoint.groups else "model"
    state = {key: value for key, value in checkpoint.tensors(weights).items() if not key.startswith(HEADS)}
    return _assemble(config, state, str(checkpoint.folder)), weights


def _load_checkpoint(checkpoint: Checkpoint, name: str) -> LoadedModel:
    model, weights = network_in(checkpoint)
    run = checkpoint.folder.parent.parent if checkpoint.folder.parent.name == "checkpoints" else None
    source = ModelSource(name, "run", run, checkpoint.step, weights, _resolution(run))
    scale = None
    if (begun_with := checkpoint.meta.get("origin")) is not None:
        origin = LatentOrigin.from_json(begun_with, model.config.latent_channels, str(checkpoint.folder / "meta.json"))
        if origin.encoder == encoder_hash(model):
            source = replace(source, codecs=origin.codecs, keeps_scale=origin.scale is not None)
            scale = origin.scale
    if scale is None and (statistics := statistics_of(source, weights_hash(model))) is not None:
        scale = statistics.scale("factor")
    return LoadedModel(model, scale, source)


def read_architecture(values: Mapping[str, Any], source: str) -> NetworkConfig:
    """The configuration of a network of any kind, from JSON. Without a kind it is `kl`.

    source: where the values come from, for errors.
    """
    try:
        config = NETWORKS.config(values.get("kind", NETWORKS.default))
    except UserError as error:
        raise UserError(f"{source}: {error.what}", error.remedy) from None
    return cast(NetworkConfig, validate(config, values, source))


def build_network(config: NetworkConfig, heads: Mapping[str, nn.Module] | None = None) -> Network:
    """A network of any kind, with first weights from torch's generator."""
    network: Network = NETWORKS.part_of(config)(config, heads)
    return network


def _assemble(config: NetworkConfig, state: Mapping[str, Tensor], source: str) -> Network:
    """A network that holds the given tensors without copying them, in evaluation mode and without gradients."""
    state = modern_names(state)
    with torch.device("meta"):
        model = build_network(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if different := sorted({name for name, _ in expected.items() ^ given.items()}):
        name = different[0]
        found = f"holds {name} of shape {given[name]}" if name in given else f"lacks {name}"
        wanted = f"one of shape {expected[name]}" if name in expected else "no such tensor"
        raise UserError(f"{source} {found}", f"its configuration asks for {wanted} ({len(different)} tensors differ)")
    floats = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    if wrong := next((name for name in floats if not state[name].is_floating_point()), None):
        raise UserError(f"{source} holds {wrong} as {state[wrong].dtype}", "weights are floating point: get it again")
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _resolution(run: Path | None) -> int | None:
    """Side of the training images in pixels: the crop of the run's recipe, else its resize; None without both."""
    if run is None or not (run / "recipe.yaml").is_file():
        return None
    image = _section(_section(read_yaml(run / "recipe.yaml"), "data"), "image")
    return _side(image.get("crop") or image.get("resize"))


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}


def _side(value: object) -> int | None:
    """A number of pixels; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE else None
