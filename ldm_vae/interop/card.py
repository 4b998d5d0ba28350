"""The model card of an export: what it says about the codec, where the codec comes from, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.card_licence import licence_metadata
from ldm_vae.interop.diffusers import PICTURE
from ldm_vae.interop.layouts.layout import layout_of, loader_of
from ldm_vae.interop.load import ModelSource
from ldm_vae.metrics.latent import LatentStatistics
from ldm_vae.networks.network import Network


def card_header(model: Network, licence: str | None) -> str:
    """The card's metadata for the Hub, in YAML."""
    tags = "tags:\n- autoencoder\n- vae\n- latent-diffusion\n"
    return f"library_name: {loader_of(model)[0]}\n{licence_metadata(licence)}{tags}"


def card_text(
    model: Network,
    scale: LatentScale,
    source: ModelSource,
    results: Mapping[str, Any],
    statistics: LatentStatistics | None,
    *,
    force_upcast: bool,
    licence: str | None,
    command: str,
    place: str,
    pictured: int | None,
) -> Iterator[str]:
    """The card's text, in pieces.

    place: what loads the export: the model's name on the Hub, or the folder.
    pictured: the step of the run's samples that lie beside the card; None without a picture.
    results: results of an evaluation of these weights, or empty.
    """
    config, layout = model.config, layout_of(model)
    package, function = loader_of(model)
    name = "KL autoencoder" if layout is not None else f"Autoencoder ({config.kind}, {config.bottleneck.kind})"
    yield f"# {name}, f{config.factor}, {config.latent_channels} channels\n\n"
    trained = f", step {source.step:,}, {'EMA ' if source.weights == 'ema' else ''}weights" if source.step else ""
    yield f"Written by ldm_vae from `{source.name}`{trained}. H x W pixels of {config.in_channels} channels become"
    yield f" a latent of H/{config.factor} x W/{config.factor} positions and {config.latent_channels} channels.\n\n"
    variable = "codec" if layout is None else "vae"
    quoted = json.dumps(place, ensure_ascii=False)
    loading = f"from {package} import {function.partition('.')[0]}\n{variable} = {function}({quoted})"
    yield f"```python\n{loading}\n```\n\n"
    if pictured is not None:
        yield f"![Originals on the left, reconstructions on the right]({PICTURE})\n\n"
        yield f"Images of the validation set on the left, their reconstructions on the right, at step {pictured:,}.\n\n"
    yield "## Numbers\n\n"
    yield from _numbers_table(scale, statistics, force_upcast)
    yield from _scale_in_words(scale, layout is not None)
    yield from _results_table(results)
    for difference in [] if layout is None else layout.differences(config):
        yield f"\n{difference}\n"
    yield "\n## Data\n\n"
    yield f"Trained on: {source.training_data or 'not known here'}.\n"
    if statistics is not None:
        resize, crop = (statistics.protocol.get(name) or "none" for name in ("resize", "crop"))
        yield f"Latents measured on: {statistics.data} (images {statistics.images:,}, resize {resize}, crop {crop}).\n"
    yield f"\n## Licence\n\n{licence or _no_licence(source)}\n"
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


def _scale_in_words(scale: LatentScale, for_diffusers: bool) -> Iterator[str]:
    """How a raw latent becomes the one that a diffusion model sees, with its numbers, and back."""
    yield "\nWith z as the encoder gives it, a diffusion model sees\n"
    yield f"\n    latent = {scale.formula()}\n"
    yield f"\nand the decoder takes\n\n    z = {scale.inverse()}\n"
    if scale.mean is not None:
        yield "\nLists hold a number for each channel.\n"
    who = (
        "Pipelines of diffusers do so; `AutoencoderKL` itself does not." if for_diffusers else "`LatentCodec` does so."
    )
    yield f"\n{who}\n"


def _no_licence(source: ModelSource) -> str:
    named = "`ldm-vae export --licence` names one."
    if source.kind in ("diffusers", "native"):
        return f"Not stated here: that of `{source.name}` holds. {named}"
    return f"Not stated; {named}"


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
