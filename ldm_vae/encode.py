"""Image shards -> latent shards: read, decode, encode and write at the same time, a shard at a time.

Each process takes every n-th shard. A shard is finished in one rename and then recorded, so a killed job loses only the
shards it was at, and a rerun makes them again, to the same bytes: batches never cross shards, and what is stored
depends on neither time nor process. The last process to finish writes the totals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec, pad_to_multiple
from ldm_vae.data.batch import rng
from ldm_vae.data.images import EXTENSIONS, Array, BrokenImage, decode_image, fit_image
from ldm_vae.data.index import Index, ShardIndex
from ldm_vae.data.latent_shards import (
    Kind,
    LatentJob,
    LatentSample,
    LatentsFile,
    ShardRecord,
    open_job,
    read_records,
    write_latent_shard,
    write_latents_file,
    write_record,
)
from ldm_vae.data.source import Missing, Source, Unreachable
from ldm_vae.data.tar import BLOCK, verify_header
from ldm_vae.errors import UserError
from ldm_vae.metrics.latent import LatentMoments, LatentStatistics
from ldm_vae.threads import in_thread

READ_AHEAD = 2**23  # bytes read at once, of one shard
WINDOW = 8  # batches among which images of one size are looked for
WINDOW_PIXELS = 2**25  # and pixels: 400 MB of three float32 channels


@dataclass(frozen=True)
class Picture:
    """A sample on its way. image: None where it is broken, and then the reason."""

    key: str
    fields: dict[str, bytes]  # what is carried along
    image: Array | None  # (C, H, W)
    reason: str = ""


@dataclass(frozen=True)
class Encoded:
    """arrays: None where the latent is broken, and then the reason.   z: (c, h, w), stored, before rounding."""

    key: str
    fields: dict[str, bytes]
    size: tuple[int, int] = (0, 0)
    arrays: dict[str, npt.NDArray[np.float16]] | None = None
    z: Tensor | None = None
    reason: str = ""


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

    workers: threads that decode pictures.   done(images, total): called as images are written.
    Raises UserError for a folder with other latents, equal names of shards, sources that cannot be read, a full disk.
    """
    names = [Path(shard.url).name for shard in index.shards]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two shards are called {name}", "encode the folders one by one, into folders of their own")
    open_job(folder, job)
    finished = read_records(folder)
    mine = [
        shard
        for name, shard in list(zip(names, index.shards, strict=True))[rank::world]
        if name not in finished or finished[name].bytes != shard.size
    ]
    total = sum(shard.samples for shard in mine)
    done(0, total)
    with (
        ThreadPoolExecutor(workers) as pool,
        closing(in_thread(_decoded(mine, job, pool, 2 * workers), depth=2)) as pictures,
        closing(in_thread(_encoded(codec, job, pictures), depth=2 * job.batch)) as encoded,
    ):
        for number, samples in groupby(encoded, key=lambda pair: pair[0]):
            _write(folder, mine[number], job, (sample for _, sample in samples), lambda: done(1, total))
    _finish(codec, folder, names, job)


def _decoded(
    shards: Sequence[ShardIndex], job: LatentJob, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[int, Picture]]:
    """(number of the shard, sample) in order; `ahead` samples are being decoded at a time."""
    waiting: list[tuple[int, Future[Picture]]] = []
    for number, shard in enumerate(shards):
        for key, fields in _read(shard):
            waiting.append((number, pool.submit(_decode, key, fields, job)))
            if len(waiting) == ahead:
                first, future = waiting.pop(0)
                yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _read(shard: ShardIndex) -> Iterator[tuple[str, dict[str, bytes] | str]]:
    """(key, fields by name in the order of the tar), or (key, why it cannot be had)."""
    source = Source()
    try:
        ordinal = 0
        while ordinal < shard.samples:
            places, end = [sorted(shard.fields(ordinal).items(), key=lambda field: field[1])], ordinal + 1
            start = places[0][0][1][0] - BLOCK
            while end < shard.samples:
                following = sorted(shard.fields(end).items(), key=lambda field: field[1])
                if sum(following[-1][1]) - start > READ_AHEAD:
                    break
                places.append(following)
                end += 1
            data = source.read(shard.url, start, sum(places[-1][-1][1]) - start)
            for members in places:
                key, fields, problem = shard.key(ordinal), {}, None
                for name, (offset, size) in members:
                    at = offset - start
                    problem = problem or verify_header(data[at - BLOCK : at], f"{key}.{name}" if name else key, size)
                    fields[name] = data[at : at + size]
                yield key, problem or fields
                ordinal += 1
    except (Missing, Unreachable) as error:
        what = f"shard {shard.url} cannot be read ({error})"
        raise UserError(what, "mend it, then run this again: finished shards are kept") from error
    finally:
        source.close()


def _decode(key: str, fields: dict[str, bytes] | str, job: LatentJob) -> Picture:
    if isinstance(fields, str):
        return Picture(key, {}, None, fields)
    extension = next((name for name in EXTENSIONS if name in fields), None)
    if extension is None:
        return Picture(key, fields, None, "no picture among its members")
    carried = fields if job.keep_image else {name: data for name, data in fields.items() if name != extension}
    try:
        image = fit_image(decode_image(fields[extension], extension, job.image_channels), job.image, None)
    except BrokenImage as error:
        return Picture(key, carried, None, error.reason)
    return Picture(key, carried, image)


def _encoded(
    codec: LatentCodec, job: LatentJob, pictures: Iterable[tuple[int, Picture]]
) -> Iterator[tuple[int, Encoded]]:
    """In the order they came. Images of one padded size within a window are encoded together."""
    for number, window in _windows(pictures, job.batch):
        results = {
            place: Encoded(picture.key, {}, reason=picture.reason)
            for place, picture in enumerate(window)
            if picture.image is None
        }
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(window):
            if picture.image is not None:
                sides = picture.image.shape[1:]
                by_size.setdefault(tuple(-(-side // job.multiple) for side in sides), []).append(place)
        for places in by_size.values():
            for start in range(0, len(places), job.batch):
                chosen = places[start : start + job.batch]
                results.update(zip(chosen, _encode(codec, job, [window[place] for place in chosen]), strict=True))
        for place in range(len(window)):
            yield number, results[place]


def _windows(pictures: Iterable[tuple[int, Picture]], batch: int) -> Iterator[tuple[int, list[Picture]]]:
    for number, samples in groupby(pictures, key=lambda pair: pair[0]):
        window: list[Picture] = []
        pixels = 0
        for _, picture in samples:
            window.append(picture)
            pixels += 0 if picture.image is None else picture.image[0].size
            if len(window) == WINDOW * batch or pixels >= WINDOW_PIXELS:
                yield number, window
                window, pixels = [], 0
        if window:
            yield number, window


def _encode(codec: LatentCodec, job: LatentJob, pictures: Sequence[Picture]) -> list[Encoded]:
    """pictures: of one size after padding."""
    padded = [pad_to_multiple(torch.from_numpy(p.image)[None], job.multiple) for p in pictures if p.image is not None]
    images = torch.cat(padded).to(codec.device)
    stored = {f"{job.latents}.npy": _stored(codec, job, images, pictures)}
    if job.mirrored:
        # Each image is mirrored before it is padded, as a picture of its own.
        mirrored = [
            pad_to_multiple(torch.from_numpy(p.image[:, :, ::-1].copy())[None], job.multiple)
            for p in pictures
            if p.image is not None
        ]
        stored[f"mirrored.{job.latents}.npy"] = _stored(codec, job, torch.cat(mirrored).to(codec.device), pictures)
    results = []
    for i, picture in enumerate(pictures):
        assert picture.image is not None
        found = Encoded(picture.key, picture.fields, size=(picture.image.shape[1], picture.image.shape[2]))
        values = {name: tensor[i] for name, (tensor, _) in stored.items()}
        if any(i in broken for _, broken in stored.values()):
            results.append(replace(found, reason="its latent is not finite, in float32 either"))
            continue
        arrays = {name: _float16(value) for name, value in values.items()}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            results.append(replace(found, reason="its latent goes beyond float16 (65504)"))
            continue
        results.append(replace(found, arrays=arrays, z=values[f"{job.latents}.npy"][: job.channels].cpu()))
    return results


def _stored(
    codec: LatentCodec, job: LatentJob, images: Tensor, pictures: Sequence[Picture]
) -> tuple[Tensor, list[int]]:
    """(B, C, h, w), what is stored of a batch, and the places of those that are not finite."""
    moments, broken = codec.checked_moments(images)
    if job.latents == "moments":
        return moments, broken
    if job.latents == "mode":
        return codec.draw(moments), broken
    mean = codec.draw(moments)
    noise = [
        _generator(job.seed, picture.key).standard_normal(tuple(mean.shape[1:]), dtype=np.float32)
        for picture in pictures
    ]
    return codec.model.bottleneck(moments, torch.from_numpy(np.stack(noise)).to(mean.device)).z, broken


def _generator(seed: int, key: str) -> np.random.Generator:
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return rng(seed, "posterior", int.from_bytes(digest))


def _float16(value: Tensor) -> npt.NDArray[np.float16]:
    array: npt.NDArray[np.float16] = value.half().cpu().numpy()
    return array


def _write(
    folder: Path, shard: ShardIndex, job: LatentJob, samples: Iterable[Encoded], one_done: Callable[[], None]
) -> None:
    name = Path(shard.url).name
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
        bytes=shard.size,
        keys=tuple(sizes),
        sizes=tuple(sizes.values()),
        quarantined=tuple(quarantined),
        statistics=moments.state(),
    )
    write_record(folder, record)


def _finish(codec: LatentCodec, folder: Path, names: Sequence[str], job: LatentJob) -> None:
    """Writes the totals once every shard is there, whichever process sees that."""
    records = read_records(folder)
    if any(name not in records for name in names):
        return
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
    latents: Kind,
    mirrored: bool,
    resize: int | None,
    crop: int | None,
    multiple: int | None,
    batch: int,
    keep_image: bool,
    seed: int,
) -> LatentJob:
    """The job of these options. Raises UserError for a `multiple` that is none of f."""
    factor = codec.factor
    if multiple is not None and multiple % factor:
        raise UserError(f"--multiple {multiple}", f"give a multiple of f, which is {factor} for this codec")
    return LatentJob(
        codec=codec.weights_hash,
        factor=factor,
        channels=codec.latent_channels,
        logvar_range=codec.model.config.bottleneck.logvar_range,
        latents=latents,
        mirrored=mirrored,
        image_channels=codec.model.config.in_channels,
        resize=resize,
        crop=crop,
        multiple=multiple or factor,
        precision=str(codec.dtype).removeprefix("torch."),
        batch=batch,
        keep_image=keep_image,
        seed=seed,
    )
