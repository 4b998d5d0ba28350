"""A model and its measured statistics -> a folder that diffusers or `LatentCodec` loads, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from ldm_vae.atomic import atomic_file, refuse_foreign
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import ScaleKind, Target
from ldm_vae.documents import DamagedFile, read_text
from ldm_vae.errors import UserError
from ldm_vae.interop.card import card_header, card_text
from ldm_vae.interop.card_licence import licence_in
from ldm_vae.interop.card_picture import card_picture
from ldm_vae.interop.card_update import Card, update_card
from ldm_vae.interop.diffusers import (
    CARD,
    CONFIG,
    EXPORTED,
    HALF_WEIGHTS,
    PICTURE,
    STATISTICS,
    read_config,
    write_folder,
)
from ldm_vae.interop.layouts.layout import describe_parts, exchanged_state, layout_of
from ldm_vae.interop.load import LoadedModel, ModelSource, weights_hash
from ldm_vae.interop.native import NATIVE_WEIGHTS, is_native, native_config
from ldm_vae.interop.pipelines import fit_scale, natural_scale, remarks
from ldm_vae.interop.results import newest_of
from ldm_vae.interop.weights import HALF, WEIGHTS
from ldm_vae.metrics.latent import LatentStatistics
from ldm_vae.networks.network import NetworkConfig
from ldm_vae.passwords import values_without_secrets, without_secrets

# float16 overflows at 65504. Other images may reach larger activations than the measured ones, and kernels form sums on
# the way to an output. A quarter of the range leaves room for both.
FLOAT16_SAFE = torch.finfo(torch.float16).max / 4
WRITTEN_BY = "Written by ldm_vae from"  # in the card of every export of any version
UNKNOWN_RESOLUTION = 512  # pixels, where the training resolution is unknown; too large a value only means fewer tiles


def export_model(
    loaded: LoadedModel,
    folder: Path,
    statistics: LatentStatistics | None,
    *,
    kind: ScaleKind | None = None,
    target: Target | None = None,
    licence: str | None = None,
    variant: Literal["fp16"] | None = None,
    command: str,
    hub_id: str | None = None,
) -> list[str]:
    """Writes a folder that `from_pretrained` of diffusers loads, with a model card.

    Where diffusers has no class for the network, the folder is one of our own (`interop/native.py`).

    loaded: the model.
    folder: the folder to write.
    statistics: statistics of these weights; None for a diffusers model that nobody has measured.
    kind: the kind of scale to compute from the statistics. None keeps the scale that the model has; a run for a target
    gets the kind that the target applies.
    target: the pipeline that will use the model.
    licence: licence of the weights, an SPDX id; None takes what the card of an earlier export, or that of the model,
    states.
    variant: rounds the weights to float16, under the name that diffusers gives that file; None keeps float32.
    command: the command that the user typed, for the card.
    hub_id: the model on the Hub that the folder will be; None where it stays a folder.
    Returns what the user should know about card and target, one line each.
    Raises UserError where a run has no statistics, or statistics of other weights, where its results.json is damaged,
    for a scale that the target does not apply, and where the folder holds more than an earlier export wrote. What a
    person wrote into the card of that export stays.
    """
    model, source = loaded.model, loaded.source
    earlier = _earlier_card(folder)
    digest = weights_hash(model)
    _refuse_contradictions(loaded, digest, statistics, target, variant)
    scale = _scale_for(loaded, statistics, kind, target)
    layout = layout_of(model)
    if target is not None:
        scale = fit_scale(target, scale, model.config)
    activation = None if statistics is None else statistics.activation
    # Without a measurement, the model's own configuration decides; a run has none, and is upcast to be safe.
    force_upcast = source.force_upcast if activation is None else activation.largest > FLOAT16_SAFE
    sample_size = sample_size_of(source, model.config)
    measurements, notes = source.measurements, []
    measured = newest_of(measurements, digest)
    results = {} if measured is None else values_without_secrets(measured.model_dump(exclude_unset=True))
    if measurements and measured is None:
        notes.append(f"results.json of {source.name} is about other weights and not in the card: evaluate again")
    licence = licence or licence_in(earlier) or licence_in(_card_of(source))
    picture = card_picture(source)
    place = hub_id or (folder.name if folder.is_absolute() else str(folder))
    text = card_text(
        model, scale, source, results, statistics, force_upcast=force_upcast, licence=licence, command=command,
        place=place, pictured=None if picture is None else picture[1],
    )  # fmt: skip
    shown = "".join(map(without_secrets, text)).encode("utf-8", "backslashreplace").decode()
    card = Card(card_header(model, licence), "", shown, "").text()
    if earlier is not None:
        card, kept = update_card(earlier, card)
        if kept:
            notes.append(f"{folder / CARD} keeps its earlier text at the end: remove what is no longer true")
    documents: dict[str, str | bytes] = {CARD: card}
    if picture is not None:
        documents[PICTURE] = picture[0]
    if statistics is not None and variant is None:  # they name the weights that they were measured with
        documents[STATISTICS] = statistics.to_text()
    make_config = native_config if layout is None else layout.to_config
    config = make_config(model.config, scale, sample_size=sample_size, force_upcast=force_upcast)
    weights = NATIVE_WEIGHTS if layout is None else HALF_WEIGHTS if variant == HALF else WEIGHTS
    write_folder(folder, config, exchanged_state(model), documents, weights=weights, codecs=source.codecs)
    if variant is not None:
        notes.append(f"the weights are rounded: AutoencoderKL.from_pretrained({str(folder)!r}, variant={variant!r})")
    if layout is None:
        notes.append("diffusers has no class for this network: the folder is one that only ldm_vae reads")
    return notes if target is None else notes + remarks(target, scale, model.config, force_upcast=force_upcast)


def _refuse_contradictions(
    loaded: LoadedModel,
    digest: str,
    statistics: LatentStatistics | None,
    target: Target | None,
    variant: Literal["fp16"] | None,
) -> None:
    """Raises UserError for statistics of other weights, and for what only a class of diffusers can give.

    digest: sha256 of the weights.
    """
    if statistics is not None and statistics.codec != digest:
        what = f"the statistics are of the weights {statistics.codec[:12]}, and {loaded.source.name} has {digest[:12]}"
        raise UserError(what, "measure again: `ldm-vae stats MODEL SHARDS --write`")
    if layout_of(loaded.model) is not None:
        return
    if target is not None:
        what = describe_parts(loaded.model)
        raise UserError(what, "diffusers has no class for it, and no pipeline can use it: leave out --target")
    if variant is not None:
        what = "diffusers has no class for this network, and only ldm_vae would read it"
        raise UserError(f"--variant {variant}", what)


def _scale_for(
    loaded: LoadedModel, statistics: LatentStatistics | None, kind: ScaleKind | None, target: Target | None
) -> LatentScale:
    """The scale of the export; the arguments are those of `export_model`. Raises UserError where there is none."""
    model, source = loaded.model, loaded.source
    if statistics is None and loaded.scale is None:
        raise UserError(
            f"nobody has measured the latents of {source.name}",
            "run `ldm-vae stats MODEL SHARDS --write` first, or give --shards or --stats",
        )
    given = source.kind != "run" or target is None or source.keeps_scale  # no target chooses another kind
    keep = loaded.scale is not None and kind is None and given
    scale = loaded.scale if keep or statistics is None else statistics.scale(kind or natural_scale(target))
    assert scale is not None
    if (problem := scale.problem(model.config.latent_channels)) is not None:
        raise UserError(f"{source.name}: {problem}", "measure again: `ldm-vae stats MODEL SHARDS --write`")
    return scale


def sample_size_of(source: ModelSource, config: NetworkConfig) -> int:
    """Side of diffusers' tiles in pixels: the training resolution, rounded up to a multiple of f."""
    return -(-(source.resolution or UNKNOWN_RESOLUTION) // config.factor) * config.factor


def save_statistics(source: ModelSource, statistics: LatentStatistics) -> Path:
    """Writes the statistics beside the model, for the codec and for export; returns the file.

    An exported folder also gets the scale that follows from them.
    """
    if source.folder is None:
        raise ValueError(f"{source.name} is no folder")
    if link := next((name for name in (CONFIG, STATISTICS) if (source.folder / name).is_symlink()), None):
        what = f"{source.folder / link} is a link, as in the Hub's cache"
        raise UserError(what, "copy the model into a folder of your own, or use --json FILE")
    path = source.folder / STATISTICS
    if source.kind in ("diffusers", "native"):
        config = read_config(source.folder)
        kind: ScaleKind = "factor" if config.get("shift_factor") is None else "shift"
        scale = statistics.scale("channel" if config.get("latents_mean") is not None else kind)
        with atomic_file(source.folder / CONFIG) as stage:
            stage.write_text(json.dumps({**config, **scale.to_config()}, indent=2) + "\n")
    statistics.write(path)
    return path


def _earlier_card(folder: Path) -> str | None:
    """README.md of an earlier export in `folder`, or None. Raises UserError if something else is there."""
    refuse_foreign(folder, EXPORTED)
    try:
        card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
    except ValueError as error:
        raise UserError(f"{folder / CARD} is no text in UTF-8", f"move it ({error})") from None
    if (folder / CONFIG).is_file() and not (is_native(read_config(folder)) or (card and WRITTEN_BY in card)):
        raise UserError(f"{folder} holds a model that no export wrote", "give the name of a new folder")
    return card


def _card_of(source: ModelSource) -> str | None:
    """The card of the folder that the model was loaded from; None without one that can be read."""
    path = None if source.folder is None else source.folder / CARD
    try:
        return read_text(path, "put it back") if path is not None and path.is_file() else None
    except (DamagedFile, OSError):  # somebody else's, and not needed
        return None
