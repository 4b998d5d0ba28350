"""Runs all diagnostics of a codec on shards, and writes a folder of inspection.json, PNGs and scores.csv."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ldm_vae.arithmetic import exact_float32
from ldm_vae.atomic import atomic_folder, require_writable_folder
from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.data.images.fit import ImageConfig, describe_resize
from ldm_vae.data.shards.index import Index, load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.data.stream.worker import Fault
from ldm_vae.diagnostics.activations import inspect_activations
from ldm_vae.diagnostics.aggregate import inspect_aggregate
from ldm_vae.diagnostics.anomaly import SCORES_FILE, inspect_anomaly, write_scores
from ldm_vae.diagnostics.blur import inspect_blur
from ldm_vae.diagnostics.channels import inspect_channels
from ldm_vae.diagnostics.classes import class_names, scatter
from ldm_vae.diagnostics.comparison import Comparison, CrossFittedPCA
from ldm_vae.diagnostics.equivariance import inspect_equivariance
from ldm_vae.diagnostics.explore import PICTURES, explore
from ldm_vae.diagnostics.findings import (
    IMAGES_INSPECTED,
    INSPECTION_FILE,
    Inspection,
    Quantity,
    Section,
    Verdict,
)
from ldm_vae.diagnostics.probes import Done as PartDone
from ldm_vae.diagnostics.probes import Probes, make_probes
from ldm_vae.diagnostics.reconstruction import inspect_reconstruction
from ldm_vae.diagnostics.robustness import inspect_robustness
from ldm_vae.diagnostics.smoothness import inspect_smoothness
from ldm_vae.diagnostics.spectrum import inspect_spectrum
from ldm_vae.diagnostics.survey import Survey, survey_images
from ldm_vae.errors import UserError
from ldm_vae.extras import require
from ldm_vae.noise import rng
from ldm_vae.passwords import keep_aside
from ldm_vae.printable import counted

logger = logging.getLogger(__name__)
Done = Callable[[str, int, int], None]


@dataclass(frozen=True)
class InspectionJob:
    """What to inspect.

    shards: the images.
    image: how they are resized and cropped.
    images: how many at most; the seed chooses them at random.
    against: shards of a second set of images, for the anomaly scores.
    batch: images of one size that are encoded at a time.
    seed: seed of every random choice.
    """

    shards: str
    image: ImageConfig
    images: int = IMAGES_INSPECTED
    against: str | None = None
    batch: int = 8
    seed: int = 0


@exact_float32()
def inspect_codec(
    codec: LatentCodec,
    job: InspectionJob,
    folder: Path,
    *,
    model: dict[str, Any],
    done: Done = lambda part, count, total: None,
) -> Inspection:
    """Writes `folder`, whole or not at all.

    model: what the protocol says of the codec.
    done(part, count, total): called at the start of each part of the work, and after each `count` of its images.

    Raises UserError where no image can be encoded, where `folder` holds something else than an inspection, and
    where the extra `metrics` is not installed (MissingExtra).
    """
    require("metrics", "inspect")
    config = codec.model.config
    if config.in_channels != config.out_channels:
        what = f"a codec from {config.in_channels} to {config.out_channels} channels"
        raise UserError(what, "only a codec that gives back its own image can be inspected")
    job = replace(job, shards=keep_aside(job.shards), against=None if job.against is None else keep_aside(job.against))
    ours = (INSPECTION_FILE, SCORES_FILE, *PICTURES)
    require_writable_folder(folder, ours)
    indices = [_choose(load_index(shards), job) for shards in (job.shards, job.against) if shards is not None]
    comparison = Comparison(codec, _fit_pca(codec, indices[0], job, done), indices[0].samples, job.seed)
    images, faults = _survey_shards(codec, indices[0], job, done, comparison)
    if not images.channels.images:
        broken = [f"{fault.key} ({fault.reason})" for fault in faults] + images.broken_posteriors
        what = f"no image of {job.shards} could be encoded"
        raise UserError(what, f"{len(broken)} are broken or give no finite latent, such as {broken[0]}")
    others = None if job.against is None else _survey_shards(codec, indices[1], job, done)[0]
    comparison.measure_sample(partial(done, "SSIM and LPIPS"))
    probes, views = (
        make_probes(codec, [] if sample.rows is None else list(sample.rows), images.channels.std)
        for sample in (images.probes, images.views)
    )
    gaussian = codec.model.bottleneck.gaussian
    protocol = model | _protocol(codec, job, images, others, probes, len(faults))
    with atomic_folder(folder, ours=ours) as stage:
        sections = (
            inspect_reconstruction(codec, comparison),
            _images(images, faults),
            *_posterior_sections(codec, images, job.seed),
            inspect_spectrum(images.spectrum, gaussian=gaussian),
            inspect_blur(images.blur, gaussian=gaussian),
            *_probed(codec, job, images, probes, views, stage, done),
            inspect_anomaly(images.scores, None if others is None else others.scores, job.against),
        )
        if images.scores:
            second = [] if others is None else [(str(job.against), others.scores)]
            write_scores(stage / SCORES_FILE, [(job.shards, images.scores), *second])
        inspection = Inspection(protocol=protocol, sections=sections)
        inspection.write(stage)
    return inspection


def _choose(index: Index, job: InspectionJob) -> Index:
    """At most `job.images` samples of the index; every sample is equally likely."""
    if index.samples <= job.images:
        return index
    chosen = np.zeros(index.samples, dtype=bool)
    chosen[rng(job.seed, "inspected images").choice(index.samples, job.images, replace=False)] = True
    ends = np.cumsum(index.counts)
    parts = zip(index.shards, np.split(chosen, ends[:-1]), strict=True)
    kept = tuple(shard.subset(mine) for shard, mine in parts if mine.any())
    return replace(index, shards=kept, parts=tuple(replace(part, first=0, stop=len(kept)) for part in index.parts))


def _batches(
    codec: LatentCodec, index: Index, job: InspectionJob, done: Done, part: str, faults: list[Fault]
) -> Iterator[Batch]:
    """The images; those that cannot be read are added to `faults`."""
    done(part, 0, index.samples)
    stream = measured_batches(index, job.shards, job.image, batch=job.batch, device=codec.device, rank=0, world=1)
    for batch in stream:
        yield batch
        done(part, len(batch.key), index.samples)
    faults += stream.faults


def _fit_pca(codec: LatentCodec, index: Index, job: InspectionJob, done: Done) -> CrossFittedPCA:
    pca = CrossFittedPCA(codec)
    for batch in _batches(codec, index, job, done, "fitting PCA", []):
        pca.add(batch)
    return pca


def _survey_shards(
    codec: LatentCodec, index: Index, job: InspectionJob, done: Done, comparison: Comparison | None = None
) -> tuple[Survey, list[Fault]]:
    faults: list[Fault] = []
    part = "second set" if comparison is None else "reconstructing"
    return survey_images(codec, _batches(codec, index, job, done, part, faults), job.seed, comparison), faults


def _probed(
    codec: LatentCodec,
    job: InspectionJob,
    images: Survey,
    probes: Probes | None,
    views: Probes | None,
    stage: Path,
    done: Done,
) -> list[Section]:
    """The sections that are measured on probes. Where one cannot be measured, a verdict in its place says why."""
    makers: dict[str, tuple[str, Callable[[Probes, PartDone], Section]]] = {
        "equivariance": ("Equivariance", partial(inspect_equivariance, codec)),
        "smoothness": ("Smoothness", lambda p, d: inspect_smoothness(codec, p, job.seed, d)),
        "robustness": ("Noise and storage", lambda p, d: inspect_robustness(codec, p, job.seed, d)),
        "activations": ("Range of activations", partial(inspect_activations, codec)),
        "explore": ("A look around", lambda p, d: explore(codec, views or p, p, images.channels, stage, job.seed, d)),
    }
    sections = []
    for name, (title, make) in makers.items():
        if probes is None:
            reason = "It cannot be measured: no image that was reconstructed is large enough (4 f pixels a side)."
            sections.append(_unmeasured(name, title, "unknown", reason))
            continue
        done(title.lower(), 0, len(probes.image))  # at least so many; the part itself tells how many
        try:
            sections.append(make(probes, partial(done, title.lower())))
        except NonFiniteError as error:
            sections.append(_unmeasured(name, title, "bad", f"It cannot be measured: {error.what} on the way."))
    sections[-1] = sections[-1].model_copy(update=_labelled(images, job))
    return sections


def _posterior_sections(codec: LatentCodec, images: Survey, seed: int) -> list[Section]:
    """The sections that need Gaussian posteriors. Where the codec has none, they say so."""
    if not codec.model.bottleneck.gaussian:
        kind = codec.model.config.bottleneck.kind
        reason = f"Not measured, because a bottleneck of kind {kind} has no Gaussian posterior."
        titles = {"channels": "Channels", "aggregate_posterior": "Aggregate posterior"}
        return [_unmeasured(name, title, "unknown", reason) for name, title in titles.items()]
    aggregate = inspect_aggregate(images.channels, images.positions.rows, codec.scale, seed)
    return [inspect_channels(images.channels), aggregate]


def _unmeasured(name: str, title: str, level: Literal["bad", "unknown"], reason: str) -> Section:
    advice = (
        "See the range of activations, and the images without a finite latent or reconstruction."
        if level == "bad"
        else ""
    )
    verdict = Verdict(name=name, level=level, statement=reason, advice=advice)
    return Section(name=name, title=title, verdicts=(verdict,))


def _labelled(images: Survey, job: InspectionJob) -> dict[str, Any]:
    """What the images with a class add to the section of pictures."""
    rows = images.labelled.rows
    number = Quantity(
        name="labelled", title="Images with a class", value=float(len(images.labelled)), unit="images",
        definition="Images with a number in the field cls; where there are many, a random choice of them. From three "
        "images on, a chart shows their mean latents by class.",
    )  # fmt: skip
    chart = None if rows is None else scatter(rows[:, 1:], rows[:, 0].astype(np.int64), class_names(job.shards))
    return {"numbers": (number,), "charts": () if chart is None else (chart,)}


def _images(images: Survey, faults: list[Fault]) -> Section:
    counts = {
        "images": ("Images", images.images, "Images that were read from the shards and encoded."),
        "unreadable": ("Unreadable files", len(faults), "Left out, because their files cannot be decoded or cropped."),
        "broken_posteriors": (
            "Images without a finite latent", len(images.broken_posteriors), "Left out of every measurement.",
        ),
        "broken_reconstructions": (
            "Images without a finite reconstruction", len(images.broken_reconstructions),
            "Left out of every measurement of reconstructions.",
        ),
    }  # fmt: skip
    numbers = tuple(
        Quantity(name=name, title=title, value=float(value), unit="images", definition=definition)
        for name, (title, value, definition) in counts.items()
    )
    broken = images.broken_posteriors + images.broken_reconstructions
    verdict = Verdict(
        name="finite", level="good", statement=f"{images.images} of {images.images} reconstructions are finite."
    )
    if broken:
        verdict = Verdict(
            name="finite",
            level="bad",
            statement=f"{len(broken)} of {images.images} images, such as {broken[0]}, give NaN or infinity. They are "
            "left out.",
            advice="Look at these images (`ldm-vae check --decode`) and at the range of activations. Run the codec in "
            "float32. Weights that contain NaN come from a run that broke: take an older checkpoint.",
        )
    return Section(name="images", title="Images", numbers=numbers, verdicts=(verdict,))


def _protocol(
    codec: LatentCodec, job: InspectionJob, images: Survey, others: Survey | None, probes: Probes | None, faults: int
) -> dict[str, Any]:
    probed = "none"
    if probes is not None:
        probed = (
            f"the middle {probes.image.shape[2]} px of {counted(len(probes.image), 'image')}, for everything that is "
            "decoded repeatedly"
        )
    image = job.image
    return {
        "shards": job.shards,
        "against": job.against,
        "images": images.images,
        "against_images": None if others is None else len(others.scores),
        "chosen": f"all, or {job.images} at random, seed {job.seed}",
        "left_out": faults + len(images.broken_posteriors) + len(images.broken_reconstructions),
        "resize": describe_resize(image),
        "crop": "none" if image.crop is None else f"center {image.crop}",
        "padding": "to a multiple of f, cropped back",
        "latent": "mode",
        "rounding": "clamped to [-1, 1] and rounded to 8 bits, reconstruction and original alike",
        "probes": probed,
        "scale": None if codec.scale is None else codec.scale.to_config(),
    }
