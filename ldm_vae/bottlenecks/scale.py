"""The affine map between the raw latents of a codec and the ones diffusion models see, as diffusers writes it.

`AutoencoderKL.config` holds four numbers, and its pipelines read them in three ways:

    scaling_factor                                (z) * scaling_factor            SD 1 and 2, DiT
    scaling_factor, shift_factor                  (z - shift) * scaling_factor    SD 3, FLUX
    scaling_factor, latents_mean, latents_std     (z - mean) * scaling_factor / std, channel by channel    SDXL
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldm_vae.errors import UserError

# Latents are float32, and so is 1 / std: below its smallest normal number both lose their digits or overflow.
SMALLEST = torch.finfo(torch.float32).tiny
LARGEST = 1 / SMALLEST


@dataclass(frozen=True)
class LatentScale:
    """The scale of a codec's latents.

    factor: one number for all channels.
    shift: one number for all channels, or None.
    mean, std: a number for each channel, or None for both. With them there is no shift.
    """

    factor: float = 1.0
    shift: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def apply(self, z: Tensor) -> Tensor:
        """(B, C, h, w), raw -> scaled, in the type of z."""
        if self.mean is not None and self.std is not None:
            return (z - _along_channels(self.mean, z)) * self.factor / _along_channels(self.std, z)
        return (z if self.shift is None else z - self.shift) * self.factor

    def remove(self, latent: Tensor) -> Tensor:
        """(B, C, h, w), scaled -> raw, in the type of `latent`."""
        if self.mean is not None and self.std is not None:
            return latent * _along_channels(self.std, latent) / self.factor + _along_channels(self.mean, latent)
        z = latent / self.factor
        return z if self.shift is None else z + self.shift

    @staticmethod
    def from_config(config: Mapping[str, Any], channels: int, source: str) -> LatentScale:
        """The scale in a diffusers config (or `latents.json`). Raises UserError for numbers that are no scale.

        source: where the config stands, for errors.
        """
        try:
            # diffusers' own default; a null is written by nobody, and means the same
            factor, shift = config.get("scaling_factor"), config.get("shift_factor")
            scale = LatentScale(
                0.18215 if factor is None else _float(factor),
                None if shift is None else _float(shift),
                _floats(config.get("latents_mean")),
                _floats(config.get("latents_std")),
            )
        except (TypeError, OverflowError) as error:
            raise UserError(f"{source}: the scale of the latents is no number", "mend its scaling_factor") from error
        if (problem := scale.problem(channels)) is not None:
            raise UserError(
                f"{source}: {problem}", "mend the scaling_factor, shift_factor, latents_mean and latents_std"
            )
        return scale

    def is_close(self, other: LatentScale) -> bool:
        """Whether both map latents alike: to 1e-6 of each number, the rounding of a configuration in float32."""
        ours, theirs = ((one.factor, one.shift or 0.0, *(one.mean or ()), *(one.std or ())) for one in (self, other))
        return len(ours) == len(theirs) and all(
            math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(ours, theirs, strict=True)
        )

    def in_words(self) -> str:
        """Its numbers, for messages."""
        numbers = {name: value for name, value in self.to_config().items() if value is not None}
        return ", ".join(f"{name} {value}" for name, value in numbers.items())

    def formula(self) -> str:
        """What becomes of a raw latent z, such as (z - 0.1159) * 0.3611; channel by channel with `mean` and `std`."""
        offset = self._offset(-1)
        moved = f"(z{offset})" if offset else "z"
        return f"{moved} * {self.factor:.6g}" + ("" if self.std is None else f" / {_written(self.std)}")

    def inverse(self) -> str:
        """What becomes of a scaled latent, such as latent / 0.3611 + 0.1159."""
        spread = "latent" if self.std is None else f"latent * {_written(self.std)}"
        return f"{spread} / {self.factor:.6g}{self._offset(1)}"

    def _offset(self, sign: int) -> str:
        """The mean or the shift as it is added (sign 1) or subtracted (-1); nothing where there is none."""
        if self.mean is not None:
            return f" {'+' if sign > 0 else '-'} {_written(self.mean)}"
        shift = sign * (self.shift or 0.0)
        return f" {'+' if shift > 0 else '-'} {abs(shift):.6g}" if shift else ""

    def to_config(self) -> dict[str, Any]:
        """The four keys of a diffusers config."""
        return {
            "scaling_factor": self.factor,
            "shift_factor": self.shift,
            "latents_mean": None if self.mean is None else list(self.mean),
            "latents_std": None if self.std is None else list(self.std),
        }

    def problem(self, channels: int) -> str | None:
        """Why it can scale no latents of so many channels, or None."""
        numbers = [self.factor, self.shift or 0.0, *(self.mean or ()), *(self.std or ())]
        if not all(abs(number) <= LARGEST for number in numbers):
            return "the scale of the latents is not finite in float32"
        if any(number < SMALLEST for number in (self.factor, *(self.std or ()))):
            return "the scale of the latents is not positive in float32"
        if (self.mean is None) != (self.std is None):
            return "latents_mean and latents_std come together"
        if self.mean is not None and self.std is not None:
            if {len(self.mean), len(self.std)} != {channels}:
                return f"latents_mean and latents_std need {channels} numbers, one a channel"
            if self.shift:
                return "shift_factor and latents_mean exclude each other"
        return None


def _written(numbers: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{number:.6g}' for number in numbers)}]"


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _floats(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise TypeError(f"{values!r} is no list of numbers")
    return tuple(_float(value) for value in values)


def _along_channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
