"""The pixel values that a metric compares, on a scale from 0 to 255: published protocols round them differently.

nearest    clamped and rounded to the nearest level, half to even
upward     floor(127.5 x + 128), clamped: half a level more than `truncated` (DiT, VA-VAE)
truncated  floor(255 (x + 1) / 2), clamped: on average half a level too dark (CompVis, SEED)
clamped    clamped, not rounded
decoded    as the codec decoded them, also outside of [0, 255]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.devices import in_float64
from ldm_vae.precision import at_least_float32

Rounding = Literal["nearest", "upward", "truncated", "clamped", "decoded"]


def _truncated(image: Tensor) -> Tensor:
    """In float32 this takes one level off 95 of the 256 exact ones, as it does in the scripts.

    Which ones they are hangs on the last digit of v / 127.5 - 1. The scripts' readers compute it in float64 and ours in
    float32, so an exact level is first given the scripts' float: without that, PSNR was off by 0.04 dB.
    """
    image = at_least_float32(image)
    theirs = (in_float64(to_uint8(image)) / 127.5 - 1.0).to(image)
    image = torch.where((image - theirs).abs() < 2 * torch.finfo(torch.float32).eps, theirs, image)
    return ((image.clamp(-1.0, 1.0) + 1.0) / 2.0 * 255.0).to(torch.uint8)


def _upward(image: Tensor) -> Tensor:
    return (127.5 * at_least_float32(image) + 128.0).clamp(0.0, 255.0).to(torch.uint8)


def _decoded(image: Tensor) -> Tensor:
    return (at_least_float32(image) + 1.0) * 127.5


def _clamped(image: Tensor) -> Tensor:
    return _decoded(image.clamp(-1.0, 1.0))


ROUNDINGS: Mapping[Rounding, Callable[[Tensor], Tensor]] = {
    "nearest": to_uint8,
    "upward": _upward,
    "truncated": _truncated,
    "clamped": _clamped,
    "decoded": _decoded,
}
assert tuple(ROUNDINGS) == get_args(Rounding)


class ImagePairs:
    """A batch of reconstructions and their images, as each metric wants to see them."""

    def __init__(self, reconstruction: Tensor, image: Tensor) -> None:
        """reconstruction, image: (B, C, H, W), floats in [-1, 1], which the reconstruction may leave; or uint8, which
        no rounding changes."""
        self.reconstruction = reconstruction
        self.image = image
        self._rounded: dict[Rounding, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.image)

    def rounded(self, rounding: Rounding) -> tuple[Tensor, Tensor]:
        """Reconstruction and image, 0 to 255; uint8 where they are rounded. The same tensors at every call."""
        if rounding not in self._rounded:
            ours, theirs = self.reconstruction, self.image
            if theirs.dtype != torch.uint8:
                ours, theirs = ROUNDINGS[rounding](ours), ROUNDINGS[rounding](theirs)
            self._rounded[rounding] = ours, theirs
        return self._rounded[rounding]
