"""What is given to a codec in place of a tensor, a type or a device: named in a line, with the helper that converts."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.errors import UserError

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # types that a codec runs in


def kind_of(value: object) -> str:
    """The type of a value, and of the first part of a list, for messages."""
    parts = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"{type(value).__name__}{parts}"


def remedy_for_images(value: object, channels: int) -> str:
    """How a value becomes the images that a codec takes.

    channels: of the codec's images.
    """
    first = value[0] if isinstance(value, list | tuple) and value else value
    wanted = f"give a tensor of floats (B, {channels}, H, W) in [-1, 1]"
    if isinstance(first, Image.Image):
        return f"{wanted}: ldm_vae.codec.from_pil makes it of pictures of one size"
    if isinstance(first, np.ndarray):
        return f"{wanted}: ldm_vae.codec.from_numpy makes it of uint8 (B, H, W, C), torch.from_numpy of floats"
    return f"{wanted}: torch.stack makes it of a list of tensors" if isinstance(first, Tensor) else wanted


def floating_type(dtype: object) -> torch.dtype | None:
    """A type of torch from itself or its name, such as "bfloat16"; None for None. Raises UserError for others."""
    if dtype is None:
        return None
    given = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(given, torch.dtype) or given not in FLOATING:
        remedy = f"give one of {', '.join(map(name_of_type, FLOATING))}, as a type of torch or by its name"
        raise UserError(f"dtype {dtype!r}", remedy)
    return given


def name_of_type(dtype: torch.dtype) -> str:
    """Its name without the module, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def device_named(device: torch.device | str | None) -> torch.device | None:
    """A device of torch; None for None. Raises UserError for a name that torch does not know."""
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0][:100]
        raise UserError(f"device {device!r}", f"give cpu, cuda or cuda:0 ({reason})") from None
