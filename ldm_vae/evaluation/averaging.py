"""Baseline: averages over f x f pixels, shown as flat squares: what any codec of factor f must beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_vae.padding import crop_to


class PatchAveraging:
    """An `ImageCodec` (see evaluate.py) that keeps the mean colour of each patch: as many numbers as channels."""

    def __init__(self, factor: int, device: torch.device) -> None:
        """factor: f, side of a patch in pixels."""
        self.factor, self.device = factor, device

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], any size -> (B, C, H/f, W/f), with sides rounded up.

        A patch that the image fills in part is averaged over that part.
        """
        return F.avg_pool2d(images, self.factor, ceil_mode=True, count_include_pad=False)

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        """(B, C, h, w) -> (B, C, H, W), flat squares.

        size: (H, W) of the images.
        """
        flat: Tensor = F.interpolate(latents, scale_factor=self.factor, mode="nearest")
        return crop_to(flat, size)
