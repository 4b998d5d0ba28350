"""An AutoencoderKL that encodes and decodes with a codec: exactly at any size, in less memory, and never to NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor


class RawCodec(Protocol):
    """The methods of LatentCodec that are used here: between images and raw latents."""

    def moments(self, images: Tensor, *, max_memory: int | None = None) -> Tensor: ...
    def decode_raw(self, z: Tensor, *, max_memory: int | None = None) -> Tensor: ...


_AutoencoderKL: Any = AutoencoderKL  # its attributes come from mixins without types


class ExactAutoencoderKL(_AutoencoderKL):  # type: ignore[misc]
    """An AutoencoderKL that encodes and decodes with a codec; `drop_in` makes it.

    enable_tiling() and enable_slicing() change nothing: large pictures run in pieces anyway, without seams. A result
    that is not finite is computed again in float32, and raises NonFiniteError if it is not finite then. Images whose
    sides are no multiple of f are padded as the codec pads them, not cut. Where gradients are needed, diffusers' own
    forward passes run.
    """

    make_codec: Callable[[Any], RawCodec]
    max_memory: int | None = None
    _codec: RawCodec | None = None

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """(B, C, H, W) in [-1, 1] -> the posterior, of (B, c, h, w), in the type of the weights."""
        if self._needs_gradients(x):
            return super().encode(x, return_dict=return_dict)
        moments = self._exact.moments(x, max_memory=self.max_memory)
        posterior = DiagonalGaussianDistribution(moments.to(self.dtype))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """(B, c, h, w), raw -> (B, C, h*f, w*f), in the type of the weights.

        generator: unused, as in AutoencoderKL.
        """
        if self._needs_gradients(z):
            return super().decode(z, return_dict=return_dict, generator=generator)
        sample = self._exact.decode_raw(z, max_memory=self.max_memory).to(self.dtype)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @property
    def _exact(self) -> RawCodec:
        """The codec around the present tensors."""
        if self._codec is None:
            self._codec = self.make_codec(self)
        return self._codec

    def _needs_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _apply(self, *args: Any, **kwargs: Any) -> ExactAutoencoderKL:
        """Called for a change of device or type, which makes new tensors: the old codec is dropped."""
        self._codec = None
        super()._apply(*args, **kwargs)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._codec = None
        return super().load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_codec": None}  # a copy has tensors of its own

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Pickle looks for the class by its name, which is that of diffusers' class. So a function makes the instance.
        return _empty, (), self.__getstate__()


def _empty() -> ExactAutoencoderKL:
    """An instance whose state pickle or copy will fill in."""
    return ExactAutoencoderKL.__new__(ExactAutoencoderKL)


# Configurations and saved pipelines then name diffusers' class, so that everyone can load them.
ExactAutoencoderKL.__name__ = AutoencoderKL.__name__
ExactAutoencoderKL.__module__ = AutoencoderKL.__module__


def drop_in(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    make_codec: Callable[[AutoencoderKL], RawCodec],
    max_memory: int | None,
) -> ExactAutoencoderKL:
    """Makes an ExactAutoencoderKL, in evaluation mode.

    config: content of an AutoencoderKL's config.json (`interop/layouts/kl.py`).
    state: the weights; the tensors are shared.
    make_codec: makes a codec of a live AutoencoderKL.
    max_memory: as in `LatentCodec.decode`.
    """
    with torch.device("meta"):
        vae: ExactAutoencoderKL = ExactAutoencoderKL.from_config(dict(config))
    vae.load_state_dict(state, assign=True)
    vae.make_codec, vae.max_memory = make_codec, max_memory
    return vae.eval().requires_grad_(False)
