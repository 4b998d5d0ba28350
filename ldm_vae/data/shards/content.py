"""Finds what is wrong with the content of one member: a picture, a label or a text."""

from __future__ import annotations

import io
import json

from ldm_vae.data.images.decode import decode_image, read_npy_header
from ldm_vae.data.images.pixels import EXTENSIONS, BrokenImage
from ldm_vae.data.shards.names import LABEL
from ldm_vae.data.shards.shard import MAX_SAMPLE, BrokenSample, parse_label
from ldm_vae.errors import in_one_line

TEXTS = ("json", "txt")
READ = (*EXTENSIONS, *TEXTS, LABEL)  # fields that somebody reads; all others are carried along
MAX_TEXT = 2**24  # bytes of one json or txt; more count as an attack
PICTURE_CHANNELS = (1, 2, 3, 4)  # grey and RGB, with alpha or without: all of them become RGB


def size_problem(field: str, size: int) -> str | None:
    """Why so many bytes are too many for a field, or None."""
    limit = MAX_TEXT if field in TEXTS else MAX_SAMPLE
    return f"{size} bytes are over the limit of {limit}" if field in READ and size > limit else None


def content_problem(field: str, data: bytes, channels: int | None) -> str | None:
    """Why the content of a field cannot be used, or None.

    channels: of the images; None takes those that an npy or tiff file has, and 3 for all others.
    """
    if field not in READ:
        return None
    if (problem := size_problem(field, len(data))) is not None:
        return problem
    try:
        if field in EXTENSIONS:
            decode_image(data, field, channels or own_channels(field, data))
        elif field == LABEL:
            parse_label(data)
        elif field == "json":
            json.loads(data)
        else:
            data.decode()
    except (BrokenImage, BrokenSample) as error:
        return error.reason
    except (ValueError, RecursionError) as error:
        return in_one_line(error)
    return None


def own_channels(field: str, data: bytes) -> int:
    """The channels of a picture file: of npy the smaller of its outer sides. Raises BrokenImage."""
    if field == "npy":
        shape, _ = read_npy_header(io.BytesIO(data))
        return min(shape[0], shape[-1]) if len(shape) == 3 else 1
    if field in ("tif", "tiff"):
        from ldm_vae.data.images.tiff import tiff_size  # the extra `raster`, which most data does not need

        count = tiff_size(data)[2]
        return 3 if count in PICTURE_CHANNELS else count
    return 3
