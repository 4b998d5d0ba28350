"""Probes: a few images on which the costly diagnostics are measured, with their latents and reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.devices import in_float64
from ldm_vae.finite import at_places
from ldm_vae.metrics.image import psnr
from ldm_vae.noise import rng
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.transfer import Courier

Done = Callable[[int, int], None]  # images that are done since the last call, and all that there are to do
T = TypeVar("T")
PROBES = 16  # images
PROBE_SIDE = 128  # px, side of the square that is cut from the middle; larger where f is so large that it needs to be
PROBE_POSITIONS = 8  # latent positions that a probe has along a side at least, where its image is large enough
QUARTER = 4  # sides are a multiple of 4 f, so that a picture scaled to a quarter still has whole latent positions
VIEWS = 2  # images that are shown to people
BATCH = 8  # probes at a time
Z, RECONSTRUCTION = "z", "reconstruction"  # of what networks give
NOISIER = "training then shows the decoder noisier latents"  # what a higher price of the rate does to a Gaussian
BLANK = "The codec reconstructs nothing: the mean colour of each image is as close to it, so there is nothing to lose."


@dataclass(frozen=True)
class Probes:
    """The probes of a codec, on the host: only networks run on the codec's device.

    image, reconstruction: (N, C, S, S).
    z: (N, c, S/f, S/f), raw mode of the posterior.
    std: standard deviation of all raw latents of the survey, one number for all channels; the unit of latent noise.
    """

    image: Tensor
    z: Tensor
    reconstruction: Tensor
    std: float

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the images around the mean of each channel, range [-1, 1]."""
        return float(in_float64(self.image).std(dim=(0, 2, 3), correction=0).square().mean().sqrt())

    @cached_property
    def blank(self) -> bool:
        """Whether the reconstructions are no closer to the images than each image's mean colour, on 8-bit values."""
        flat = self.image.mean(dim=(2, 3), keepdim=True).expand_as(self.image)
        image, reconstruction, colour = (in_float64(to_uint8(x)) for x in (self.image, self.reconstruction, flat))
        error = (reconstruction - image).square().sum()
        return bool(error > 0 and error >= (colour - image).square().sum())


def probe_side(factor: int) -> int:
    """Side of the largest probe, in pixels."""
    step = QUARTER * factor
    return max(PROBE_SIDE // step * step, -(-PROBE_POSITIONS * factor // step) * step)


def cut_probe(image: Tensor, factor: int) -> Tensor | None:
    """(C, H, W) -> its middle square, with a side that is a multiple of 4 f; None where the image is too small."""
    height, width = image.shape[1:]
    step = QUARTER * factor
    side = min(probe_side(factor), height // step * step, width // step * step)
    if side == 0:
        return None
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def cut_view(image: Tensor, factor: int) -> Tensor | None:
    """(C, H, W) -> its largest middle square, scaled to the side of a probe, so that people see the whole picture."""
    short, step = min(image.shape[1:]), QUARTER * factor
    side = min(probe_side(factor), short // step * step)
    if side == 0:
        return None
    top, left = ((length - short) // 2 for length in image.shape[1:])
    square = image[None, :, top : top + short, left : left + short]
    return F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def make_probes(codec: LatentCodec, cuts: Sequence[Tensor], std: float) -> Probes | None:
    """Probes of one size, with their latents and reconstructions; None where no image has a finite reconstruction.

    The side is the largest that at least half of the cuts have, so that one tiny image does not make all probes tiny.
    Smaller cuts are left out.

    cuts: squares that `cut_probe` or `cut_view` gave.
    std: as in `Probes`.
    """
    if not cuts:
        return None
    side = sorted(cut.shape[1] for cut in cuts)[(len(cuts) - 1) // 2]
    cuts = [cut for cut in cuts if cut.shape[1] >= side]
    margins = [(cut.shape[1] - side) // 2 for cut in cuts]
    images = torch.stack([c[:, m : m + side, m : m + side] for c, m in zip(cuts, margins, strict=True)])
    parts = [
        (part[whole], tensors[Z], tensors[RECONSTRUCTION])
        for part, tensors, whole in in_batches(codec, partial(_reconstructed, codec), images)
    ]
    image, z, reconstruction = (torch.cat(part) for part in zip(*parts, strict=True))
    return Probes(image, z, reconstruction, std) if len(image) else None


def _reconstructed(codec: LatentCodec, image: Tensor) -> tuple[dict[str, Tensor], list[int]]:
    """Latents and reconstructions of the images that have finite ones, and which these are."""
    moments, broken = codec.checked_moments(image)
    encoded = [i for i in range(len(image)) if i not in broken]
    z = codec.draw(at_places(moments, encoded))
    places, reconstruction = decode_whole(codec, z)
    return {Z: at_places(z, places), RECONSTRUCTION: reconstruction}, [encoded[place] for place in places]


def decode_whole(codec: LatentCodec, z: Tensor, size: tuple[int, int] | None = None) -> tuple[list[int], Tensor]:
    """Raw latents -> the indices of those that decode to finite images, and these images."""
    places = list(range(len(z)))
    while places:
        try:
            return places, codec.decode_raw(at_places(z, places), size=size)
        except NonFiniteError as error:
            places = [place for i, place in enumerate(places) if i not in error.samples]
    channels, factor = codec.model.config.out_channels, codec.factor
    height, width = size or (z.shape[2] * factor, z.shape[3] * factor)
    return [], z.new_empty(0, channels, height, width)


@dataclass(frozen=True)
class _Rows:
    """Tensors of one size, on the host: (B, ...)."""

    x: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def part(self, start: int, stop: int) -> _Rows:
        return _Rows(self.x[start:stop])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])


def in_batches(
    codec: LatentCodec, compute: Callable[[Tensor], tuple[dict[str, Tensor], T]], x: Tensor
) -> Iterator[tuple[Tensor, dict[str, Tensor], T]]:
    """Computes on the codec's device, BATCH at a time, or fewer where its memory runs out.

    compute: gets a part of x on the device; returns tensors, and what the host knows without them. May be called again.
    x: (B, ...), on the host.
    Gives each part of x with what came of it, on the host.
    """
    courier = Courier(codec.device)

    def launch(rows: _Rows) -> Finish[tuple[Tensor, dict[str, Tensor], T]]:
        brought = courier.bring(rows.x)
        finish = begin(lambda: compute(brought), codec.device)
        return lambda: (rows.x, *finish())

    return one_behind(map(_Rows, torch.split(x, BATCH)), launch, codec.device)


def decode_in_batches(codec: LatentCodec, z: Tensor) -> Tensor:
    """Raw latents -> images, both on the host. Raises NonFiniteError."""
    found = in_batches(codec, lambda part: ({RECONSTRUCTION: codec.decode_raw(part)}, None), z)
    return torch.cat([tensors[RECONSTRUCTION] for _, tensors, _ in found])


def encode_in_batches(codec: LatentCodec, images: Tensor) -> Tensor:
    """Images -> raw modes of the posterior, both on the host. Raises NonFiniteError."""
    found = in_batches(codec, lambda part: ({Z: codec.draw(codec.moments(part))}, None), images)
    return torch.cat([tensors[Z] for _, tensors, _ in found])


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of two batches (B, C, H, W) on 8-bit values, mean over images; infinite where two images are equal."""
    error = (to_uint8(a).int() - to_uint8(b).int()).square().sum(dim=(1, 2, 3), dtype=torch.int64)
    return float(psnr(error, a[0].numel()).mean())


def noise_like(z: Tensor, seed: int, purpose: str) -> Tensor:
    """Standard normal noise in the shape of z. It is drawn by numpy, so that it is the same on every device."""
    values = rng(seed, purpose).standard_normal(tuple(z.shape), dtype="float32")
    return torch.from_numpy(values).to(z)


def silent(count: int, total: int) -> None:
    """A `Done` for whoever shows no progress."""


def each(steps: Collection[T], images: int, done: Done) -> Iterator[T]:
    """The steps, with progress told after each.

    images: how many images each step takes.
    """
    for step in steps:
        yield step
        done(images, images * len(steps))


def pairs(probes: Probes, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents of each probe and the next, at most `most` pairs; no pair where there is one probe."""
    for i in range(min(most, len(probes.z) - 1)):
        yield probes.z[i], probes.z[i + 1]
