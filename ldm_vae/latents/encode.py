"""Encodes shards of images to shards of latents, one after the other. Reading, encoding and writing overlap.

Each of n processes takes every n-th shard. A finished shard gets its name in one rename and is then recorded. So a
killed job loses only the shards it was writing, and a second run writes them to the same bytes: batches never cross
shards, and what is stored depends on neither the time nor the process. A lock ensures that a shard has one writer. The
process that finishes last writes the totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout

from ldm_vae.atomic import explain_disk_errors
from ldm_vae.codec import LatentCodec
from ldm_vae.data.shards.index import Index
from ldm_vae.errors import UserError
from ldm_vae.latents.format import (
    LatentJob,
    LatentKind,
    LatentSample,
    LatentsFile,
    ShardRecord,
    lock_path,
    open_job,
    read_records,
    write_latent_shard,
    write_latents_file,
    write_record,
)
from ldm_vae.latents.prefetch import in_thread
from ldm_vae.latents.stream import EncodedSample, decoded, each_batch, encoded
from ldm_vae.metrics.latent import LatentMoments, LatentStatistics


def encode_shards(
    codec: LatentCodec,
    index: Index,
    folder: Path,
    job: LatentJob,
    *,
    workers: int,
    rank: int,
    world: int,
    done: Callable[[int, int], None],
) -> None:
    """Makes the latent shards that are missing in `folder`.

    workers: threads that decode pictures.
    rank: number of this process.
    world: number of processes.
    done(images, total): called as images are written.
    Raises UserError if the folder holds other latents, if something else writes to it, if two shards have one name, if
    a shard can't be read, or if the disk is full.
    """
    names = _names(index)
    sizes = {name: shard.size for name, shard in zip(names, index.shards, strict=True)}
    open_job(folder, job)
    missing = _unfinished(sizes, read_records(folder))
    share = list(zip(names, index.shards, strict=True))[rank::world]
    mine = [(name, shard) for name, shard in share if name in missing]
    total = sum(shard.samples for _, shard in mine)
    done(0, total)
    with (
        ThreadPoolExecutor(workers) as pool,
        each_batch(codec.device) as each,
        closing(in_thread(decoded([shard for _, shard in mine], job, pool, 2 * workers), depth=2)) as pictures,
        closing(in_thread(encoded(codec, job, pictures, each), depth=2 * job.batch)) as latents,
    ):
        for number, samples in groupby(latents, key=lambda pair: pair[0]):
            name, shard = mine[number]
            with _only_writer(folder, name):
                _write_latent_shard(
                    folder, name, shard.size, job, (sample for _, sample in samples), lambda: done(1, total)
                )
    records = read_records(folder)
    missing = _unfinished(sizes, records)
    if lost := [name for name, _ in share if name in missing]:
        remedy = (
            "something else writes or removes files there; give each set of shards its own folder, then run this again"
        )
        raise UserError(f"{folder / lost[0]} is no longer what was written there", remedy)
    if not missing:
        _finish(codec, folder, records, job)


def _unfinished(sizes: Mapping[str, int], records: Mapping[str, ShardRecord]) -> set[str]:
    """Names of the shards that are not finished.

    sizes: name -> bytes of the shard of images.
    """
    return {name for name, size in sizes.items() if name not in records or records[name].bytes != size}


@contextmanager
def _only_writer(folder: Path, name: str) -> Iterator[None]:
    """Locks a shard; the lock ends with the process, however it ends. Raises UserError if another process writes it."""
    try:
        with explain_disk_errors(folder / name):
            lock = FileLock(lock_path(folder, name), timeout=0).acquire()
    except Timeout:
        remedy = (
            "wait until it has ended; processes that share the work out are started by torchrun or accelerate launch"
        )
        raise UserError(f"another process is writing {folder / name}", remedy) from None
    with lock:
        yield


def _names(index: Index) -> list[str]:
    """The names of the latent shards: those of the shards of images, or numbers for the parts of a folder of images."""
    names = [
        Path(shard.url).name if shard.files is None else f"{number:06d}.tar"
        for number, shard in enumerate(index.shards)
    ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two shards are called {twice[0]}", "encode one folder after the other, each into its own")
    return names


def _write_latent_shard(
    folder: Path, name: str, size: int, job: LatentJob, samples: Iterable[EncodedSample], one_done: Callable[[], None]
) -> None:
    """Writes one shard and its record.

    size: bytes of the shard of images.
    """
    moments = LatentMoments(job.channels)
    sizes: dict[str, tuple[int, int]] = {}
    quarantined: list[tuple[str, str]] = []

    def whole() -> Iterator[LatentSample]:
        for sample in samples:
            if sample.arrays is None or sample.z is None:
                quarantined.append((sample.key, sample.reason))
            else:
                moments.update(sample.z[None])
                sizes[sample.key] = sample.size
                yield LatentSample(sample.key, sample.arrays, sample.fields)
            one_done()

    write_latent_shard(folder / name, whole())
    record = ShardRecord(
        name=name,
        bytes=size,
        keys=tuple(sizes),
        sizes=tuple(sizes.values()),
        quarantined=tuple(quarantined),
        statistics=moments.state(),
    )
    write_record(folder, record)


def _finish(codec: LatentCodec, folder: Path, records: Mapping[str, ShardRecord], job: LatentJob) -> None:
    """Writes the totals of all shards. Several processes may find the last shard finished; they write the same."""
    moments = LatentMoments(job.channels)
    for record in records.values():
        moments.merge(LatentMoments.from_state(record.statistics))
    if not moments.images:
        first = next((item for record in records.values() for item in record.quarantined), ("", ""))
        raise UserError(f"none of the images could be encoded, such as {first[0]} ({first[1]})", "mend the shards")
    statistics = LatentStatistics.of(
        moments,
        codec=job.codec,
        latents="sample" if job.latents == "sample" else "mode",
        protocol={"resize": job.resize, "resize_filter": job.resize_filter, "crop": job.crop, "multiple": job.multiple},
        data=", ".join(records),
    )
    scale = codec.scale or statistics.scale("factor")
    content = LatentsFile(
        complete=True,
        job=job,
        samples=moments.images,
        scale=scale.to_config(),
        statistics=statistics.model_dump(mode="json"),
        shards={name: len(record.keys) for name, record in records.items()},
        sizes={name: dict(zip(record.keys, record.sizes, strict=True)) for name, record in records.items()},
        quarantined={name: dict(record.quarantined) for name, record in records.items() if record.quarantined},
    )
    write_latents_file(folder, content)


def latent_job(
    codec: LatentCodec,
    *,
    latents: LatentKind,
    mirrored: bool,
    resize: int | None,
    crop: int | None,
    multiple: int | None,
    batch: int,
    keep_image: bool,
    seed: int,
) -> LatentJob:
    """The job that these options describe.

    Raises UserError if `multiple` is not a multiple of f, and for moments or samples that the codec does not have.
    """
    factor = codec.factor
    if multiple is not None and multiple % factor:
        raise UserError(f"--multiple {multiple}", f"give a multiple of f, which is {factor} for this codec")
    bottleneck, kind = codec.model.bottleneck, codec.model.config.bottleneck.kind
    for asked, there in (("moments", bottleneck.gaussian), ("sample", bottleneck.random)):
        if latents == asked and not there:
            raise UserError(f"a {kind} bottleneck has no {asked}", "store its latents with --latents mode")
    return LatentJob(
        codec=codec.weights_hash,
        factor=factor,
        channels=codec.latent_channels,
        logvar_range=bottleneck.logvar_range,
        latents=latents,
        mirrored=mirrored,
        image_channels=codec.model.config.in_channels,
        resize=resize,
        crop=crop,
        multiple=multiple or factor,
        precision=codec.precision,
        batch=batch,
        keep_image=keep_image,
        seed=seed,
    )
