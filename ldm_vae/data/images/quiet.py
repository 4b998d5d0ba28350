"""Silences what decoders say beside their errors: thousands of lines for a large data set, and none names a picture.

A picture is either decoded or refused with a reason, so nothing is lost: Pillow warns of metadata that is not used
here, and of sizes below our own limits; tifffile logs each tag that it cannot read; libtiff writes to stderr what the
error is about that Pillow then raises.
"""

from __future__ import annotations

import ctypes
import logging
import warnings
from contextlib import suppress
from functools import cache

DECODERS = ("PIL", "tifffile", "imagecodecs")
NO_LEVEL = logging.CRITICAL + 1


def quiet_decoders() -> None:
    """For the start of a command: warnings and logs of the decoders are not shown. Imports none of them."""
    for name in DECODERS:
        logging.getLogger(name).setLevel(NO_LEVEL)
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


@cache
def quiet_libtiff() -> None:
    """Takes from Pillow's libtiff the function that writes errors to stderr; without effect where that can't be."""
    from PIL import _imaging

    with suppress(OSError, AttributeError):  # a Pillow that is built in another way
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)
