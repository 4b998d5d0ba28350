"""Runs what commands do with batches on a device, in a process of its own: one_behind.py DEVICE WORK [OPTION ...].

It prints, as JSON, what came out, and how often the host waited. DEVICE: cpu, or gpu: one that pretends to be one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

if sys.argv[1:2] == ["gpu"]:  # as the device has it, before anything is decorated: its tensors know no inference mode
    torch.inference_mode = torch.no_grad  # type: ignore[misc,assignment]

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import MetricName
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.devices import has_float64
from ldm_vae.diagnostics.comparison import Comparison, CrossFittedPCA
from ldm_vae.diagnostics.inspect import InspectionJob, inspect_codec
from ldm_vae.diagnostics.survey import survey_images
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import measure_batches
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.decode import decoded
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.measure import measure_latents
from ldm_vae.latents.roundtrip import measure_roundtrip
from ldm_vae.metrics.image import ImageMetrics
from ldm_vae.metrics.sets import FeatureSets, SetMetrics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import write_arrays
from tests.latents.jobs import job, run
from tools.stand_in.device import stand_in
from tools.stand_in.record import RECORD
from train.validate import ObservedCodec

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1)
BATCH, BATCHES = 2, 6
WORKSPACE = 8  # values that a convolution takes beside each of its output, on a small card
SPOILED = 3  # of the images of all batches, where one is


def make_codec(device: str, dtype: str) -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False), LatentScale(0.5)).to(device, dtype)


def batches(codec: LatentCodec, spoiled: bool) -> Iterator[Batch]:
    """Smooth images; where one is spoiled, its latent is infinite in any type."""
    generator = torch.Generator().manual_seed(0)
    for number in range(BATCHES):
        coarse = torch.rand(BATCH, 3, 6, 8, generator=generator) * 2 - 1
        image = torch.nn.functional.interpolate(coarse, (48, 63), mode="bilinear")
        if spoiled and number == SPOILED // BATCH:
            image[SPOILED % BATCH] *= 3e38
        yield Batch(image, None, [f"{number}{i}" for i in range(BATCH)], torch.arange(BATCH))


def write_images(folder: Path) -> None:
    """Two shards of so many images that BATCHES are needed; of one padded size, not all of which is padding."""
    generator = np.random.default_rng(0)
    for number in range(2):
        sides = ((40, 54 if i % 3 else 56) for i in range(BATCH * BATCHES // 2))
        arrays = {f"{i}": generator.uniform(-1, 1, (3, *side)).astype(np.float32) for i, side in enumerate(sides)}
        write_arrays(folder / f"{number}.tar", arrays)


def encode(codec: LatentCodec, folder: Path, **changes: Any) -> Path:
    write_images(folder / "shards")
    work: LatentJob = job(codec, batch=BATCH).model_copy(update=changes)
    RECORD.reset()
    run(codec, folder / "shards", folder / "out", work)
    return folder / "out"


def encoded(codec: LatentCodec, folder: Path, *options: str) -> Any:
    out = encode(codec, folder, mirrored="mirrored" in options, latents="sample" if "sample" in options else "moments")
    return [hashlib.sha256((out / f"{number}.tar").read_bytes()).hexdigest() for number in range(2)]


def evaluated(codec: LatentCodec, _: Path, *options: str) -> Any:
    if "psnr" in options:  # whose memory is no more than the image's
        rows = measure_batches(codec, batches(codec, False), ImageMetrics(("psnr",), codec.device))
        return [row.to_json() for row in rows]
    metrics = ImageMetrics(("psnr", "ssim", "ms_ssim", "lpips_vgg"), codec.device)
    features = FeatureSets(SetMetrics(["frechet_vgg16"], codec.device, vgg=metrics.metrics["lpips_vgg"].network))
    sample = 0 if "sample" in options else None
    RECORD.reset()
    rows = measure_batches(codec, batches(codec, "spoiled" in options), metrics, features, sample=sample)
    return [row.to_json() for row in rows], features.spools["vgg16"]._read(0, 99).tolist()


def validated(codec: LatentCodec, _: Path, *options: str) -> Any:
    metrics, observed = ImageMetrics(("psnr", "ssim", "lpips_vgg"), codec.device), ObservedCodec(codec)
    RECORD.reset()
    rows = measure_batches(observed, batches(codec, "spoiled" in options), metrics, observer=observed)
    return [row.to_json() for row in rows], {name: value.tolist() for name, value in observed.sums.items()}


def surveyed(codec: LatentCodec, _: Path, *options: str) -> Any:
    """What `inspect` collects of every image, and what it makes of the others; LPIPS of a few."""
    given, pca = list(batches(codec, "spoiled" in options)), CrossFittedPCA(codec)
    for batch in given:
        pca.add(batch)
    comparison = Comparison(codec, pca, BATCH * BATCHES, seed=0)
    RECORD.reset()
    found = survey_images(codec, given, 0, comparison)
    comparison.measure_sample(lambda count, total: None)
    samples = [sample.rows for sample in (found.positions, found.probes, found.views)]
    powers = [power.density for power in (found.spectrum.latents, found.spectrum.images, found.blur)]
    return {
        "channels": [found.channels.covariance.tolist(), found.channels.kl.tolist(), found.channels.images],
        "powers": [np.nan_to_num(power, nan=-1.0).tolist() for power in powers],
        "scores": [vars(score) for score in found.scores],
        "samples": [None if rows is None else np.stack([*rows]).tolist() for rows in samples],
        "rows": {name: [row.to_json() for row in rows] for name, rows in comparison.rows.items()},
        "broken": [found.broken_posteriors, found.broken_reconstructions],
    }


def inspected(codec: LatentCodec, folder: Path, *_: str) -> Any:
    write_images(folder / "shards")
    batches: Counter[str] = Counter()

    def done(part: str, count: int, total: int) -> None:
        batches[part] += count > 0

    job = InspectionJob(str(folder / "shards"), ImageConfig(), batch=BATCH)
    RECORD.reset()
    inspection = inspect_codec(codec, job, folder / "out", model={}, done=done)
    pictures = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "out").glob("*.png")}
    numbers = {f"{one.name} {n.name}": n.value for one in inspection.sections for n in one.numbers}
    return {"numbers": numbers, "pictures": dict(sorted(pictures.items())), "batches": batches}


def measured(codec: LatentCodec, _: Path, *options: str) -> Any:
    RECORD.reset()
    found = measure_latents(codec, batches(codec, "spoiled" in options))
    assert found.activation is not None
    return found.moments.state().model_dump(), found.activation.model_dump(), found.broken


def pictures(codec: LatentCodec, folder: Path, *_: str) -> Any:
    latents = LatentDataset(encode(codec, folder), scale=LatentScale())
    RECORD.reset()
    found = list(decoded(codec, latents, range(len(latents))))
    return [(item, None if picture is None else picture.tolist()) for item, picture in found]


def stored(codec: LatentCodec, folder: Path, *options: str) -> Any:
    latents = LatentDataset(encode(codec, folder), scale=LatentScale())
    index = load_index(str(folder / "shards"))
    RECORD.reset()
    names: tuple[MetricName, ...] = ("psnr",) if "psnr" in options else ("psnr", "ssim")
    found = measure_roundtrip(codec, latents, index, metrics=names, done=lambda count, total: None)
    return {name: [row.to_json() for row in storage.results.per_image] for name, storage in found.items()}


WORK: dict[str, Callable[..., Any]] = {
    work.__name__: work for work in (encoded, evaluated, validated, measured, surveyed, inspected, pictures, stored)
}


@contextmanager
def small_card(kibibytes: int) -> Iterator[None]:
    """So much memory is free now, and convolutions take WORKSPACE beside, which no estimate counts."""
    convolve, capacity = torch.nn.functional.conv2d, RECORD.capacity

    def greedy(*args: Any, **kwargs: Any) -> torch.Tensor:
        output = convolve(*args, **kwargs)
        torch.empty(WORKSPACE, *output.shape, dtype=output.dtype, device=output.device)
        return output

    torch.nn.functional.conv2d, RECORD.capacity = greedy, RECORD.now + kibibytes * 2**10
    try:
        yield
    finally:
        torch.nn.functional.conv2d, RECORD.capacity = convolve, capacity


def number_of(option: str, options: Sequence[str]) -> int:
    return next((int(one.removeprefix(f"{option}=")) for one in options if one.startswith(f"{option}=")), 0)


class Said(logging.Handler):
    """The warnings of a piece of work."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(device: str, work: str, *options: str) -> None:
    """Options, each of which adds to the undisturbed result.

    refuse=N: that of N tries in each of which one allocation fails.
    card=KIBIBYTES: that with so much free memory, and convolutions that take more than anybody counts.
    """
    torch.set_num_threads(1)
    tries, card = (number_of(option, options) for option in ("refuse", "card"))
    with stand_in() if device == "gpu" else nullcontext():

        def once(refused: int | None = None, kibibytes: int = 0) -> dict[str, Any]:
            codec = make_codec(device, "float64" if tries or card else "float32")
            has_float64(codec.device)  # tried once in a process, which waits
            RECORD.waits.clear()
            RECORD.allocations, RECORD.refuse = -(10**9), refused  # counted from the moment when the work begins
            said = Said()
            logging.getLogger("ldm_vae").addHandler(said)
            with tempfile.TemporaryDirectory() as folder, small_card(kibibytes) if kibibytes else nullcontext():
                try:
                    found = WORK[work](codec, Path(folder), *options)
                except UserError as error:
                    found = str(error)
            logging.getLogger("ldm_vae").removeHandler(said)
            waits = dict(RECORD.waits + RECORD.waits_beside)
            counts = {"waits": waits, "pageable": dict(RECORD.pageable), "made": RECORD.allocations}
            return {"found": found, "said": said.lines, **counts}

        undisturbed = once()
        made = undisturbed["made"]
        refused = np.linspace(1, made, tries, dtype=int).tolist()
        others = [once(number) for number in refused] + ([once(kibibytes=card)] if card else [])
        print(json.dumps([undisturbed, *others]))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
