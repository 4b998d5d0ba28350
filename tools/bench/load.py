"""Measures how fast images come from shards as batches: our stream, beside a plain pipeline of webdataset.

    python -m tools.bench load                              photographs of LDM_VAE_TEST_DATA, one worker and two
    python -m tools.bench load shards/train --workers 8 --json load.json
    python -m tools.bench load --jpeg-scaling               with that field, and the error that it makes

The pipeline is the one that people write: Pillow decodes, torchvision resizes, crops, flips and normalises, a WebLoader
collates in workers. torchvision resizes in 8 bits with its default, bilinear filter, which is cheaper than the bicubic
of a recipe in floats. Both get the same shards, sizes, batch and number of workers, and take turns; a ratio is taken
within a round, so that other work on the machine does not decide it. Nobody trains meanwhile.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
import webdataset
from torchvision import transforms

from ldm_vae import UserError
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import EXTENSIONS
from ldm_vae.data.images.prepare import prepare_image
from ldm_vae.data.shards.index import Index, SourceConfig, load_index
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.data.stream.reader import DataConfig, train_batches
from ldm_vae.waiting import usable_cores

SETS = ("imagenet800-256", "imagenet160-original")  # under LDM_VAE_TEST_DATA
WARM_UP = 8  # batches that are not timed: workers start, and fill what is made ahead
SHUFFLED = 100  # samples in the buffer of webdataset


class Speed(NamedTuple):
    """Of one pass over some batches.

    rate: images per second.
    cost: milliseconds of processors for an image, over all processes.
    """

    rate: float
    cost: float


def bench_load(
    shards: Annotated[list[str] | None, typer.Argument(help="Shards; left out: those of LDM_VAE_TEST_DATA.")] = None,
    workers: Annotated[list[int] | None, typer.Option(help="Workers, a row each. [1 and 2]")] = None,
    resize: Annotated[int, typer.Option(help="Short side in pixels.")] = 256,
    crop: Annotated[int, typer.Option(help="Side of the random square, in pixels.")] = 128,
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    images: Annotated[int, typer.Option(help="Images that are timed in a round.")] = 800,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each; medians are printed.")] = 5,
    jpeg_scaling: Annotated[bool, typer.Option(help="Decode large JPEGs at a fraction of their size.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
) -> None:
    """Measure how fast images come as batches: our stream, beside plain webdataset."""
    image = ImageConfig(resize=resize, crop=crop, flip=True, jpeg_scaling=jpeg_scaling)
    rows: list[dict[str, Any]] = []
    print(f"{usable_cores():g} usable cores; load before: {os.getloadavg()[0]:.1f}\n")
    print("| shards | workers | images/s | webdataset | ratio | to one worker | CPU ms an image | webdataset |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for place in shards or _photographs():
        index = load_index(place)
        for row in measure_set(index, sorted(set(workers or (1, 2))), image, batch, images, rounds):
            rows.append({"shards": Path(place).name, **row})
            print("| {} |".format(" | ".join(_cells(rows[-1]))), flush=True)
        if jpeg_scaling:
            rows[-1] |= scaling_error(index, image)
            print(
                f"\n{rows[-1]['scaled']} of {index.samples} pictures decoded at a fraction of their size: PSNR to the "
                f"exact resize {rows[-1]['mean_psnr']:.1f} dB on average, {rows[-1]['least_psnr']:.1f} dB at worst\n"
            )
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


def measure_set(
    index: Index, workers: list[int], image: ImageConfig, batch: int, images: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each number of workers: medians over the rounds, in which all of them take turns."""
    found = [
        {
            count: tuple(_speed(each, index, image, batch, count, images) for each in (our_batches, plain_batches))
            for count in workers
        }
        for _ in range(rounds)
    ]
    for count in workers:
        ours, theirs = zip(*(one[count] for one in found), strict=True)
        yield {
            "workers": count,
            "images_per_second": statistics.median(speed.rate for speed in ours),
            "webdataset_images_per_second": statistics.median(speed.rate for speed in theirs),
            "ratio_webdataset": statistics.median(a.rate / b.rate for a, b in zip(ours, theirs, strict=True)),
            "ratio_fewest_workers": statistics.median(one[count][0].rate / one[workers[0]][0].rate for one in found),
            "cpu_milliseconds": statistics.median(speed.cost for speed in ours),
            "webdataset_cpu_milliseconds": statistics.median(speed.cost for speed in theirs),
        }


def scaling_error(index: Index, image: ImageConfig) -> dict[str, float]:
    """How many pictures are decoded at a fraction of their size, and their PSNR in dB to the exact resize."""
    exact, ratios = image.model_copy(update={"jpeg_scaling": False}), []
    for shard in index.shards:
        for _, fields in read_samples(shard):
            if isinstance(fields, str):  # why the sample can't be read
                continue
            ((extension, data),) = [item for item in fields.items() if item[0] in EXTENSIONS]
            first, second = (
                prepare_image(data, extension, config, np.random.default_rng(0)).floats() for config in (image, exact)
            )
            if (error := float(np.mean(np.square(first - second, dtype=np.float64)))) > 0:
                ratios.append(10 * math.log10(4 / error))  # the range of [-1, 1], squared
    if not ratios:
        return {"scaled": 0, "mean_psnr": math.inf, "least_psnr": math.inf}
    return {"scaled": len(ratios), "mean_psnr": statistics.mean(ratios), "least_psnr": min(ratios)}


Batches = Callable[[Index, ImageConfig, int, int], Any]  # (index, image, batch, workers) -> context of an iterator


@contextmanager
def our_batches(index: Index, image: ImageConfig, batch: int, workers: int) -> Iterator[Iterator[Any]]:
    """Batches of the trainer's stream, without end."""
    config = DataConfig(train=(SourceConfig(shards=""),), batch=batch, workers=workers, image=image)
    batches = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    try:
        yield batches
    finally:
        batches.close()


@contextmanager
def plain_batches(index: Index, image: ImageConfig, batch: int, workers: int) -> Iterator[Iterator[Any]]:
    """Batches of a plain pipeline, without end."""
    assert image.resize is not None and image.crop is not None
    prepare = transforms.Compose(
        [
            transforms.Resize(image.resize),
            transforms.RandomCrop(image.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    urls = [shard.url for shard in index.shards]
    samples = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(SHUFFLED).decode("pil")
    samples = samples.to_tuple("jpg;jpeg;png;webp", "cls").map_tuple(prepare, int).batched(batch)
    loader = webdataset.WebLoader(samples, batch_size=None, num_workers=workers)
    batches = iter(loader)
    try:
        yield batches
    finally:
        del batches, loader


def _speed(contender: Batches, index: Index, image: ImageConfig, batch: int, workers: int, images: int) -> Speed:
    count = max(1, images // batch)
    with contender(index, image, batch, workers) as batches:
        for _ in itertools.islice(batches, WARM_UP):
            pass
        start, cpu = time.perf_counter(), _cpu_seconds()
        for _ in itertools.islice(batches, count):
            pass
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    return Speed(count * batch / seconds, 1e3 * cpu / (count * batch))


def _cpu_seconds() -> float:
    """User and system time of this process and of its workers, as Linux counts it."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _photographs() -> list[str]:
    root = os.environ.get("LDM_VAE_TEST_DATA")
    if root is None:
        raise UserError("no shards to load", "name some, or the folder of the photographs in LDM_VAE_TEST_DATA")
    return [f"{root}/data/{name}" for name in SETS]


def _cells(row: dict[str, Any]) -> list[str]:
    shards, workers, *speeds = row.values()
    return [shards, str(workers), *(f"{speed:.0f}" if speed > 20 else f"{speed:.2f}" for speed in speeds)]
