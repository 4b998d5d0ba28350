"""What is given to a codec: checked, and named in a line with the helper that converts it where it is no such thing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm_vae.checks import open_checks
from ldm_vae.data.images.pixels import RANGE_TOLERANCE
from ldm_vae.errors import UserError
from ldm_vae.finite import NonFiniteError, not_finite
from ldm_vae.precision import name_of_type

BYTES_FROM = 16.0  # images with larger values are of 8 bits; normalised ones do not go so far
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # types that a codec runs in


def check_images(images: object, channels: int, warn: Callable[[str, str], None]) -> None:
    """Raises UserError, or NonFiniteError, for what are no images (B, channels, H, W).

    warn: told of a range other than [-1, 1]: the kind of mistake, and a line.
    """
    if not isinstance(images, Tensor):
        raise UserError(f"images that are {kind_of(images)}", remedy_for_images(images, channels))
    if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
        given = f"images of shape {list(images.shape)}, {name_of_type(images.dtype)}"
        of_bytes = ": ldm_vae.from_uint8 makes it of 8 bits" if images.dtype == torch.uint8 else ""
        raise UserError(given, f"give floats (B, {channels}, H, W) in [-1, 1]{of_bytes}")
    if images.numel() == 0:
        raise UserError(f"images of shape {list(images.shape)}", "give at least one image of at least one pixel")
    extremes = torch.stack(images.aminmax())
    if (checks := open_checks()) is not None and images.device.type != "cpu":
        checks.look_at(extremes, partial(_check_extremes, warn=warn))
        return
    if not _check_extremes(extremes, warn):
        raise NonFiniteError("the picture", not_finite(images))


def _check_extremes(extremes: Tensor, warn: Callable[[str, str], None]) -> bool:
    """Whether the lowest and the highest value of images are finite; warns of a range other than [-1, 1]."""
    lowest, highest = extremes.tolist()  # one transfer
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return False
    held = f"images hold values from {lowest:g} to {highest:g}; the codec was trained on [-1, 1]"
    if highest > BYTES_FROM:
        warn("bytes", f"{held}: give `x / 127.5 - 1` of 8 bits")
    elif lowest < -1 - RANGE_TOLERANCE or highest > 1 + RANGE_TOLERANCE:
        warn("beyond", f"{held}: give clamped ones, or another normalisation")
    elif 0 <= lowest < highest:
        warn("unit", f"{held}: if yours are in [0, 1], give `2 * x - 1`")
    return True


def check_latents(z: object, channels: int) -> None:
    """Raises UserError for what are no latents (B, channels, h, w)."""
    if not isinstance(z, Tensor):
        remedy = f"give a tensor of floats (B, {channels}, h, w), such as torch.from_numpy(latents)"
        raise UserError(f"latents that are {kind_of(z)}", remedy)
    if z.ndim != 4 or z.shape[1] != channels or not z.is_floating_point():
        given = f"latents of shape {list(z.shape)}, {name_of_type(z.dtype)}"
        raise UserError(given, f"this codec decodes floats (B, {channels}, h, w)")


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
        return f"{wanted}: ldm_vae.from_pil makes it of pictures of one size"
    if isinstance(first, np.ndarray):
        return f"{wanted}: ldm_vae.from_numpy makes it of (B, H, W, C), uint8 or floats with values=(0, 1)"
    return f"{wanted}: torch.stack makes it of a list of tensors of one size" if isinstance(first, Tensor) else wanted


def floating_type(dtype: object) -> torch.dtype | None:
    """A type of torch from itself or its name, such as "bfloat16"; None for None. Raises UserError for others."""
    if dtype is None:
        return None
    given = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(given, torch.dtype) or given not in FLOATING:
        remedy = f"give one of {', '.join(map(name_of_type, FLOATING))}, as a type of torch or by its name"
        raise UserError(f"dtype {dtype!r}", remedy)
    return given


# What people pass to from_pretrained of diffusers, and what does the same here.
INSTEAD = {
    "cache_dir": "set HF_HOME, the Hub's cache for all libraries",
    "device_map": "give device=, such as device='cuda'",
    "force_download": "remove the model's folder, models--OWNER--NAME, from the Hub's cache",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "low_cpu_mem_usage": "leave it out: weights are never held twice",
    "proxies": "set HTTPS_PROXY",
    "token": "set HF_TOKEN, or log in with `hf auth login`",
    "use_safetensors": "leave it out: safetensors are preferred, and no code of a pickle ever runs",
}


def refuse_unknown(options: Mapping[str, object], function: Callable[..., object]) -> None:
    """Raises UserError for an option that a function does not take, and says what to do instead."""
    known = [name for name, one in signature(function).parameters.items() if one.kind is Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise UserError(f"from_pretrained(..., {name}=...)", INSTEAD.get(name, f"give any of {', '.join(known)}"))


def device_and_type(
    given: tuple[object, ...], device: object, dtype: object
) -> tuple[torch.device | None, torch.dtype | None]:
    """What `.to(*given, device=device, dtype=dtype)` asks for, by the names or objects of torch.

    Raises UserError for what is neither, and for two of one kind.
    """
    for one in given:
        if isinstance(one, torch.dtype) or _names_a_type(one):
            if dtype is not None:
                raise UserError(f"the types {dtype} and {one}", "give one")
            dtype = one
        else:
            if device is not None:
                raise UserError(f"the devices {device} and {one}", "give one; types are given by name or as torch's")
            device = one
    return device_named(device), floating_type(dtype)


def _names_a_type(value: object) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)


def device_named(device: object) -> torch.device | None:
    """A device of torch; None for None. Raises UserError for a name that torch does not know."""
    try:
        return None if device is None else torch.device(device)  # type: ignore[call-overload]  # all else raises
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0][:100]
        raise UserError(f"device {device!r}", f"give cpu, cuda or cuda:0 ({reason})") from None
