"""`ldm-vae evaluate`: measures codecs and baselines on shards, and compares them."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ldm_vae.atomic import atomic_file
from ldm_vae.choices import IMAGE_METRICS, SET_METRICS, USUAL_IMAGE_METRICS, USUAL_SET_METRICS, PublishedProtocol
from ldm_vae.cli.options import BatchSize, Crop, Json, Precision, Resize, Shards, image_config
from ldm_vae.errors import UserError
from ldm_vae.extras import require
from ldm_vae.launch import refuse_one_for_several
from ldm_vae.passwords import without_secrets
from ldm_vae.printable import say
from ldm_vae.progress import ProgressMeter
from ldm_vae.ranks import local_device, rank_and_world

if TYPE_CHECKING:
    from ldm_vae.codec import LatentCodec
    from ldm_vae.evaluation.baselines import Baseline
    from ldm_vae.evaluation.entries import Entries, Entry
    from ldm_vae.evaluation.evaluate import ImageCodec, Metrics
    from ldm_vae.evaluation.results import EvaluationProtocol, Results
    from ldm_vae.interop.load import ModelSource

    Measure = Callable[[str, ImageCodec, EvaluationProtocol], Results]  # of the name that is shown meanwhile


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs, checkpoints, exported folders or Hub ids; all are measured on the same images.",
        ),
    ],
    shards: Shards,
    protocol: Annotated[
        PublishedProtocol | None,
        typer.Option(help="Prepare, round and measure as this project's own script does, at 256 x 256."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="pca|pca=SHARDS|jpeg|webp",
            help="Measure a baseline of the first model's rate, too: PCA of patches, fitted on SHARDS or on what the "
            "model was trained on; JPEG or WebP of as many bytes as the latent at 16 bit. May be given several times.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help=f"Measure only these: {', '.join((*IMAGE_METRICS, *SET_METRICS))}."),
    ] = None,
    latent: Annotated[
        Literal["mode", "sample"] | None,
        typer.Option(
            help="What of the posterior is decoded, the mode if not said. A sample's noise depends on seed and key."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of posterior samples.")] = 0,
    precision: Precision = "float32",
    inception: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Inception's weights for rfid and kid; without it they are fetched."),
    ] = None,
    resize: Resize = None,
    crop: Crop = None,
    batch: BatchSize = 8,
    json: Json = None,
) -> None:
    """Measure how well codecs reconstruct the images of some shards.

    Decodes the posterior's mode at the size of each image, and measures 8-bit values; prints means over images. The
    first of several codecs is compared with each other one, image by image. What is measured on a run is kept in its
    results.json. Under `accelerate launch` or torchrun the processes share the images.
    """
    from ldm_vae.codec import LatentCodec
    from ldm_vae.evaluation.baselines import choose_baseline
    from ldm_vae.evaluation.entries import Entries
    from ldm_vae.evaluation.evaluate import Metrics, check_latent
    from ldm_vae.evaluation.protocols import published_protocol
    from ldm_vae.evaluation.results import EvaluationProtocol

    require("metrics", "evaluate")
    refuse_one_for_several(rank_and_world()[1], local_device())
    named = [*models, *(name.partition("=")[0] for name in baseline or ())]
    if repeated := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"{', '.join(repeated)} is named twice", "name each codec once")
    codecs = [LatentCodec.load(model, device=local_device(), dtype=precision) for model in models]
    files = _files([codec.source for codec in codecs], json)
    channels = _channels(codecs)
    if protocol is None:
        image = image_config(channels, resize, crop)
        chosen = EvaluationProtocol(image=image, metrics=_metrics(metrics), latent=latent or "mode", seed=seed)
    else:
        _refuse_beside_protocol(protocol, resize=resize, crop=crop, metrics=metrics, latent=latent)
        chosen = published_protocol(protocol, channels=channels, seed=seed)
    protocols = [_for_codec(chosen, codec, published=protocol is not None) for codec in codecs]
    for codec, one in zip(codecs, protocols, strict=True):  # before hours of measuring the first
        check_latent(codec, one)
    baselines = {name: choose_baseline(name, codecs[0], chosen.image) for name in baseline or ()}
    measures = Metrics(chosen, codecs[0].device, inception_file=inception)

    measure = partial(_measure, shards=shards, batch=batch, metrics=measures)
    entries = _measure_models(codecs, protocols, files, measure) + _measure_baselines(baselines, chosen, measure)
    if rank_and_world()[0] == 0:
        _show(Entries(entries), json)


def _files(sources: list[ModelSource], json: Path | None) -> list[Path | None]:
    """Where the results of each codec are kept; None, with a word for a run's, where they are not."""
    from ldm_vae.evaluation.store import reason_not_to_write, refuse_results_of_others, results_file

    files = [results_file(source) for source in sources]
    if json is not None:
        refuse_results_of_others(json, [file for file in files if file is not None])
    for place, file in enumerate(files):
        if file is not None and (reason := reason_not_to_write(file)) is not None:
            if rank_and_world()[0] == 0:
                say(f"{file} will not be written: {reason}", error=True)
            files[place] = None
    return files


def _measure_models(
    codecs: list[LatentCodec], protocols: list[EvaluationProtocol], files: list[Path | None], measure: Measure
) -> list[Entry]:
    """An entry for each codec, to be kept in its file if it has one."""
    from ldm_vae.bottlenecks.scale import LatentScale
    from ldm_vae.evaluation.entries import Entry
    from ldm_vae.evaluation.evaluate import describe_codec

    entries = []
    for codec, protocol, file in zip(codecs, protocols, files, strict=True):
        codec.scale = codec.scale or LatentScale()  # reconstruction needs no scale
        results = measure(codec.source.name, codec, protocol)
        results = replace(results, protocol=describe_codec(codec) | results.protocol)
        entries.append(Entry(codec.source.name, "model", results, file))
    return entries


def _measure_baselines(
    baselines: Mapping[str, Baseline], protocol: EvaluationProtocol, measure: Measure
) -> list[Entry]:
    """An entry for each baseline, by what --baseline calls it."""
    from ldm_vae.evaluation.entries import Entry

    protocol = protocol.model_copy(update={"latent": "mode"})  # a baseline has no posterior
    entries = []
    for wanted, codec in baselines.items():
        name = wanted.partition("=")[0]
        results = measure(name, codec, protocol)
        results = replace(results, protocol={"model": without_secrets(wanted)} | results.protocol | codec.describe())
        entries.append(Entry(name, "baseline", results))
    return entries


def _measure(
    name: str, codec: ImageCodec, protocol: EvaluationProtocol, *, shards: str, batch: int, metrics: Metrics
) -> Results:
    from ldm_vae.evaluation.evaluate import evaluate_shards

    with ProgressMeter("image", f"{name}: reconstructing") as progress:
        return evaluate_shards(codec, shards, protocol, batch=batch, metrics=metrics, done=progress.advance)


def _show(entries: Entries, json: Path | None) -> None:
    """Writes what is kept, and prints the tables: the numbers, the protocol, and last who is better."""
    from ldm_vae.cli.evaluation_table import print_comparisons, print_metrics, print_protocol

    files = _write(entries, json)
    columns = {entry.name: entry.results for entry in entries.entries}
    print_metrics(columns)
    print_protocol(columns, files)
    first, *others = entries.entries
    comparisons = {other.name: entries.compared(0, place) for place, other in enumerate(others, start=1)}
    print_comparisons(first.name, comparisons, len(first.results.per_image))


def _write(entries: Entries, json: Path | None) -> list[Path]:
    """Keeps each run's results in the run, and writes `json`; returns the files."""
    from ldm_vae.evaluation.store import keep

    kept = [(place, entry.kept_in) for place, entry in enumerate(entries.entries) if entry.kept_in is not None]
    if json is not None and json.resolve() not in {file.resolve() for _, file in kept}:
        with atomic_file(json) as stage:
            stage.write_text(json_format.dumps(entries.to_json(), indent=1) + "\n")
    for place, file in kept:
        keep(file, entries.to_json(place))
    return list(dict.fromkeys([*(file for _, file in kept), *([] if json is None else [json])]))


def _channels(codecs: list[LatentCodec]) -> int:
    """The number of image channels, which all codecs must share."""
    channels = {codec.model.config.in_channels: codec.source.name for codec in codecs}
    if len(channels) > 1:
        which = ", ".join(f"{count} ({name})" for count, name in channels.items())
        raise UserError(f"the codecs are for images of different channels: {which}", "evaluate them one at a time")
    return next(iter(channels))


def _refuse_beside_protocol(protocol: str, **options: str | None) -> None:
    """Raises UserError for an option whose value the protocol fixes."""
    for name, value in options.items():
        if value is not None:
            raise UserError(
                f"--{name} {value} beside --protocol {protocol}", f"the protocol fixes it; leave out --{name}"
            )


def _for_codec(protocol: EvaluationProtocol, codec: LatentCodec, *, published: bool) -> EvaluationProtocol:
    """A published protocol that samples a posterior decodes the latent of a codec that has none, as its script does."""
    if published and not codec.model.bottleneck.random:
        return protocol.model_copy(update={"latent": "mode"})
    return protocol


def _metrics(names: str | None) -> tuple[Any, ...]:
    known = (*IMAGE_METRICS, *SET_METRICS)
    usual = (*USUAL_IMAGE_METRICS, *USUAL_SET_METRICS)
    chosen = usual if names is None else tuple(name.strip() for name in names.split(","))
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"--metrics {names}: there is no {unknown[0]!r}", f"choose from {', '.join(known)}")
    return chosen
