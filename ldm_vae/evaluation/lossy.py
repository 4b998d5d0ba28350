"""JPEG and WebP at the bytes that a latent of 16 bits takes.

A latent has c numbers for f x f pixels, so an image of H x W pixels may take 2 c ceil(H / f) ceil(W / f) bytes; the
quality is chosen for each image, so that its file comes nearest to that. Pillow writes the files, with its defaults:
chroma of JPEG at half resolution.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.codec import from_pil, to_pil
from ldm_vae.errors import UserError
from ldm_vae.ranks import all_gather

Format = Literal["jpeg", "webp"]
QUALITIES: dict[Format, tuple[int, int]] = {"jpeg": (1, 100), "webp": (0, 100)}  # Pillow's, lowest and highest
LATENT_BYTES = 2  # of a number


@dataclass(frozen=True)
class _File:
    quality: int
    bytes: int
    budget: int
    pixels: int


class LossyCodec:
    """Codec with the face that `ldm_vae.evaluation.evaluate` asks for; its latents are the bytes of files."""

    def __init__(self, kind: Format, *, factor: int, numbers: int, channels: int, device: torch.device) -> None:
        """factor, numbers: f and c of the latent whose bytes it may take.   channels: of the images."""
        if channels not in (1, 3):
            raise UserError(f"{kind} of images with {channels} channels", "it holds 1 or 3; leave this baseline out")
        self.kind, self.factor, self.numbers, self.channels, self.device = kind, factor, numbers, channels, device
        self._files: list[_File] = []

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, L) uint8, files padded with zeros to the longest."""
        files = [self._nearest(picture) for picture in to_pil(images)]
        latents = torch.zeros(len(files), max(map(len, files)), dtype=torch.uint8)
        for row, data in zip(latents, files, strict=True):
            row[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return latents

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """(B, L) -> (B, C, H, W) in [-1, 1]; the files know their size."""
        pictures = [Image.open(io.BytesIO(row.numpy().tobytes())) for row in latents]
        images = from_pil(
            [picture.convert("L" if self.channels == 1 else "RGB") for picture in pictures], self.channels
        )
        assert images.shape[2:] == size
        return images.to(self.device)

    def describe(self) -> dict[str, str]:
        """What the protocol says of it, after the images of all processes were encoded; all must call this."""
        files = [file for found in all_gather(self._files) for file in found]
        pixels = sum(file.pixels for file in files)
        taken, budget = (sum(getattr(file, name) for file in files) / pixels for name in ("bytes", "budget"))
        low, high = QUALITIES[self.kind]
        qualities = sorted(file.quality for file in files)
        facts = {
            "codec": f"{self.kind.upper()} by Pillow {version('Pillow')}, defaults, quality by image",
            "latent": f"a file of {taken:.4f} bytes per pixel; a latent of 16 bits has {budget:.4f}",
            "padding": "none",
            "quality": f"{qualities[0]} to {qualities[-1]}, median {int(np.median(qualities))}",
        }
        above = sum(file.quality == low and file.bytes > file.budget for file in files)
        below = sum(file.quality == high and file.bytes < file.budget for file in files)
        if above:
            facts["over_budget"] = f"{above} of {len(files)} images take more even at quality {low}"
        if below:
            facts["under_budget"] = f"{below} of {len(files)} images take less even at quality {high}"
        return facts

    def _nearest(self, picture: Image.Image) -> bytes:
        """The file whose size comes nearest to the budget, the better one of two."""
        width, height = picture.size
        budget = LATENT_BYTES * self.numbers * -(-height // self.factor) * -(-width // self.factor)
        written: dict[int, bytes] = {}

        def size(quality: int) -> int:
            if quality not in written:
                written[quality] = _write(picture, self.kind, quality)
            return len(written[quality])

        low, high = QUALITIES[self.kind]
        first = _first_at_least(budget, size, low, high)
        quality = min(range(max(low, first - 1), first + 1), key=lambda q: (abs(size(q) - budget), -q))
        self._files.append(_File(quality, size(quality), budget, width * height))
        return written[quality]


def _first_at_least(budget: int, size: Callable[[int], int], low: int, high: int) -> int:
    """The lowest quality whose file takes the budget, by bisection, as sizes grow with quality; `high` if none does."""
    while low < high:
        middle = (low + high) // 2
        if size(middle) >= budget:
            high = middle
        else:
            low = middle + 1
    return low


def _write(picture: Image.Image, kind: Format, quality: int) -> bytes:
    file = io.BytesIO()
    try:
        picture.save(file, kind, quality=quality)
    except (OSError, ValueError) as error:  # WebP ends at 16383 pixels, JPEG at 65535
        what = f"{kind} can't hold an image of {picture.width} x {picture.height} ({error})"
        raise UserError(what, "resize the images, or leave this baseline out") from error
    return file.getvalue()
