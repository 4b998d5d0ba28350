"""Encodes pictures, in order. Images of one size make a batch.

What is held at a time does not grow with the pictures: see `IN_FLIGHT`.

On a CPU several batches are encoded at a time, each in one thread. So the order of the sums in a batch, and with it
their last bits, does not depend on how many threads a launcher gives to a process.
"""

from __future__ import annotations

from collections import deque
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
from ldm_vae.data.images.in_order import IN_FLIGHT
from ldm_vae.data.images.pixels import PixelArray
from ldm_vae.data.shards.shard import Fields
from ldm_vae.fitting import Fitting
from ldm_vae.latents.format import LatentJob
from ldm_vae.latents.pictures import ImageSample, bytes_of
from ldm_vae.latents.prefetch import in_thread
from ldm_vae.noise import GivenNoise, rng
from ldm_vae.overlap import Finish, again, begin, one_behind
from ldm_vae.padding import pad_to_multiple
from ldm_vae.transfer import Courier

WINDOW_BATCHES = 8  # batches of images among which those of one size are grouped
WINDOW_PIXELS = 2**25  # pixels that such a window holds at most: 400 MB of three float32 channels
PIXEL = 12  # bytes of three float32 channels, by which the files that are carried along count as pixels
# The queues before and behind the encoder hold a quarter of `IN_FLIGHT` each. One picture alone may always pass. So
# with the window, and beside one picture in each place, less than twice IN_FLIGHT is held.
QUEUED = IN_FLIGHT // 4


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


def made_ahead(samples: Iterable[tuple[int, SampleT]], *, depth: int) -> Generator[tuple[int, SampleT], None, None]:
    """Gives the same samples, made in a thread of their own, up to `depth` samples or `QUEUED` bytes ahead."""
    return in_thread(samples, depth=depth, size=lambda pair: pair[1].bytes, limit=QUEUED)


@dataclass
class _Window:
    """Pictures among which those of one size make batches.

    number: of the shard.
    results: place in the window -> its sample, once there is one.
    pictures: how many there are.
    """

    number: int
    results: dict[int, EncodedSample]
    pictures: int


@dataclass
class Portion:
    """Pictures of one size after padding, none of them broken, that are encoded together.

    window, places: where they came from.
    """

    window: _Window
    places: list[int]
    pictures: list[ImageSample]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the first picture; those of the others may be padded more."""
        image = self.pictures[0].image
        assert image is not None
        return image.shape

    def part(self, start: int, stop: int) -> Portion:
        return Portion(self.window, self.places[start:stop], self.pictures[start:stop])


Launch = Callable[[Portion], Finish[tuple[Portion, list[EncodedSample]]]]
EachPortion = Callable[[Launch, Iterable[list[Portion]]], Iterator[tuple[Portion, list[EncodedSample]]]]


@contextmanager
def each_batch(device: torch.device) -> Iterator[EachPortion]:
    """How `encoded` goes through the portions of one window after the other.

    A CPU encodes those of one window in as many threads as torch has. A GPU gets one after the other, across windows.
    """
    if device.type != "cpu":
        yield lambda launch, windows: one_behind(_popped(windows), launch, device)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for this thread, which computes the statistics
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield partial(_side_by_side, pool)
    finally:
        torch.set_num_threads(threads)


def _side_by_side(
    pool: ThreadPoolExecutor, launch: Launch, windows: Iterable[list[Portion]]
) -> Iterator[tuple[Portion, list[EncodedSample]]]:
    device = torch.device("cpu")
    fitting = Fitting(device)
    for portions in windows:
        parts = [part for portion in portions for part in fitting.parts(portion)]
        portions.clear()
        found = pool.map(lambda part: fitting.attempt(part, lambda: launch(part)()), parts)
        for part, result in zip(parts, found, strict=True):
            if result is None:
                yield from again(part, launch, fitting)
            else:
                yield result[0]
        parts.clear()  # before the next window is filled


def _popped(windows: Iterable[list[Portion]]) -> Iterator[Portion]:
    """The portions one by one; only who has asked for one holds it."""
    for portions in windows:
        while portions:
            yield portions.pop(0)


def encoded(
    codec: LatentCodec, job: LatentJob, pictures: Iterable[tuple[int, ImageSample]], each: EachPortion
) -> Iterator[tuple[int, EncodedSample]]:
    """Encodes pictures and gives them in the same order. Images of one padded size in a window make batches."""
    begun: deque[_Window] = deque()

    def windows() -> Iterator[list[Portion]]:
        for number, found in _windows(pictures, job.batch):
            window, portions = _portions(number, found, job)
            found.clear()  # in the generator that made it, too, before the next one is filled
            begun.append(window)
            yield portions

    courier = Courier(codec.device)
    for portion, samples in each(partial(_launch, codec, job, courier), windows()):
        portion.window.results.update(zip(portion.places, samples, strict=True))
        del portion, samples
        yield from _whole(begun)
    yield from _whole(begun)


def _whole(begun: deque[_Window]) -> Iterator[tuple[int, EncodedSample]]:
    """The samples of the first windows that have all of theirs."""
    while begun and len(begun[0].results) == begun[0].pictures:
        window = begun.popleft()
        for place in range(window.pictures):
            yield window.number, window.results.pop(place)


def _portions(number: int, pictures: Sequence[ImageSample], job: LatentJob) -> tuple[_Window, list[Portion]]:
    """A window of pictures, and the batches of those that are not broken, each of one size after padding."""
    window = _Window(number, {}, len(pictures))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        if picture.image is None:
            window.results[place] = EncodedSample(picture.key, {}, reason=picture.reason)
        else:
            sides = picture.image.shape[1:]
            by_size.setdefault(tuple(-(-side // job.multiple) for side in sides), []).append(place)
    parts = [
        places[start : start + job.batch] for places in by_size.values() for start in range(0, len(places), job.batch)
    ]
    return window, [Portion(window, places, [pictures[place] for place in places]) for places in parts]


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


def _launch(
    codec: LatentCodec, job: LatentJob, courier: Courier, portion: Portion
) -> Finish[tuple[Portion, list[EncodedSample]]]:
    """Hands one batch to the codec's device."""
    images = [picture.image for picture in portion.pictures if picture.image is not None]
    keys = [picture.key for picture in portion.pictures]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    batch = courier.bring(_padded(images, job.multiple))
    finish = begin(lambda: _stored(codec, job, batch, keys, sizes), codec.device)
    return lambda: (portion, _samples(job, portion.pictures, sizes, *finish()))


def _samples(
    job: LatentJob,
    pictures: Sequence[ImageSample],
    sizes: Sequence[tuple[int, int]],
    tensors: dict[str, Tensor],
    broken: set[int],
) -> list[EncodedSample]:
    """tensors, broken: what `_stored` gave, on the host."""
    z = tensors.pop("z")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    results = []
    for i, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        found = EncodedSample(picture.key, picture.fields, size)
        mine = {name: array[i] for name, array in arrays.items()}
        if i in broken:
            found = replace(found, reason="its latent is not finite, in float32 either")
        elif not all(np.isfinite(array).all() for array in mine.values()):
            found = replace(found, reason="its latent goes beyond float16, 65504")
        else:
            found = replace(found, arrays=mine, z=z[i])
        results.append(found)
    return results


def _padded(images: Sequence[PixelArray], multiple: int) -> Tensor:
    """Pictures of one size after padding -> (B, C, H, W). Holds one copy of them, and of one picture another."""
    height, width = (-(-side // multiple) * multiple for side in images[0].shape[1:])
    batch = torch.empty(len(images), images[0].shape[0], height, width)
    for place, image in zip(batch, images, strict=True):
        # Copied, because numpy calls one pixel wide contiguous with any stride.
        place.copy_(pad_to_multiple(torch.from_numpy(image.copy())[None], multiple)[0])
    return batch


def _mirrored(batch: Tensor, sizes: Sequence[tuple[int, int]], multiple: int) -> Tensor:
    """The mirrored pictures of a padded batch (B, C, H, W). Each is padded as a picture of its own.

    sizes: (height, width) of each before it was padded.
    """
    if all(width == batch.shape[3] for _, width in sizes):  # what was padded below is so in the mirror, too
        return batch.flip(3)
    views = [image[None, :, :height, :width].flip(3) for image, (height, width) in zip(batch, sizes, strict=True)]
    return torch.cat([pad_to_multiple(view, multiple) for view in views])


def _stored(
    codec: LatentCodec, job: LatentJob, batch: Tensor, keys: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> tuple[dict[str, Tensor], set[int]]:
    """What is stored of a padded batch, by field; "z", which is measured; and the places that are not finite."""
    field = f"{job.latents}.npy"
    tensors: dict[str, Tensor] = {}
    broken: set[int] = set()
    for name in (field, f"mirrored.{field}")[: 1 + job.mirrored]:
        images = batch if name == field else _mirrored(batch, sizes, job.multiple)
        moments, places = codec.checked_moments(images)
        broken |= {*places}
        latents = moments if job.latents == "moments" else draw_latents(codec, job, moments, keys)
        if name == field:
            tensors["z"] = latents[:, : job.channels]
        tensors[name] = latents.half()
    return tensors, broken


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
