"""Baseline: the best linear codec, PCA of f x f patches with as many numbers per image as a latent has.

Among linear codecs of that shape, PCA has the least squared error on the images it was fitted on (Eckart & Young 1936).
It codes each patch alone and knows nothing of perception.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm_vae.devices import in_float64
from ldm_vae.errors import UserError
from ldm_vae.padding import crop_to
from ldm_vae.transfer import to_device


class PatchPCA:
    """An `ImageCodec` (see evaluate.py) of linear patches."""

    def __init__(self, mean: Tensor, components: Tensor, factor: int, images: int) -> None:
        """mean: (C * f * f,).
        components: (c, C * f * f), orthonormal rows.
        factor: f, side of a patch in pixels.
        images: number of images that it was fitted on.
        """
        self.mean, self.components, self.factor, self.images = mean, components, factor, images

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def to(self, device: torch.device) -> PatchPCA:
        return PatchPCA(to_device(self.mean, device), to_device(self.components, device), self.factor, self.images)

    def describe(self) -> dict[str, str]:
        """What the protocol says of this codec."""
        numbers, f = len(self.components), self.factor
        return {
            "codec": f"PCA of {f} x {f} patches, {numbers} numbers each, fitted on {self.images:,} images",
            "latent": f"{numbers} numbers, float32",
            "padding": f"last row and column repeated to a multiple of {f}, cropped back",
        }

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], any size -> (B, c, H/f, W/f), with sides rounded up."""
        return torch.einsum("bphw,cp->bchw", _patches(images, self.factor) - self.mean[:, None, None], self.components)

    def decode(self, latents: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """(B, c, h, w) -> (B, C, H, W), unclamped. Without a size the images have h*f x w*f pixels."""
        patches = torch.einsum("bchw,cp->bphw", latents, self.components) + self.mean[:, None, None]
        images = rearrange(patches, "b (c p q) h w -> b c (h p) (w q)", p=self.factor, q=self.factor)
        return images if size is None else crop_to(images, size)


class PatchSums:
    """Mean and covariance of the patches of images, summed in float64, from which PCA follows."""

    def __init__(self, factor: int) -> None:
        """factor: f, side of a patch in pixels."""
        self.factor, self.images, self._patches = factor, 0, 0
        self._total, self._products = torch.zeros(()), torch.zeros(())

    def add(self, images: Tensor) -> None:
        """images: (B, C, H, W), any size."""
        patches = rearrange(_patches(in_float64(images), self.factor), "b p h w -> (b h w) p")
        self.images += len(images)
        self._patches += len(patches)
        self._total = self._total + patches.sum(dim=0)
        self._products = self._products + patches.T @ patches

    def fit(self, components: int) -> PatchPCA:
        """PCA of at least one image.

        components: how many numbers code a patch.
        """
        mean = self._total / self._patches
        _, vectors = torch.linalg.eigh(self._products / self._patches - torch.outer(mean, mean))
        return PatchPCA(mean.float(), vectors[:, -components:].T.float(), self.factor, self.images)


def fit_pca(images: Iterable[Tensor], factor: int, components: int) -> PatchPCA:
    """PCA of the patches of all images.

    images: batches (B, C, H, W) of any sizes; they are read once.
    components: how many numbers code a patch.

    Raises UserError where there is no image.
    """
    sums = PatchSums(factor)
    for batch in images:
        sums.add(batch)
    if not sums.images:
        raise UserError("PCA has no image to be fitted on", "name shards with images: --baseline pca=SHARDS")
    return sums.fit(components)


def _patches(images: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) -> (B, C * f * f, H/f, W/f). The last row and column are repeated up to whole patches."""
    height, width = images.shape[2:]
    images = F.pad(images, (0, -width % factor, 0, -height % factor), mode="replicate")
    return rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=factor, q=factor)
