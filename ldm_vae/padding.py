"""Images of any size beside networks that want multiples of f: padded on the right and below, and cropped back."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import torch.nn.functional as F
from torch import Tensor

from ldm_vae.arguments import kind_of
from ldm_vae.errors import UserError


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pads images (B, C, H, W) on the right and below, so that both sides become multiples of `multiple`.

    Pads by reflection; a side that is too short for that repeats its last row or column.
    """
    height, width = images.shape[2:]
    below, right = -height % multiple, -width % multiple
    if below:
        images = F.pad(images, (0, 0, 0, below), mode="reflect" if below < height else "replicate")
    if right:
        images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return images


def crop_to(images: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), without what was padded on the right and below. Raises as `check_size`."""
    check_size(size, images.shape[2], images.shape[3])
    return images[:, :, : size[0], : size[1]]


def check_size(size: Sequence[int], height: int, width: int) -> None:
    """Raises UserError for what is no (H, W) that decoded images of height x width can be cropped to."""
    try:
        rows, columns = map(index, size)
    except (TypeError, ValueError):  # no sequence of integers, or not of two
        given = f"size {tuple(size)}" if isinstance(size, tuple | list) else f"a size of type {kind_of(size)}"
        raise UserError(given, "give (height, width) in pixels, such as images.shape[2:]") from None
    if not (0 < rows <= height and 0 < columns <= width):
        raise UserError(f"size {rows} x {columns}", f"these latents decode to {height} x {width} at most")
