"""Pillow, numpy and bytes <-> the tensors that a codec takes. Ranges are named, and never guessed.

    from ldm_vae import from_pil, to_pil          also from_numpy, to_numpy, from_uint8, to_uint8

Images are (B, C, H, W) in [-1, 1] inside: 8 bits x become x / 127.5 - 1, the very numbers of torchvision's `to_tensor`
and of diffusers' `VaeImageProcessor`. Back again they are clamped and rounded; a value halfway between two levels may
become the other one than there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.data.images.pixels import RANGE_TOLERANCE, BrokenImage, from_pillow
from ldm_vae.data.images.pixels import to_uint8 as to_uint8
from ldm_vae.errors import UserError
from ldm_vae.precision import name_of_type

Array = npt.NDArray[Any]
ONE = (Image.Image, np.ndarray, Tensor, str)  # what can be iterated over, and is no list of pictures
ONE_BY_ONE = "give those of one size at a time: [codec.encode({}(image)) for image in images]"


def from_pil(images: Image.Image | Iterable[Image.Image], channels: int = 3) -> Tensor:
    """Pictures of Pillow of one size -> (B, channels, H, W), float32 in [-1, 1].

    Modes of 8 bits: palettes, grey, CMYK and embedded profiles become sRGB, transparent pixels white, as in training.
    Raises UserError for other modes, such as those of 16 bits, for damaged pictures, and for pictures of several sizes.

    channels: of the codec: 1 grey, 3 RGB, 4 RGBA.

    >>> from PIL import Image
    >>> from_pil(Image.new("RGB", (32, 16), "white")).shape
    torch.Size([1, 3, 16, 32])
    """
    pictures: list[Any] = [images] if isinstance(images, ONE) or not isinstance(images, Iterable) else list(images)
    for one in pictures:
        if not isinstance(one, Image.Image):
            raise _wrong_kind(one, "a picture of Pillow", "from_pil", "give Image.open(FILE)")
    _require_one_size("pictures", {picture.size for picture in pictures}, len(pictures), "from_pil")
    return from_numpy(np.stack([_pixels(picture, channels) for picture in pictures]))


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 1, 3 or 4, H, W), clamped to [-1, 1] -> B pictures of Pillow, of 8 bits.

    >>> to_pil(torch.zeros(2, 3, 16, 32))[0].size
    (32, 16)
    """
    return [Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array) for array in to_numpy(images)]


def from_numpy(array: Array | Sequence[Array], values: tuple[float, float] | None = None) -> Tensor:
    """(B, H, W, C) or (H, W, C), or a list of the latter -> (B, C, H, W), float32 in [-1, 1].

    Raises UserError for other shapes, for floats without `values`, and for numbers outside of them.

    values: what becomes -1 and 1. None takes uint8 alone, whose 0 and 255 do.

    >>> from_numpy(np.zeros((16, 32, 3), np.uint8)).min()
    tensor(-1.)
    >>> from_numpy(np.ones((16, 32, 3), np.float32), values=(0, 1)).max()
    tensor(1.)
    """
    several = isinstance(array, list | tuple)
    arrays: list[Any] = list(array) if several else [array]
    for one in arrays:
        if not isinstance(one, np.ndarray):
            raise _wrong_kind(one, "an array", "from_numpy", "give (B, H, W, C) or (H, W, C)")
    _require_one_size("arrays", {one.shape for one in arrays}, len(arrays), "from_numpy")
    array = np.stack(arrays) if several else arrays[0]
    assert isinstance(array, np.ndarray)
    what = f"an array of {array.dtype}, shape {list(array.shape)}"
    if array.dtype.kind not in "buif":
        raise UserError(what, "give integers, or floats with values=(0, 1)")
    if array.ndim not in (3, 4):
        raise UserError(what, "give (B, H, W, C) or (H, W, C), such as array[..., None] of grey (H, W)")
    if values is None and array.dtype != np.uint8:
        raise UserError(what, "give uint8, or say which numbers are black and white: from_numpy(array, values=(0, 1))")
    batch = array if array.ndim == 4 else array[None]
    tensor = torch.from_numpy(np.array(batch, order="C")).permute(0, 3, 1, 2)  # a copy, without negative strides
    return from_uint8(tensor) if values is None else _scaled(tensor.double(), *values)


def to_numpy(images: Tensor) -> npt.NDArray[np.uint8]:
    """(B, C, H, W), clamped to [-1, 1] -> (B, H, W, C) uint8, rounded.

    >>> to_numpy(torch.ones(1, 3, 1, 1)).tolist()
    [[[[255, 255, 255]]]]
    """
    array: npt.NDArray[np.uint8] = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return array


def from_uint8(images: Tensor) -> Tensor:
    """A tensor (B, C, H, W) or (C, H, W) of uint8, as torchvision reads files -> (B, C, H, W), float32 in [-1, 1].

    >>> from_uint8(torch.full((3, 16, 32), 255, dtype=torch.uint8)).shape
    torch.Size([1, 3, 16, 32])
    """
    if not isinstance(images, Tensor):
        raise _wrong_kind(images, "a tensor", "from_uint8", "give uint8 (B, C, H, W) or (C, H, W)")
    if images.dtype != torch.uint8 or images.ndim not in (3, 4):
        what = f"a tensor of shape {list(images.shape)}, {name_of_type(images.dtype)}"
        raise UserError(what, "give uint8 (B, C, H, W) or (C, H, W)")
    return (images if images.ndim == 4 else images[None]).float() / 127.5 - 1.0


def _pixels(picture: Image.Image, channels: int) -> Array:
    """(H, W, channels) uint8. What no decoder of training would take is a mistake of the caller here."""
    try:
        return from_pillow(picture, channels)
    except BrokenImage as error:
        remedy = "give one of more than 8 bits to from_numpy with values=(black, white), and leave a damaged one out"
        raise UserError(f"a picture of {picture.width} x {picture.height}: {error.reason}", remedy) from error


def _wrong_kind(value: object, wanted: str, helper: str, remedy: str) -> UserError:
    """The error for a value that `helper` does not take.

    wanted: what it takes.   remedy: what to do where no other helper takes the value.
    """
    takers = {Image.Image: "from_pil", np.ndarray: "from_numpy", Tensor: "from_uint8"}
    taker = next((name for kind, name in takers.items() if isinstance(value, kind)), helper)
    if isinstance(value, Tensor) and value.is_floating_point():
        remedy = "tensors of floats need no helper: give the codec (B, C, H, W) in [-1, 1]"
    elif taker != helper:
        remedy = f"{taker} takes it"
    given = repr(value)[:100] if isinstance(value, str | Path) else type(value).__name__
    return UserError(f"{given} in place of {wanted}", remedy)


def _scaled(x: Tensor, low: float, high: float) -> Tensor:
    """Numbers from low to high, in float64 -> [-1, 1] in float32."""
    if not low < high:
        raise UserError(f"values=({low:g}, {high:g})", "give the number of black, then that of white, such as (0, 1)")
    scaled = (x - low) / (high - low) * 2 - 1
    if x.numel() and not scaled.abs().max() <= 1 + RANGE_TOLERANCE:  # NaN is refused, too
        given = f"an array from {x.min():g} to {x.max():g} with values=({low:g}, {high:g})"
        raise UserError(given, "give what it really holds, or clip it")
    return scaled.float()


def _require_one_size(what: str, sizes: set[Any], count: int, helper: str) -> None:
    if len(sizes) != 1:
        remedy = ONE_BY_ONE.format(helper) if count else "give at least one"
        raise UserError(f"{count} {what} of {len(sizes)} sizes", remedy)
