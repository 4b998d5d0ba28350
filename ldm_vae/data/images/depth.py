"""Mixes channels at the depth they have: profile, alpha and grey of TIFF and 16-bit PNG. Needs the extra `raster`.

Pillow would cut them down to 8 bits. Mixing is done in float64, a block of rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldm_vae.data.images.pixels import BLOCK, BrokenImage, PixelArray, check_size, decoding
from ldm_vae.data.images.png import check_inflated, samples
from ldm_vae.extras import extra
from ldm_vae.machine import allocation_failed

with decoding(), extra("raster", "tiff and 16-bit png"):
    import imagecodecs

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601-2


@dataclass(frozen=True)
class Layout:
    """What the samples of a pixel are, in this order: colours, opacity, and data that is neither."""

    samples: int
    """All of them."""

    colours: int
    """1 for grey, 3 for RGB, 4 for CMYK."""

    full: int
    """The value of an integer that means full scale; 0 for floats in [-1, 1]."""

    alpha: bool = False
    """Whether the one behind the colours is their opacity."""

    premultiplied: bool = False
    """Whether the colours were multiplied by it."""

    band: bool = False
    """Whether a single one may be a band of a raster, and no grey picture."""

    @property
    def mixes(self) -> bool:
        """Whether it is a picture: its channels can be turned into others."""
        return self.samples == self.colours + self.alpha

    def check(self, channels: int) -> None:
        """Raises BrokenImage if no `channels` channels can be made of these. Call it before any pixel is decoded."""
        if self.premultiplied and not self.full:
            raise BrokenImage("floats with premultiplied alpha: save it straight (unassociated)")
        opaque = self.colours > 1 or not self.band  # a picture, whose alpha is full
        if self.mixes and (channels in (1, 3) or (channels == 4 and (self.alpha or opaque))):
            return
        if self.samples != channels or self.colours == 4 or self.premultiplied:
            raise BrokenImage(f"{self.samples} channels where {channels} are wanted")


def read_deep_png(data: bytes, channels: int, profile: bytes | None) -> tuple[PixelArray, int]:
    """16-bit PNG -> (H, W, channels) and full scale, as `mix` gives them."""
    present = samples(data)
    layout = Layout(present, colours=1 if present < 3 else 3, full=65535, alpha=present in (2, 4))
    layout.check(channels)
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    check_size(height, width, present, channels, itemsize=2)
    check_inflated(data)
    with decoding():
        pixels = imagecodecs.png_decode(data)
    return mix(three_axes(pixels), layout, channels, profile)


def three_axes(pixels: PixelArray) -> PixelArray:
    """(H, W) or (H, W, n) -> (H, W, n)."""
    if pixels.ndim not in (2, 3):
        raise BrokenImage(f"pixels of shape {pixels.shape} are no picture")
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def mix(pixels: PixelArray, layout: Layout, channels: int, profile: bytes | None) -> tuple[PixelArray, int]:
    """Steps 2 to 4 of `decode.py`: (H, W, n) -> (H, W, channels).

    Also returns the full scale of integers, or 0 for floats in [-1, 1], which is what mixing gives.
    """
    present, full = pixels.shape[2], layout.full
    profile = profile if full else None  # floats are data
    if present == channels and not (layout.mixes and (layout.premultiplied or profile or layout.colours == 4)):
        return pixels, full
    if channels < 4 and not layout.alpha and not profile and present == layout.colours and present in (1, channels):
        return np.broadcast_to(pixels, (*pixels.shape[:2], channels)), full
    # The planes are apart already, so that step 6 needs no copy.
    mixed = np.empty((channels, *pixels.shape[:2]), np.float32).transpose(1, 2, 0)
    rows = max(1, BLOCK // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        mixed[top : top + rows] = _mixed(pixels[top : top + rows], layout, channels, profile)
    return mixed, 0


def _mixed(pixels: PixelArray, layout: Layout, channels: int, profile: bytes | None) -> PixelArray:
    """A block of rows -> (h, W, 1 or channels), float64 in [-1, 1]."""
    colour, full = pixels[:, :, : layout.colours], layout.full
    opacity = None
    if layout.alpha:
        alpha = pixels[:, :, layout.colours :]
        opacity = alpha / full if full else (alpha + 1.0) / 2.0
        if layout.premultiplied:
            colour = np.minimum(colour / np.where(alpha > 0, alpha, 1), 1.0) * (full * (alpha > 0))
    unit = colour / full * 2.0 - 1.0 if full else colour.astype(np.float64)
    converted = _to_srgb(colour, full, profile) if profile else None
    if converted is not None:
        unit = converted
    elif layout.colours == 4:
        unit = (1.0 - unit[:, :, :3]) * (1.0 - unit[:, :, 3:]) / 2.0 - 1.0  # inks: 1 hides the paper
    if channels == 4:
        fourth = np.ones_like(unit[:, :, :1]) if opacity is None else opacity * 2.0 - 1.0
        return np.concatenate([np.broadcast_to(unit, (*unit.shape[:2], 3)), fourth], axis=2)
    if opacity is not None:
        unit = 1.0 + (unit - 1.0) * opacity  # over white, which is 1
    return unit @ np.array(GREY_WEIGHTS)[:, None] if channels == 1 and unit.shape[2] == 3 else unit


def _to_srgb(colour: PixelArray, full: int, profile: bytes) -> PixelArray | None:
    """(h, W, 1, 3 or 4) -> (h, W, 3) in sRGB, float64 in [-1, 1]; None if the profile does not open or does not fit."""
    if colour.dtype != np.uint8 or full != 255:
        colour = (colour * (65535.0 / full)).round().astype(np.uint16)
    # At 16 bits littlecms would replace curves and matrix by a coarse table, off by 4 steps of 8 bits in dark colours.
    flags = imagecodecs.CMS.FLAGS.NOOPTIMIZE if colour.dtype == np.uint16 else None
    space = {1: "gray", 3: "rgb", 4: "cmyk"}[colour.shape[2]]
    pixels = np.ascontiguousarray(colour[:, :, 0] if space == "gray" else colour)
    target = imagecodecs.cms_profile("srgb")
    with decoding():
        try:
            converted = imagecodecs.cms_transform(
                pixels, profile, target, colorspace=space, outcolorspace="rgb", flags=flags
            )
        except imagecodecs.CmsError:
            if allocation_failed():
                raise MemoryError("no memory for the transform of a colour profile") from None
            return None
    return np.asarray(converted) / float(np.iinfo(colour.dtype).max) * 2.0 - 1.0
