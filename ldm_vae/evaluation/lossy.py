"""Baseline: JPEG and WebP files of as many bytes as a latent of 16 bits per number.

A latent has c numbers for f x f pixels, so the file of an image of H x W pixels may take 2 c ceil(H / f) ceil(W / f)
bytes. For each image the quality is chosen whose file comes nearest to that. Pillow writes the files with its defaults;
JPEG then has its chroma at half resolution.
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
from ldm_vae.system import system_error

LossyFormat = Literal["jpeg", "webp"]
QUALITIES: dict[LossyFormat, tuple[int, int]] = {"jpeg": (1, 100), "webp": (0, 100)}  # lowest and highest of Pillow
LATENT_BYTES = 2  # bytes of a number


@dataclass(frozen=True)
class _File:
    """What one image became. `budget` is the number of bytes that its latent would take."""

    quality: int
    bytes: int
    budget: int
    pixels: int


class LossyCodec:
    """An `ImageCodec` (see evaluate.py) whose latents are the bytes of files."""

    def __init__(self, kind: LossyFormat, *, factor: int, numbers: int, channels: int, device: torch.device) -> None:
        """factor, numbers: f and c of the latent that gives the number of bytes.
        channels: channels of the images.
        """
        if channels not in (1, 3):
            raise UserError(f"{kind} of images with {channels} channels", "it can hold 1 or 3; leave this baseline out")
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
        """What the protocol says of the files of all processes. All must call it after encoding their images."""
        files = [file for part in all_gather(self._files) for file in part]
        pixels = sum(file.pixels for file in files)
        taken, budget = (sum(getattr(file, name) for file in files) / pixels for name in ("bytes", "budget"))
        low, high = QUALITIES[self.kind]
        qualities = sorted(file.quality for file in files)
        facts = {
            "codec": f"{self.kind.upper()} by Pillow {version('Pillow')}, defaults, quality by image",
            "latent": f"a file of {taken:.4f} bytes per pixel; a latent of 16 bits per number takes {budget:.4f}",
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
        """The file whose size is nearest to the budget; of two that are as near, the one of higher quality."""
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
    """The lowest quality whose file has at least the budget; `high` where no file has. Sizes grow with quality."""
    while low < high:
        middle = (low + high) // 2
        if size(middle) >= budget:
            high = middle
        else:
            low = middle + 1
    return low


def _write(picture: Image.Image, kind: LossyFormat, quality: int) -> bytes:
    file = io.BytesIO()
    try:
        picture.save(file, kind, quality=quality)
    except (OSError, ValueError) as error:
        if system_error(error) is not None:
            raise
        # Otherwise the sides are too long: WebP ends at 16383 pixels, JPEG at 65535
        what = f"{kind} cannot hold an image of {picture.width} x {picture.height} ({error})"
        raise UserError(what, "resize the images, or leave this baseline out") from error
    return file.getvalue()
