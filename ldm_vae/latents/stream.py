"""Reads shards of images and encodes their samples, in order. Threads decode; images of one size make a batch.

What is held at a time does not grow with the pictures: see `IN_FLIGHT`.

On a CPU several batches are encoded at a time, each in one thread. So the order of the sums in a batch, and with it
their last bits, does not depend on how many threads a launcher gives to a process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import groupby
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.in_order import IN_FLIGHT, Work, in_order
from ldm_vae.data.images.peak import picture_peak
from ldm_vae.data.images.pixels import EXTENSIONS, BrokenImage, PixelArray
from ldm_vae.data.images.prepare import prepare_image
from ldm_vae.data.shards.shard import Fields, ShardIndex
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.prefetch import in_thread
from ldm_vae.noise import GivenNoise, rng
from ldm_vae.padding import pad_to_multiple

WINDOW_BATCHES = 8  # batches of images among which those of one size are grouped
WINDOW_PIXELS = 2**25  # pixels that such a window holds at most: 400 MB of three float32 channels
PIXEL = 12  # bytes of three float32 channels, by which the files that are carried along count as pixels
# The queues before and behind the encoder hold a quarter of `IN_FLIGHT` each. One picture alone may always pass. So
# with the window, and beside one picture in each place, less than twice IN_FLIGHT is held.
QUEUED = IN_FLIGHT // 4
ReadShard = Callable[[int, ShardIndex], Iterator[tuple[str, Fields | str]]]  # as `DigestingReader.read` gives samples


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

    @property
    def bytes(self) -> int:
        """What it holds: the picture, and the fields."""
        return bytes_of(self.fields) + (0 if self.image is None else self.image.nbytes)


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

    @property
    def bytes(self) -> int:
        """What it holds: the latents, and the fields."""
        return bytes_of(self.fields) + sum(array.nbytes for array in (self.arrays or {}).values())


SampleT = TypeVar("SampleT", ImageSample, EncodedSample)


def bytes_of(fields: Fields) -> int:
    return sum(len(data) for data in fields.values())


def decoded(
    shards: Sequence[ShardIndex], job: LatentJob, pool: ThreadPoolExecutor, ahead: int, read: ReadShard
) -> Iterator[tuple[int, ImageSample]]:
    """Gives (number of the shard, sample) in order, while up to `ahead` samples are being decoded.

    They take `IN_FLIGHT` bytes at most, or are one.
    """
    work = (
        Work(partial(_numbered, number, key, fields, job), _peak(fields, job))
        for number, shard in enumerate(shards)
        for key, fields in read(number, shard)
    )
    yield from in_order(work, pool, ahead=ahead, size=lambda pair: pair[1].bytes)


def made_ahead(samples: Iterable[tuple[int, SampleT]], *, depth: int) -> Generator[tuple[int, SampleT], None, None]:
    """Gives the same samples, made in a thread of their own, up to `depth` samples or `QUEUED` bytes ahead."""
    return in_thread(samples, depth=depth, size=lambda pair: pair[1].bytes, limit=QUEUED)


def _numbered(number: int, key: str, fields: Fields | str, job: LatentJob) -> tuple[int, ImageSample]:
    return number, _decode(key, fields, job)


def _peak(fields: Fields | str, job: LatentJob) -> int:
    """Bytes that a sample takes while its picture is decoded, by the header of the picture."""
    if isinstance(fields, str):
        return 0
    extension = _extension(fields)
    return bytes_of(fields) + (0 if extension is None else picture_peak(fields[extension], extension, job.image))


def _extension(fields: Fields) -> str | None:
    """The member that is the picture."""
    return next((name for name in EXTENSIONS if name in fields), None)


def _decode(key: str, fields: Fields | str, job: LatentJob) -> ImageSample:
    if isinstance(fields, str):
        return ImageSample(key, {}, None, fields)
    extension = _extension(fields)
    if extension is None:
        return ImageSample(key, fields, None, "no picture among its members")
    carried = fields if job.keep_image else {name: data for name, data in fields.items() if name != extension}
    try:
        image = prepare_image(fields[extension], extension, job.image, None).floats()
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
        batches = _batches(window, job)

        def encode(places: list[int], window: list[ImageSample] = window) -> list[EncodedSample]:
            return _encode(codec, job, [window[place] for place in places])

        for chosen, found in zip(batches, each(encode, batches), strict=True):
            results.update(zip(chosen, found, strict=True))
        window.clear()  # here and in the generator that made it, before the next one is filled
        for place in range(len(results)):
            yield number, results.pop(place)


def _batches(window: Sequence[ImageSample], job: LatentJob) -> Batches:
    """Batches of the pictures of a window that are not broken, each of one size after padding."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(window):
        if picture.image is not None:
            sides = picture.image.shape[1:]
            by_size.setdefault(tuple(-(-side // job.multiple) for side in sides), []).append(place)
    return [
        places[start : start + job.batch] for places in by_size.values() for start in range(0, len(places), job.batch)
    ]


def _windows(pictures: Iterable[tuple[int, ImageSample]], batch: int) -> Iterator[tuple[int, list[ImageSample]]]:
    for number, samples in groupby(pictures, key=lambda pair: pair[0]):
        window: list[ImageSample] = []
        pixels = 0
        for _, picture in samples:
            window.append(picture)
            # Counted by the content alone, because what is in a batch decides about the last bits of its latents.
            pixels += bytes_of(picture.fields) // PIXEL + (0 if picture.image is None else picture.image[0].size)
            del picture
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
        batch = _padded(views, job.multiple)
        tensors[name], places = _stored(codec, job, batch, [picture.key for picture in pictures])
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


def _padded(views: Sequence[PixelArray], multiple: int) -> Tensor:
    """Pictures of one size after padding -> (B, C, H, W). Holds one copy of them, and of one picture another."""
    height, width = (-(-side // multiple) * multiple for side in views[0].shape[1:])
    batch = torch.empty(len(views), views[0].shape[0], height, width)
    for place, view in zip(batch, views, strict=True):
        # Copied, because torch takes no negative strides, and numpy calls one pixel wide contiguous with any stride.
        place.copy_(pad_to_multiple(torch.from_numpy(view.copy())[None], multiple)[0])
    return batch


def _stored(codec: LatentCodec, job: LatentJob, images: Tensor, keys: Sequence[str]) -> tuple[Tensor, list[int]]:
    """What is stored of a batch, (B, C, h, w), and the places of the samples that are not finite."""
    moments, broken = codec.checked_moments(images)
    if job.latents == "moments":
        return moments, broken
    return draw_latents(codec, job, moments, keys), broken


def draw_latents(codec: LatentCodec, job: LatentJob, moments: Tensor, keys: Sequence[str]) -> Tensor:
    """Moments -> raw latents (B, C, h, w): the samples that a job stores; of a job that stores none, the modes.

    keys: names of the images; the noise of a sample depends on the job's seed and on the key alone.
    """
    if job.latents != "sample":
        return codec.draw(moments)
    shape = (job.channels, *moments.shape[2:])
    noise = [_generator(job.seed, key).standard_normal(shape, dtype=np.float32) for key in keys]
    return codec.model.bottleneck(moments, GivenNoise(torch.from_numpy(np.stack(noise)))).z


def _generator(seed: int, key: str) -> np.random.Generator:
    digest = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return rng(seed, "posterior", int.from_bytes(digest))
