"""Reads shards of images and encodes their samples, in order. Threads decode; images of one size make a batch.

On a CPU several batches are encoded at a time, each in one thread. So the order of the sums in a batch, and with it
their last bits, does not depend on how many threads a launcher gives to a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec, pad_to_multiple
from ldm_vae.data.images.decode import decode_image
from ldm_vae.data.images.fit import fit_image
from ldm_vae.data.images.pixels import EXTENSIONS, BrokenImage, PixelArray
from ldm_vae.data.shards.shard import Fields, ShardIndex
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.source import DigestingReader
from ldm_vae.noise import GivenNoise, rng

WINDOW_BATCHES = 8  # batches of images among which those of one size are grouped
WINDOW_PIXELS = 2**25  # pixels that such a window holds at most: 400 MB of three float32 channels


@dataclass(frozen=True)
class ImageSample:
    """A sample with its decoded image.

    key: name of the sample.
    fields: fields that are carried along.
    image: (C, H, W); None if it is broken.
    reason: why it is broken.
    """

    key: str
    fields: Fields
    image: PixelArray | None
    reason: str = ""


@dataclass(frozen=True)
class EncodedSample:
    """A sample with its latent.

    key: name of the sample.
    fields: fields that are carried along.
    size: (height, width) in pixels of the image before it was padded.
    arrays: name of the field -> what is stored; None if the sample is broken.
    z: (c, h, w) the mean of the posterior, or the latent that is stored instead, before it is rounded to float16.
    reason: why the sample is broken.
    """

    key: str
    fields: Fields
    size: tuple[int, int] = (0, 0)
    arrays: dict[str, npt.NDArray[np.float16]] | None = None
    z: Tensor | None = None
    reason: str = ""


def decoded(
    shards: Sequence[ShardIndex], job: LatentJob, pool: ThreadPoolExecutor, ahead: int, reader: DigestingReader
) -> Iterator[tuple[int, ImageSample]]:
    """Gives (number of the shard, sample) in order, while up to `ahead` samples are being decoded."""
    waiting: list[tuple[int, Future[ImageSample]]] = []
    for number, shard in enumerate(shards):
        for key, fields in reader.read(number, shard):
            waiting.append((number, pool.submit(_decode, key, fields, job)))
            if len(waiting) == ahead:
                first, future = waiting.pop(0)
                yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _decode(key: str, fields: Fields | str, job: LatentJob) -> ImageSample:
    if isinstance(fields, str):
        return ImageSample(key, {}, None, fields)
    extension = next((name for name in EXTENSIONS if name in fields), None)
    if extension is None:
        return ImageSample(key, fields, None, "no picture among its members")
    carried = fields if job.keep_image else {name: data for name, data in fields.items() if name != extension}
    try:
        image = fit_image(decode_image(fields[extension], extension, job.image_channels), job.image, None)
    except BrokenImage as error:
        return ImageSample(key, carried, None, error.reason)
    return ImageSample(key, carried, image)


Batches = list[list[int]]  # places in a window, for each batch
EachBatch = Callable[[Callable[[list[int]], list["EncodedSample"]], Batches], Iterable[list["EncodedSample"]]]  # `map`


@contextmanager
def each_batch(device: torch.device) -> Iterator[EachBatch]:
    """The `map` that `encoded` uses: on a CPU over as many threads as torch has, on a GPU the plain one."""
    if device.type != "cpu":
        yield map
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for this thread, which computes the statistics
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def encoded(
    codec: LatentCodec, job: LatentJob, pictures: Iterable[tuple[int, ImageSample]], each: EachBatch
) -> Iterator[tuple[int, EncodedSample]]:
    """Encodes pictures and gives them in the same order. Images of one padded size in a window make batches."""
    for number, window in _windows(pictures, job.batch):
        results = {
            place: EncodedSample(picture.key, {}, reason=picture.reason)
            for place, picture in enumerate(window)
            if picture.image is None
        }
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(window):
            if picture.image is not None:
                sides = picture.image.shape[1:]
                by_size.setdefault(tuple(-(-side // job.multiple) for side in sides), []).append(place)
        batches = [
            places[start : start + job.batch]
            for places in by_size.values()
            for start in range(0, len(places), job.batch)
        ]

        def encode(places: list[int], window: list[ImageSample] = window) -> list[EncodedSample]:
            return _encode(codec, job, [window[place] for place in places])

        for chosen, found in zip(batches, each(encode, batches), strict=True):
            results.update(zip(chosen, found, strict=True))
        for place in range(len(window)):
            yield number, results[place]


def _windows(pictures: Iterable[tuple[int, ImageSample]], batch: int) -> Iterator[tuple[int, list[ImageSample]]]:
    for number, samples in groupby(pictures, key=lambda pair: pair[0]):
        window: list[ImageSample] = []
        pixels = 0
        for _, picture in samples:
            window.append(picture)
            pixels += 0 if picture.image is None else picture.image[0].size
            if len(window) == WINDOW_BATCHES * batch or pixels >= WINDOW_PIXELS:
                yield number, window
                window, pixels = [], 0
        if window:
            yield number, window


def _encode(codec: LatentCodec, job: LatentJob, pictures: Sequence[ImageSample]) -> list[EncodedSample]:
    """Encodes one batch.

    pictures: none of them broken, all of one size after padding.
    """
    images = [picture.image for picture in pictures if picture.image is not None]
    field = f"{job.latents}.npy"
    tensors, broken = {}, set()
    # A mirrored image is padded as a picture of its own.
    for name, views in [(field, images)] + [(f"mirrored.{field}", [i[:, :, ::-1] for i in images])] * job.mirrored:
        # Copied, because torch takes no negative strides, and numpy calls one pixel wide contiguous with any stride.
        padded = [pad_to_multiple(torch.from_numpy(view.copy())[None], job.multiple) for view in views]
        tensors[name], places = _stored(codec, job, torch.cat(padded), [picture.key for picture in pictures])
        broken |= set(places)
    arrays = {name: tensor.half().cpu().numpy() for name, tensor in tensors.items()}
    z = tensors[field][:, : job.channels].cpu()
    results = []
    for i, (picture, image) in enumerate(zip(pictures, images, strict=True)):
        found = EncodedSample(picture.key, picture.fields, (image.shape[1], image.shape[2]))
        mine = {name: array[i] for name, array in arrays.items()}
        if i in broken:
            found = replace(found, reason="its latent is not finite, in float32 either")
        elif not all(np.isfinite(array).all() for array in mine.values()):
            found = replace(found, reason="its latent goes beyond float16, 65504")
        else:
            found = replace(found, arrays=mine, z=z[i])
        results.append(found)
    return results


def _stored(codec: LatentCodec, job: LatentJob, images: Tensor, keys: Sequence[str]) -> tuple[Tensor, list[int]]:
    """What is stored of a batch, (B, C, h, w), and the places of the samples that are not finite."""
    moments, broken = codec.checked_moments(images)
    if job.latents == "moments":
        return moments, broken
    if job.latents == "mode":
        return codec.draw(moments), broken
    shape = (job.channels, *moments.shape[2:])
    noise = [_generator(job.seed, key).standard_normal(shape, dtype=np.float32) for key in keys]
    return codec.model.bottleneck(moments, GivenNoise(torch.from_numpy(np.stack(noise)))).z, broken


def _generator(seed: int, key: str) -> np.random.Generator:
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return rng(seed, "posterior", int.from_bytes(digest))
