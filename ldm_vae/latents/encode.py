"""Encodes shards of images to shards of latents, one after the other. Reading, encoding and writing overlap.

Each of n processes takes every n-th shard. A finished shard gets its name in one rename and is then recorded. So a
killed job loses only the shards it was writing, and a second run on the same CPU writes them to the same bytes:
batches never cross shards, and what is stored depends on neither the time nor the process. A lock ensures that a
shard has one writer. The process that finishes last writes the totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch

from ldm_vae.arithmetic import EXACT
from ldm_vae.atomic import explain_disk_errors
from ldm_vae.codec import LatentCodec
from ldm_vae.data.shards.disk import status
from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.shard import ShardIndex
from ldm_vae.errors import UserError
from ldm_vae.latents.fields import FIELDS, count_fields, total_of
from ldm_vae.latents.folder import (
    LatentSample,
    describe_file,
    finished_shard,
    lock_path,
    open_job,
    read_records,
    record_path,
    write_latent_shard,
    write_latents_file,
    write_record,
)
from ldm_vae.latents.format import Arithmetic, LatentJob, LatentsFile, ShardRecord
from ldm_vae.latents.pictures import decoded
from ldm_vae.latents.source import DigestingReader, source_digest
from ldm_vae.latents.stream import EncodedSample, each_batch, encoded, made_ahead
from ldm_vae.locks import exclusive
from ldm_vae.marks import Held
from ldm_vae.metrics.latent import LatentMoments, LatentStatistics
from ldm_vae.printable import counted


@dataclass
class Share:
    """What one process has done.

    there: tars of its share that were finished before.
    tars: those that it made.
    images: samples in the shards of images that these were made from.
    read, written: bytes of these shards, and of the tars.
    left_out: (key, reason) of the samples that the tars lack.
    """

    there: int
    tars: int = 0
    images: int = 0
    read: int = 0
    written: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, record: ShardRecord, shard: ShardIndex) -> None:
        """Counts a tar that was made."""
        self.tars += 1
        self.images += shard.samples
        self.read += shard.size
        self.written += 0 if record.tar is None else record.tar.bytes
        self.left_out += record.quarantined


NAMES_LISTED = 10  # names of shards that a message lists


def encode_shards(
    codec: LatentCodec,
    index: Index,
    folder: Path,
    job: LatentJob,
    *,
    workers: int,
    rank: int,
    world: int,
    verify: bool = False,
    prune: bool = False,
    done: Callable[[int, int], None],
) -> Share:
    """Makes the latent shards that are missing in `folder`, or whose shard of images has other samples now.

    workers: threads that decode pictures.
    rank: number of this process.
    world: number of processes.
    verify: reads all finished tars and all shards of images, instead of going by size and by what the cache remembers.
    prune: removes latents whose shards of images are gone.
    done(images, total): called as images are written.
    Raises UserError if the folder holds other latents, or latents of other images, if something else writes to it, if
    two shards have one name, if a shard can't be read, or if the disk is full.
    """
    named = dict(zip(names_of(index), index.shards, strict=True))
    begun = open_job(folder, job)
    share = dict(list(named.items())[rank::world])
    records = read_records(folder, begun)
    gone = [name for name in records if name not in named]
    mine = _unfinished(folder, records, share, verify=verify)
    # All that may be refused comes before the first change.
    if gone and not prune:
        raise gone_error(folder, job, gone)
    _refuse_other_source(folder, begun, job, records, named, mine)
    refuse_other_files(folder, begun, [name for name, _ in mine])
    moved = begun.job.source not in (None, job.source)
    if moved:
        begun = begun.model_copy(update={"job": begun.job.model_copy(update={"source": job.source})})
    if (mine or gone) and begun.complete:  # from here on the totals are wrong
        write_latents_file(folder, LatentsFile(version=begun.version, arrays=begun.arrays, job=begun.job))
    _forget(folder, stale=[name for name, _ in mine if name in records], gone=gone if rank == 0 else [])
    total = sum(shard.samples for _, shard in mine)
    result = Share(there=len(share) - len(mine))
    done(0, total)
    reader = DigestingReader()
    arithmetic = Arithmetic(precision=codec.precision, device=codec.device.type, torch=torch.__version__, float32=EXACT)
    with (
        ThreadPoolExecutor(workers) as pool,
        each_batch(codec.device) as each,
        closing(made_ahead(decoded([s for _, s in mine], job, pool, 2 * workers, reader.read), depth=2)) as pictures,
        closing(made_ahead(encoded(codec, job, pictures, each), depth=2 * job.batch)) as latents,
    ):
        for number, samples in groupby(latents, key=lambda pair: pair[0]):
            name, shard = mine[number]
            with _only_writer(folder, name):
                record = _write_latent_shard(
                    folder, name, shard.size, job, (sample for _, sample in samples), lambda: done(1, total)
                )
                # The shard was read to its end by now, so its digest is known.
                made_from = {"source": reader.digests[number], "arithmetic": arithmetic}
                write_record(folder, record.model_copy(update={"version": begun.version, **made_from}))
            result.add(record, shard)
    records = {name: record for name, record in read_records(folder).items() if name in named}
    if lost := [name for name in share if name not in records]:
        remedy = (
            "something else writes or removes files there; give each set of shards its own folder, then run this again"
        )
        raise UserError(f"{folder / lost[0]} is no longer what was written there", remedy)
    if not mine and begun.complete and _totals_are_right(folder, begun, records):
        if moved:
            write_latents_file(folder, begun)
        return result  # there was nothing to do, and the scale is that of the codec it was done with
    if len(records) == len(named) and not _of_other_sizes(named, records):
        _finish(codec, folder, records, begun)
    return result


def gone_error(folder: Path, job: LatentJob, gone: Sequence[str]) -> UserError:
    """Says that a folder holds tars whose shards of images are gone."""
    what = f"{folder} holds latents of {counted(len(gone), 'shard')} that {job.source} lacks, such as {gone[0]}"
    return UserError(what, "give the shards that they were made from, --prune to remove them, or another folder")


def _forget(folder: Path, *, stale: Sequence[str], gone: Sequence[str]) -> None:
    """Removes the records of tars that will be made again, and tars whose shards are gone with their records."""
    for name in (*stale, *gone):
        record_path(folder, name).unlink(missing_ok=True)  # the sign that the tar is finished goes first
    for name in gone:
        (folder / name).unlink(missing_ok=True)


def _unfinished(
    folder: Path, records: Mapping[str, ShardRecord], share: Mapping[str, ShardIndex], *, verify: bool
) -> list[tuple[str, ShardIndex]]:
    """The shards of a share that are missing in `folder`, damaged there, or were made from other samples."""
    unfinished = []
    for name, shard in share.items():
        record = records.get(name)
        whole = record is not None and not (verify and record.tar not in (None, describe_file(folder / name)))
        if record is None or not whole or not is_made_from(record, shard, verify=verify):
            unfinished.append((name, shard))
    return unfinished


def _refuse_other_source(
    folder: Path,
    begun: LatentsFile,
    job: LatentJob,
    records: Mapping[str, ShardRecord],
    named: Mapping[str, ShardIndex],
    mine: Sequence[tuple[str, ShardIndex]],
) -> None:
    """Raises UserError if the folder was begun with another source, and nothing in it is of the present one.

    Shards may move, and may be edited then. Those of another data set often have the same names.
    """
    if begun.job.source in (None, job.source):
        return
    changed = {name for name, _ in mine}
    known = [name for name in records if name in named and name not in changed]
    if not any(is_made_from(records[name], named[name]) for name in known):
        what = f"{folder} was begun with {begun.job.source}, and none of its latents are of {job.source}"
        raise UserError(what, "give another folder, or the shards that it was begun with")


def refuse_other_files(folder: Path, begun: LatentsFile, names: Iterable[str]) -> None:
    """Raises UserError if a finished folder holds files of these names that it was not finished with."""
    for name in names if begun.complete else ():
        for path in (folder / name, record_path(folder, name)):
            if name not in begun.shards and status(path) is not None:
                raise UserError(f"{path} is none that encode wrote", "move it, or give another folder")


def _totals_are_right(folder: Path, begun: LatentsFile, records: Mapping[str, ShardRecord]) -> bool:
    """Whether latents.json says of each shard what its record does."""
    shards = {name: finished_shard(folder, record) for name, record in records.items()}
    return begun.shards == shards and begun.samples == sum(shard.samples for shard in shards.values())


def is_made_from(record: ShardRecord, shard: ShardIndex, *, verify: bool = False) -> bool:
    """Whether a record is of what the shard of images holds now. Records of version 1 only know its size.

    verify: reads the shard, whatever the cache remembers.
    """
    if record.source is None:
        return record.bytes == shard.size
    return source_digest(shard, remembered=not verify) == record.source


def _of_other_sizes(named: Mapping[str, ShardIndex], records: Mapping[str, ShardRecord]) -> list[str]:
    """Names of the shards of version 1 that another process has still to make again."""
    return [name for name, record in records.items() if record.source is None and not is_made_from(record, named[name])]


@contextmanager
def _only_writer(folder: Path, name: str) -> Iterator[None]:
    """Locks a shard; the lock ends with the process, however it ends. Raises UserError if another process writes it."""
    with ExitStack() as stack:
        try:
            with explain_disk_errors(folder / name):
                stack.enter_context(exclusive(lock_path(folder, name), patience=0))
        except Held as held:
            remedy = (
                f"wait until it has ended, or {held.remedy}; "
                "processes that share the work out are started by torchrun or accelerate launch"
            )
            raise UserError(f"another process is writing {folder / name} ({held})", remedy) from None
        yield


def names_of(index: Index) -> list[str]:
    """The names of the latent shards: those of the shards of images, or numbers for the parts of a folder of images."""
    names = [shard.name if shard.files is None else f"{number:06d}.tar" for number, shard in enumerate(index.shards)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        more = f" and {len(twice) - NAMES_LISTED} more names" if len(twice) > NAMES_LISTED else ""
        what = f"several shards are called {', '.join(twice[:NAMES_LISTED])}{more}"
        raise UserError(what, "encode one folder after the other, each into its own")
    return names


def _write_latent_shard(
    folder: Path, name: str, size: int, job: LatentJob, samples: Iterable[EncodedSample], one_done: Callable[[], None]
) -> ShardRecord:
    """Writes one shard, and returns its record.

    size: bytes of the shard of images.
    """
    moments = LatentMoments(job.channels)
    sizes: dict[str, tuple[int, int]] = {}
    quarantined: list[tuple[str, str]] = []
    counts = Counter(dict.fromkeys(FIELDS, 0))

    def whole() -> Iterator[LatentSample]:
        for sample in samples:
            if sample.arrays is None or sample.z is None:
                quarantined.append((sample.key, sample.reason))
            else:
                moments.update(sample.z[None])
                sizes[sample.key] = sample.size
                count_fields(sample.fields, counts)
                yield LatentSample(sample.key, sample.arrays, sample.fields)
            one_done()

    tar = write_latent_shard(folder / name, whole())
    return ShardRecord(
        name=name,
        bytes=size,
        tar=tar,
        keys=tuple(sizes),
        sizes=tuple(sizes.values()),
        quarantined=tuple(quarantined),
        fields=dict(counts),
        statistics=moments.state(),
    )


def _finish(codec: LatentCodec, folder: Path, records: Mapping[str, ShardRecord], begun: LatentsFile) -> None:
    """Writes the totals of all shards. Several processes may find the last shard finished; they write the same."""
    job = begun.job
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
    # A folder of its own scale would not fit the codec. Version 1 had one where nobody had measured the codec.
    scale = codec.scale or (statistics.scale("factor") if begun.version == 1 else None)
    content = LatentsFile(
        version=begun.version,
        complete=True,
        arrays=begun.arrays,
        job=job,
        samples=moments.images,
        fields=total_of(record.fields for record in records.values()),
        scale=None if scale is None else scale.to_config(),
        statistics=statistics.model_dump(mode="json"),
        shards={name: finished_shard(folder, record) for name, record in records.items()},
    )
    write_latents_file(folder, content, records)
