"""From the bytes of a picture file to what the network sees: decoded, resized, cropped and flipped.

Without a generator the pixels are those of `fit_image(decode_image(...))`. So they are with one where nothing is
resized, in less time: of a picture of 8 bits, only the part that is kept has its colours converted, and it stays in 8
bits. With a resize they differ by rounding, since only the part that is kept is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ldm_vae.data.images.decode import Picture, open_picture
from ldm_vae.data.images.fit import ImageConfig, mirrored, plan_fit
from ldm_vae.data.images.pixels import PixelArray, unit_levels, unit_planes
from ldm_vae.data.images.resize import ALIASED, Kept, Source, resize_floats, resize_image, resize_levels, source_of

FULL = 255  # what becomes 1 of a picture of 8 bits


class Prepared(NamedTuple):
    """A picture that is ready to become part of a batch.

    pixels: (C, h, w), uint8, which `unit_levels` turns into floats, or float32 in [-1, 1].
    lowest: the lowest value of a file of floats, before it is fitted (`Picture.lowest`).
    """

    pixels: PixelArray
    lowest: float | None

    def floats(self) -> PixelArray:
        """(C, h, w) float32 in [-1, 1]."""
        return unit_levels(self.pixels) if self.pixels.dtype == np.uint8 else self.pixels


def prepare_image(data: bytes, extension: str, config: ImageConfig, generator: np.random.Generator | None) -> Prepared:
    """Decodes and fits a picture.

    extension: without dot, any case.
    generator: gives every random choice (`plan_fit`), in training. None means centre crop and no flip, and an exact
        resize of the whole picture.
    Raises BrokenImage with the reason, and UserError if a package is missing.
    """
    exact = generator is None or config.resize_filter == ALIASED
    with open_picture(data, extension, config.channels) as picture:
        kept, flip = plan_fit(config.channels, picture.height, picture.width, config, generator)
        lowest, stays = picture.lowest, (picture.height, picture.width) == (kept.height, kept.width)
        source = _source(picture, kept, config, stays=stays, exact=exact)
        pixels, full = picture.read(source.rows, source.columns)
    del picture  # and what its decoder holds, before floats take memory
    if stays:
        planes = pixels.transpose(2, 0, 1) if full == FULL else unit_planes(pixels, full)
        return Prepared(mirrored(planes, flip, holds_more=kept.is_part), lowest)
    if exact:
        rows, columns = kept.places()
        whole = resize_image(pixels, full, kept.height, kept.width, config.resize_filter, config.resize_rounding)
        return Prepared(mirrored(whole[:, rows, columns], flip, holds_more=kept.is_part), lowest)
    resize = resize_levels if config.resize_rounding == "8bit" else resize_floats
    part = resize(pixels, full, source.box, kept.rows, kept.columns, config.resize_filter)
    return Prepared(mirrored(part, flip, holds_more=False), lowest)


def _source(picture: Picture, kept: Kept, config: ImageConfig, *, stays: bool, exact: bool) -> Source:
    """What has to be read of a picture.

    stays: it already has the size after the resize.
    exact: it is resized as a whole.
    """
    whole = (0.0, 0.0, float(picture.width), float(picture.height))
    if stays:
        return Source(*kept.places(), whole)
    if exact:
        return Source(slice(0, picture.height), slice(0, picture.width), whole)
    if config.jpeg_scaling:
        return source_of(*picture.shrink(kept.height, kept.width), kept, config.resize_filter)
    return source_of(picture.height, picture.width, kept, config.resize_filter)
