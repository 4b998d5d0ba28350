"""A few images that the costly diagnostics look at again and again, with their latents and reconstructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.metrics.image import psnr
from ldm_vae.noise import rng

PROBES = 16  # images
SIDE = 128  # px; the middle of each, unless f is so large that too few positions would be left
POSITIONS = 8  # latent positions a side that a probe has at least, where its image allows
QUARTER = 4  # sides are a multiple of 4 f, so that a quarter of the picture still has whole latent positions
VIEWS = 2  # images that people are shown
BATCH = 8  # probes at a time
BLANK = "The codec reconstructs nothing: a flat square of each image's mean colour is as close, so nothing can be lost."


@dataclass(frozen=True)
class Probes:
    """image, reconstruction: (N, C, S, S).   z: (N, c, S/f, S/f), the posterior's mode, raw.
    std: of all raw latents of the survey, one number for all channels, the unit of latent noise."""

    image: Tensor
    z: Tensor
    reconstruction: Tensor
    std: float

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the images around the mean of each channel, range [-1, 1]."""
        return float(self.image.double().std(dim=(0, 2, 3), correction=0).square().mean().sqrt())

    @cached_property
    def blank(self) -> bool:
        """Whether the reconstructions are no closer to the images than each image's mean colour, on 8-bit values."""
        flat = self.image.mean(dim=(2, 3), keepdim=True).expand_as(self.image)
        image, reconstruction, colour = (to_uint8(x).double() for x in (self.image, self.reconstruction, flat))
        error = (reconstruction - image).square().sum()
        return bool(error > 0 and error >= (colour - image).square().sum())


def probe_side(factor: int) -> int:
    """px, of the largest probe."""
    step = QUARTER * factor
    return max(SIDE // step * step, -(-POSITIONS * factor // step) * step)


def cut_probe(image: Tensor, factor: int) -> Tensor | None:
    """(C, H, W) -> its middle square, of a side that is a multiple of 4 f; None where it is too small for that."""
    height, width = image.shape[1:]
    step = QUARTER * factor
    side = min(probe_side(factor), height // step * step, width // step * step)
    if side == 0:
        return None
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def cut_view(image: Tensor, factor: int) -> Tensor | None:
    """(C, H, W) -> its middle square, made smaller to the side of a probe, so that people see what it shows."""
    short, step = min(image.shape[1:]), QUARTER * factor
    side = min(probe_side(factor), short // step * step)
    if side == 0:
        return None
    top, left = ((length - short) // 2 for length in image.shape[1:])
    square = image[None, :, top : top + short, left : left + short]
    return F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def make_probes(codec: LatentCodec, cuts: Sequence[Tensor], std: float) -> Probes | None:
    """cuts: of `cut_probe` or `cut_view`, brought to one side: the largest that at least half of them have, so that one
    tiny image among large ones does not make all tiny; smaller ones are left out. None where none reconstructs."""
    if not cuts:
        return None
    side = sorted(cut.shape[1] for cut in cuts)[(len(cuts) - 1) // 2]
    cuts = [cut for cut in cuts if cut.shape[1] >= side]
    margins = [(cut.shape[1] - side) // 2 for cut in cuts]
    images = torch.stack([c[:, m : m + side, m : m + side] for c, m in zip(cuts, margins, strict=True)])
    parts = []
    for image in torch.split(images.to(codec.device), BATCH):
        moments, broken = codec.checked_moments(image)
        whole = [i for i in range(len(image)) if i not in broken]
        z = codec.draw(moments[whole])
        places, reconstruction = decode_whole(codec, z)
        parts.append((image[whole][places], z[places], reconstruction))
    image, z, reconstruction = (torch.cat(part) for part in zip(*parts, strict=True))
    return Probes(image, z, reconstruction, std) if len(image) else None


def decode_whole(codec: LatentCodec, z: Tensor, size: tuple[int, int] | None = None) -> tuple[list[int], Tensor]:
    """Raw latents -> the places of those that decode to finite images, and these images."""
    places = list(range(len(z)))
    while places:
        try:
            return places, codec.decode_raw(z[places], size=size)
        except NonFiniteError as error:
            places = [place for i, place in enumerate(places) if i not in error.samples]
    channels, factor = codec.model.config.out_channels, codec.factor
    height, width = size or (z.shape[2] * factor, z.shape[3] * factor)
    return [], z.new_empty(0, channels, height, width)


def decode_in_batches(codec: LatentCodec, z: Tensor) -> Tensor:
    """Raw latents -> images. Raises NonFiniteError."""
    return torch.cat([codec.decode_raw(part) for part in torch.split(z, BATCH)])


def encode_in_batches(codec: LatentCodec, images: Tensor) -> Tensor:
    """Images -> the posterior's mode, raw. Raises NonFiniteError."""
    return torch.cat([codec.draw(codec.moments(part)) for part in torch.split(images, BATCH)])


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """(B, C, H, W) each -> dB on 8-bit values, mean over images; infinite where two are equal."""
    error = (to_uint8(a).int() - to_uint8(b).int()).square().sum(dim=(1, 2, 3), dtype=torch.int64)
    return float(psnr(error, a[0].numel()).mean())


def noise_like(z: Tensor, seed: int, purpose: str) -> Tensor:
    """Standard normal, of the shape of z, drawn on the CPU, so that it is the same on every device."""
    values = rng(seed, purpose).standard_normal(tuple(z.shape), dtype="float32")
    return torch.from_numpy(values).to(z)


def pairs(probes: Probes, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents of neighbouring probes, at most `most` pairs; none where there is one probe."""
    for i in range(min(most, len(probes.z) - 1)):
        yield probes.z[i], probes.z[i + 1]
