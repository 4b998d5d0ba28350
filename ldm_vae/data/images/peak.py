"""Says from the header of a picture file how much memory the picture will take, before anything is decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ldm_vae.data.images.decode import read_npy_header
from ldm_vae.data.images.fit import ImageConfig, fitting_peak
from ldm_vae.data.images.pixels import PILLOW, PILLOW_WEBP, BrokenImage, decoding, decoding_peak
from ldm_vae.data.images.png import SIGNATURE


def picture_peak(data: bytes, extension: str, config: ImageConfig) -> int:
    """Bytes that `prepare_image`, or `decode_image` and then `fit_image`, take at the peak, beside the file itself.

    0 for a file that `decode_image` will refuse by its header.
    """
    try:
        height, width, present, itemsize, least = _header(data, extension.lower(), config.channels)
    except BrokenImage:
        return 0
    decoded = decoding_peak(height, width, present, config.channels, itemsize=itemsize, least=least)
    return max(decoded, fitting_peak(config.channels, height, width, config) if min(height, width) > 0 else 0)


def _header(data: bytes, extension: str, channels: int) -> tuple[int, int, int, int, int]:
    """(height, width, channels, bytes of a value, least bytes a pixel of the decoder), as the header tells them."""
    if extension == "npy":
        shape, dtype = read_npy_header(io.BytesIO(data))
        values = int(np.prod(shape, dtype=object))
        height, width = (*shape[1:], 1)[:2] if len(shape) > 2 and shape[0] == channels else (*shape, 1, 1)[:2]
        return (height, width, channels, dtype.itemsize, 0) if values else (0, 0, 1, 1, 0)
    if extension in ("tif", "tiff"):
        from ldm_vae.data.images.tiff import tiff_size  # the extra `raster`, which most data does not need

        return *tiff_size(data), PILLOW
    with decoding(), Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        itemsize = 2 if data.startswith(SIGNATURE) and data[24] == 16 else 1  # bit depth in the IHDR chunk
        least = PILLOW_WEBP if image.format == "WEBP" else PILLOW
        return image.height, image.width, len(image.getbands()), itemsize, least
