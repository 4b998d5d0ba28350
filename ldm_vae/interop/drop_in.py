"""An AutoencoderKL that encodes and decodes with a codec: exactly, in less memory, and never to NaN.

It holds no copy of itself. Each call looks at the modules as they are then (`interop/untouched.py`): the codec runs on
their very parameters, or, where somebody changed what they compute, diffusers' own pass runs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ldm_vae.errors import UserError
from ldm_vae.interop.layouts import kl
from ldm_vae.interop.load import build_network
from ldm_vae.interop.untouched import MODULES, Blueprint, Part, modules_of
from ldm_vae.networks.network import Network

logger = logging.getLogger(__name__)


class RawCodec(Protocol):
    """The methods of LatentCodec that are used here: between images and raw latents."""

    def moments(self, images: Tensor, *, pad: bool = True, max_memory: int | None = None) -> Tensor: ...
    def decode_raw(self, z: Tensor, *, max_memory: int | None = None) -> Tensor: ...


_AutoencoderKL: Any = AutoencoderKL  # its attributes come from mixins without types


class _EqualsAutoencoderKL(type(_AutoencoderKL)):  # type: ignore[misc]
    """The class of the drop-in's class: `DiffusionPipeline.from_pipe` takes no subclass, it compares the types."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is _AutoencoderKL

    def __hash__(cls) -> int:
        return hash(_AutoencoderKL)


class ExactAutoencoderKL(_AutoencoderKL, metaclass=_EqualsAutoencoderKL):  # type: ignore[misc]
    """An AutoencoderKL that encodes and decodes with a codec; `drop_in` makes it.

    Large pictures run in pieces, without seams: enable_tiling() and enable_slicing() change nothing. A result that is
    not finite is computed again in float32, and raises NonFiniteError if it is not finite then.

    diffusers' own pass runs where gradients are needed, where something traces or compiles the call, under an autocast
    to another type than the weights', for an empty batch, and where the modules were changed (`why_plain`).
    """

    make_codec: Callable[[Network], RawCodec] | None = None
    max_memory: int | None = None
    _frame: _Frame | None = None
    _told: frozenset[str] = frozenset()

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """(B, C, H, W) in [-1, 1] -> the posterior, of (B, c, H/f, W/f), rounded down, in the type of the weights."""
        if self._runs_plainly("encode", x):
            return super().encode(x, return_dict=return_dict)
        posterior = DiagonalGaussianDistribution(self._encode_exactly(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """(B, c, h, w), raw -> (B, C, h*f, w*f), in the type of the weights.

        generator: unused, as in AutoencoderKL.
        """
        if self._runs_plainly("decode", z):
            return super().decode(z, return_dict=return_dict, generator=generator)
        sample = self._decode_exactly(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def why_plain(self, part: Part) -> str | None:
        """Why `encode` or `decode` runs diffusers' own pass, whatever it is given; None where the codec runs.

        part: "encode" or "decode".
        """
        frame = self._present_frame()
        if isinstance(frame, str):
            return frame
        return frame.blueprint.difference(self, part) or frame.blueprint.mixture(self, part)

    @apply_forward_hook  # type: ignore[untyped-decorator]  # an offloaded model comes back before it is used
    def _encode_exactly(self, x: Tensor) -> Tensor:
        with self._codec("encode") as (codec, dtype):
            return codec.moments(x, pad=False, max_memory=self.max_memory).to(dtype)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def _decode_exactly(self, z: Tensor) -> Tensor:
        with self._codec("decode") as (codec, dtype):
            return codec.decode_raw(z, max_memory=self.max_memory).to(dtype)

    @contextmanager
    def _codec(self, part: Part) -> Iterator[tuple[RawCodec, torch.dtype]]:
        """The codec around the present parameters of that part, and their type."""
        frame = self._present_frame()
        assert isinstance(frame, _Frame), frame  # `_runs_plainly` asked for it
        modules = modules_of(self, part)
        dtype = next(value.dtype for module in modules.values() for value in module.parameters())
        with frame.halves[part].around(modules) as codec:
            yield codec, dtype

    def _runs_plainly(self, part: Part, x: Tensor) -> bool:
        """Whether diffusers' own pass is to run. Says so once for each reason that a person would not expect."""
        if torch.compiler.is_compiling() or _is_traced(x) or self._needs_gradients(x):
            return True
        if x.ndim == 4 and (x.numel() == 0 or (part == "encode" and min(x.shape[2:]) < self._factor)):
            return True
        reason = self.why_plain(part) or self._autocast(part, x)
        if reason is not None and f"{part}: {reason}" not in self._told:
            self._told |= {f"{part}: {reason}"}
            bound = "" if self.max_memory is None else f", and max_memory of {self.max_memory:,} bytes is not kept"
            logger.warning("%s runs diffusers' own pass, whole or in its tiles%s: %s", part, bound, reason)
        return reason is not None

    def _needs_gradients(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _autocast(self, part: Part, x: Tensor) -> str | None:
        if not torch.is_autocast_enabled(x.device.type):
            return None
        cast = torch.get_autocast_dtype(x.device.type)
        types = {value.dtype for module in modules_of(self, part).values() for value in module.parameters()}
        return None if types == {cast} else f"autocast asks for {cast}"

    @property
    def _factor(self) -> int:
        return int(2 ** (len(self.config.block_out_channels) - 1))

    def _present_frame(self) -> _Frame | str:
        """What is made of the present configuration, or why there is none."""
        if self.make_codec is None:
            return "it was made without a codec: `codec.as_diffusers()` makes one with"
        if self._frame is None or self._frame.config is not self.config:
            try:
                self._frame = _Frame(self.config, self.make_codec)
            except UserError as error:
                return str(error)
        return self._frame

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_frame": None}  # made anew where it is needed

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Pickle looks for the class by its name, which is that of diffusers' class. So a function makes the instance.
        return _empty, (), self.__getstate__()


class _Frame:
    """What is made of a configuration alone: it holds no parameter of the AutoencoderKL.

    config: the very object that it was made of; another one asks for another frame.
    """

    def __init__(self, config: Mapping[str, Any], make_codec: Callable[[Network], RawCodec]) -> None:
        self.config = config
        self.halves: dict[Part, _Half] = {part: _Half(config, part, make_codec) for part in MODULES}
        self.blueprint = Blueprint(config)


class _Half:
    """Codecs of which only the encoder or only the decoder is there, without values, to be put around parameters."""

    def __init__(self, config: Mapping[str, Any], part: Part, make_codec: Callable[[Network], RawCodec]) -> None:
        with torch.device("meta"):
            network = build_network(kl.from_config(config, "the AutoencoderKL"))
        for other, names in MODULES.items():
            for name in names if other != part else ():
                setattr(network, name, None)
        self._network = network.eval().requires_grad_(False)
        self._make_codec = make_codec
        self._free: list[tuple[Network, RawCodec]] = []  # a call takes one and gives it back: threads share none

    @contextmanager
    def around(self, modules: Mapping[str, nn.Module]) -> Iterator[RawCodec]:
        """A codec that computes with the parameters of `modules`, which has our names, too. It is emptied afterwards.

        Emptied, since what a person replaces or deletes in the AutoencoderKL must be freed.
        """
        network, codec = self._free.pop() if self._free else self._another()
        ours = [(name, module) for name, module in network.named_modules() if module._parameters]
        empty = [module._parameters for _, module in ours]
        try:
            for name, module in ours:
                module._parameters = modules[name]._parameters
            yield codec
        finally:
            for (_, module), parameters in zip(ours, empty, strict=True):
                module._parameters = parameters
            self._free.append((network, codec))

    def _another(self) -> tuple[Network, RawCodec]:
        network = copy.deepcopy(self._network)
        return network, self._make_codec(network)


def _is_traced(x: Tensor) -> bool:
    """Whether something follows the operations of the call, or computes another thing than their values."""
    followed = (
        torch._C._get_tracing_state() is not None  # torch.jit.trace
        or torch._C._functorch.peek_interpreter_stack() is not None  # torch.func: grad, vmap, jvp
        or torch.autograd.forward_ad._current_level >= 0
        or _get_current_dispatch_mode() is not None
        or any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]
    )
    if followed or type(x) not in (Tensor, nn.Parameter) or x.is_meta:
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()  # a CUDA graph


def _empty() -> ExactAutoencoderKL:
    """An instance whose state pickle or copy will fill in."""
    return ExactAutoencoderKL.__new__(ExactAutoencoderKL)


# Configurations and saved pipelines then name diffusers' class, so that everyone can load them.
ExactAutoencoderKL.__name__ = AutoencoderKL.__name__
ExactAutoencoderKL.__module__ = AutoencoderKL.__module__


def drop_in(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    make_codec: Callable[[Network], RawCodec],
    max_memory: int | None,
) -> ExactAutoencoderKL:
    """Makes an ExactAutoencoderKL, in evaluation mode.

    config: content of an AutoencoderKL's config.json (`interop/layouts/kl.py`).
    state: the weights; the tensors are shared.
    make_codec: makes a codec of a network of kind `kl`, of which one half may be missing.
    max_memory: as in `LatentCodec.decode`.
    """
    with torch.device("meta"):
        vae: ExactAutoencoderKL = ExactAutoencoderKL.from_config(dict(config))
    vae.load_state_dict(state, assign=True)
    vae.make_codec, vae.max_memory = make_codec, max_memory
    return vae.eval().requires_grad_(False)
