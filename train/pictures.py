"""Pictures of a validation: the fixed images beside their reconstructions, what differs, and the latent channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm_vae.codec import LatentCodec, NonFiniteError, to_pil

GAIN = 4  # of differences: one of 64 of 255 shows as white
TILE = 128  # pixels along the longer side of a latent channel, at least
COLOURS = (1, 3, 4)  # channels that a picture can have; of other images the first is shown as grey


@dataclass(frozen=True)
class Shown:
    """A fixed image as the codec sees it now.

    original, reconstruction: (1, C, H, W) in [-1, 1], on the CPU; plain grey where there is no finite reconstruction.
    latent: (c, h, w), the raw mode of the posterior, on the CPU; None where it is not finite.
    """

    original: Tensor
    reconstruction: Tensor
    latent: Tensor | None


def reconstruct(codec: LatentCodec, image: Tensor) -> Shown:
    """(1, C, H, W) -> the image with its reconstruction from the mode; nothing is drawn at random."""
    latent = None
    try:
        z = codec.draw(codec.moments(image))
        latent = z[0].float().cpu()
        reconstruction = codec.decode_raw(z, size=(image.shape[2], image.shape[3])).cpu()
    except NonFiniteError:
        reconstruction = torch.zeros_like(image)
    return Shown(image, reconstruction, latent)


def draw_sheet(shown: Sequence[Shown]) -> Image.Image:
    """One picture of all: a row for each image, the original on the left, the reconstruction on the right."""
    rows = [_picture(torch.cat([one.original, one.reconstruction], dim=3)) for one in shown]
    sheet = Image.new(rows[0].mode, (max(row.width for row in rows), sum(row.height for row in rows)))
    for top, row in zip(accumulate((row.height for row in rows), initial=0), rows, strict=False):
        sheet.paste(row, (0, top))
    return sheet


def pictures_for_trackers(shown: Sequence[Shown]) -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures. Of image 0:

    images/0: original, reconstruction and the absolute difference times GAIN, side by side; black is no difference.
    latents/0: the latent channels, line by line; grey is zero, black and white are the largest absolute value.
    """
    for number, one in enumerate(shown):
        channels = 3 if one.original.shape[1] in COLOURS[1:] else 1  # without an alpha channel, which would hide
        original, reconstruction = one.original[:, :channels], one.reconstruction[:, :channels]
        difference = (reconstruction.clamp(-1, 1) - original).abs() * GAIN - 1  # [0, 2] * GAIN / 2 as [0, 1]
        yield f"images/{number}", _picture(torch.cat([original, reconstruction, difference], dim=3))
        if one.latent is not None:
            yield f"latents/{number}", draw_channels(one.latent)


def draw_channels(latent: Tensor) -> Image.Image:
    """(c, h, w) -> the channels as grey tiles, each in its own range, in a grid that is about square."""
    channels, height, width = latent.shape
    limits = latent.abs().amax(dim=(1, 2), keepdim=True)
    unit = latent / limits.clamp(min=torch.finfo(latent.dtype).tiny)
    factor = max(1, TILE // max(height, width))
    tiles = unit.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    tiles = F.pad(tiles, (0, 1, 0, 1), value=1.0)  # a white line between tiles
    columns = math.ceil(math.sqrt(channels))
    empty = -channels % columns
    tiles = torch.cat([tiles, tiles.new_ones(empty, *tiles.shape[1:])])
    lines = [torch.cat(list(tiles[i : i + columns]), dim=1) for i in range(0, len(tiles), columns)]
    return _picture(torch.cat(lines)[None, None, :-1, :-1])


def _picture(image: Tensor) -> Image.Image:
    """(1, C, H, W) -> a picture, of the first channel where there are no colours."""
    return to_pil(image if image.shape[1] in COLOURS else image[:, :1])[0]
