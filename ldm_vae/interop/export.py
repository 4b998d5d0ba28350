"""A model and its measured statistics -> a folder that diffusers or `LatentCodec` loads, with a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ldm_vae.atomic import atomic_file
from ldm_vae.bottlenecks.scale import LatentScale, ScaleKind
from ldm_vae.errors import UserError
from ldm_vae.interop.diffusers import CARD, CONFIG, WEIGHTS, read_config, write_folder
from ldm_vae.interop.layouts.layout import describe_parts, exchanged_state, layout_of
from ldm_vae.interop.load import STATISTICS, LoadedModel, ModelSource, weights_hash
from ldm_vae.interop.native import NATIVE_WEIGHTS, native_config
from ldm_vae.interop.pipelines import Target, fit_scale, natural_scale, remarks
from ldm_vae.metrics.latent import LatentStatistics
from ldm_vae.networks.network import Network, NetworkConfig

# float16 overflows at 65504. Other images may reach larger activations than the measured ones, and kernels form sums on
# the way to an output. A quarter of the range leaves room for both.
FLOAT16_SAFE = torch.finfo(torch.float16).max / 4
UNKNOWN_RESOLUTION = 512  # pixels, where the training resolution is unknown; too large a value only means fewer tiles


def export_model(
    loaded: LoadedModel,
    folder: Path,
    statistics: LatentStatistics | None,
    *,
    kind: ScaleKind | None = None,
    target: Target | None = None,
    licence: str | None = None,
    command: str,
) -> list[str]:
    """Writes a folder that `from_pretrained` of diffusers loads, with a model card.

    Where diffusers has no class for the network, the folder is one of our own (`interop/native.py`).

    loaded: the model.
    folder: the folder to write.
    statistics: statistics of these weights; None for a diffusers model that nobody has measured.
    kind: the kind of scale to compute from the statistics. None keeps the scale that the model has; a run for a target
    gets the kind that the target applies.
    target: the pipeline that will use the model.
    licence: licence of the weights, an SPDX id.
    command: the command that the user typed, for the card.
    Returns what the user should know about card and target, one line each.
    Raises UserError where a run has no statistics, or statistics of other weights, where its results.json is damaged,
    and for a scale that the target does not apply.
    """
    model, source = loaded.model, loaded.source
    digest = weights_hash(model)
    if statistics is not None and statistics.codec != digest:
        what = f"the statistics are of the weights {statistics.codec[:12]}, and {source.name} has {digest[:12]}"
        raise UserError(what, "measure again: `ldm-vae stats MODEL SHARDS --write`")
    if statistics is None and loaded.scale is None:
        raise UserError(
            f"nobody has measured the latents of {source.name}",
            "run `ldm-vae stats MODEL SHARDS --write` first, or give --shards or --stats",
        )
    keep = loaded.scale is not None and kind is None and (source.kind != "run" or target is None)
    scale = loaded.scale if keep or statistics is None else statistics.scale(kind or natural_scale(target))
    assert scale is not None
    layout = layout_of(model)
    if target is not None and layout is None:
        what = describe_parts(model)
        raise UserError(what, "diffusers has no class for it, and no pipeline can use it: leave out --target")
    if target is not None:
        scale = fit_scale(target, scale, model.config)
    activation = None if statistics is None else statistics.activation
    # Without a measurement, the model's own configuration decides; a run has none, and is upcast to be safe.
    force_upcast = source.force_upcast if activation is None else activation.largest > FLOAT16_SAFE
    sample_size = sample_size_of(source, model.config)
    results, notes = source.results, []
    if results and not _are_of(results, digest):
        results = {}
        notes.append(f"results.json of {source.name} is about other weights and not in the card: evaluate again")
    card = _card(model, scale, source, results, statistics, force_upcast=force_upcast, licence=licence, command=command)
    documents = {CARD: "".join(card)}
    if statistics is not None:
        documents[STATISTICS] = statistics.to_text()
    make_config = native_config if layout is None else layout.to_config
    config = make_config(model.config, scale, sample_size=sample_size, force_upcast=force_upcast)
    weights = NATIVE_WEIGHTS if layout is None else WEIGHTS
    write_folder(folder, config, exchanged_state(model), documents, weights=weights)
    if layout is None:
        notes.append("diffusers has no class for this network: the folder is one that only ldm_vae reads")
    return notes if target is None else notes + remarks(target, model.config, force_upcast=force_upcast)


def sample_size_of(source: ModelSource, config: NetworkConfig) -> int:
    """Side of diffusers' tiles in pixels: the training resolution, rounded up to a multiple of f."""
    return -(-(source.resolution or UNKNOWN_RESOLUTION) // config.factor) * config.factor


def save_statistics(source: ModelSource, statistics: LatentStatistics) -> Path:
    """Writes the statistics beside the model, for the codec and for export; returns the file.

    An exported folder also gets the scale that follows from them.
    """
    if source.folder is None:
        raise ValueError(f"{source.name} is no folder")
    path = source.folder / STATISTICS
    if source.kind in ("diffusers", "native"):
        config = read_config(source.folder)
        kind: ScaleKind = "factor" if config.get("shift_factor") is None else "shift"
        scale = statistics.scale("channel" if config.get("latents_mean") is not None else kind)
        with atomic_file(source.folder / CONFIG) as stage:
            stage.write_text(json.dumps({**config, **scale.to_config()}, indent=2) + "\n")
    statistics.write(path)
    return path


def loader_of(model: Network) -> tuple[str, str]:
    """The package that loads an export of the network, and the function in it that does."""
    layout = layout_of(model)
    return ("ldm_vae", "LatentCodec.load") if layout is None else ("diffusers", f"{layout.CLASS}.from_pretrained")


def _card(
    model: Network,
    scale: LatentScale,
    source: ModelSource,
    results: Mapping[str, Any],
    statistics: LatentStatistics | None,
    *,
    force_upcast: bool,
    licence: str | None,
    command: str,
) -> Iterator[str]:
    """The text of README.md, in pieces.

    results: results of an evaluation of these weights, or empty.
    """
    config, layout = model.config, layout_of(model)
    package, function = loader_of(model)
    yield f"---\nlibrary_name: {package}\n"
    if licence is not None:
        yield f"license: {licence}\n"
    yield "tags:\n- autoencoder\n- vae\n- latent-diffusion\n---\n\n"
    name = "KL autoencoder" if layout is not None else f"Autoencoder ({config.kind}, {config.bottleneck.kind})"
    yield f"# {name}, f{config.factor}, {config.latent_channels} channels\n\n"
    trained = f", step {source.step:,}, {'EMA ' if source.weights == 'ema' else ''}weights" if source.step else ""
    yield f"Written by ldm_vae from `{source.name}`{trained}. H x W pixels of {config.in_channels} channels become"
    yield f" a latent of H/{config.factor} x W/{config.factor} positions and {config.latent_channels} channels.\n\n"
    variable = "codec" if layout is None else "vae"
    loading = f"from {package} import {function.partition('.')[0]}\n{variable} = {function}(FOLDER)"
    yield f"```python\n{loading}\n```\n\n"
    yield "## Numbers\n\n"
    yield from _numbers_table(scale, statistics, force_upcast)
    yield from _results_table(results)
    for difference in [] if layout is None else layout.differences(config):
        yield f"\n{difference}\n"
    yield "\n## Data\n\n"
    yield f"Trained on: {source.training_data or 'not known here'}.\n"
    if statistics is not None:
        resize, crop = (statistics.protocol.get(name) or "none" for name in ("resize", "crop"))
        yield f"Latents measured on: {statistics.data} (images {statistics.images:,}, resize {resize}, crop {crop}).\n"
    yield f"\n## Licence\n\n{licence or 'Not stated; `ldm-vae export --licence` names one.'}\n"
    yield f"\n## Command\n\n```\n{command}\n```\n"
    if source.recipe is not None:
        yield f"\n## Recipe\n\n```yaml\n{source.recipe.rstrip()}\n```\n"


def _numbers_table(scale: LatentScale, statistics: LatentStatistics | None, force_upcast: bool) -> Iterator[str]:
    yield "| | |\n|---|---|\n"
    for name, value in scale.to_config().items():
        if value is not None:
            yield f"| {name} | {value} |\n"
    if statistics is not None:
        yield f"| latent mean, std | {statistics.mean:.6g}, {statistics.std:.6g} ({statistics.latents}) |\n"
    if statistics is not None and (activation := statistics.activation) is not None:
        yield f"| largest activation | {activation.largest:.1f} at {activation.layer}, {activation.images} images |\n"
    yield f"| float16 | {'decode in float32 (force_upcast)' if force_upcast else 'fits'} |\n"


def _are_of(results: Mapping[str, Any], digest: str) -> bool:
    """Whether these results of `ldm-vae evaluate` are about the weights of this sha256."""
    protocol = results.get("protocol")
    return isinstance(protocol, Mapping) and protocol.get("weights_sha256") == digest


def _results_table(results: Mapping[str, Any]) -> Iterator[str]:
    """The results that `ldm-vae evaluate` wrote into the run, with their protocol."""
    metrics = results.get("metrics")
    if not isinstance(metrics, Mapping):
        return
    yield "\n| metric | value |\n|---|---|\n"
    for name, value in metrics.items():
        yield f"| {name} | {f'{value:.4f}' if isinstance(value, int | float) else 'missing'} |\n"
    for said in (results.get("missing"), results.get("notes")):
        if isinstance(said, Mapping):
            yield from (f"\n{name}: {text}\n" for name, text in said.items())
    yield f"\n## Protocol\n\n```json\n{json.dumps(results['protocol'], indent=1, ensure_ascii=False)}\n```\n"
