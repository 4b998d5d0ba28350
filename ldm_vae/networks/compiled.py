"""torch.compile in place: parameters keep their names, so weights are saved, loaded and hashed as before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ldm_vae.errors import UserError, in_one_line
from ldm_vae.networks.network import Network

Backend = str | Callable[..., Any]


def compiled_parts(network: Network) -> list[nn.Module]:
    """The parts of a network that are compiled, each as one graph, such as encoder and decoder.

    Left out are the bottleneck, whose noise is drawn on the host, the heads, and single layers.
    """
    apart = (network.bottleneck, network.heads)
    return [part for part in network.children() if part not in apart and any(part.children())]


def compile_for_any_batch(modules: Iterable[nn.Module], backend: Backend = "inductor") -> None:
    """Compiles modules (B, ...) -> tensors (B, ...) whose number of images varies, as the last batch of a data set.

    The first call with images of a new size compiles, and others of this size share the graph, whatever their number.
    """
    for module in modules:
        module.compile(backend=backend)
        assert module._compiled_call_impl is not None  # `compile` has set it
        module._compiled_call_impl = _AnyBatch(module._compiled_call_impl)


class _AnyBatch:
    """Calls a compiled module so that it compiles once for all numbers of images."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled = compiled
        self.several: set[torch.Size] = set()  # sizes of which several images have been seen at once

    def __call__(self, x: Tensor) -> Any:
        # A graph for several images fits two or more. One alone would have a graph of its own, and takes theirs.
        alone = len(x) == 1 and x.shape[1:] in self.several
        if alone:
            x = torch.cat([x, x])
        elif len(x) > 1:
            self.several.add(x.shape[1:])
        torch._dynamo.maybe_mark_dynamic(x, 0)
        result = self.compiled(x)
        return tree_map(lambda tensor: tensor[:1], result) if alone else result


def require_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile does not work on a device: a small function is compiled there."""
    try:
        if device.type == "cpu":
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()  # what is in torch's cache needs none, and the networks are not in it
        torch.compile(_double)(torch.ones(2, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        reason = in_one_line(getattr(error, "inner_exception", error))
        needed = "a C++ compiler (Debian: apt-get install g++)" if device.type == "cpu" else "Triton and a C compiler"
        raise UserError(
            f"torch.compile does not work on {device} ({reason})", f"install {needed}, or leave compile out"
        ) from error


def _double(x: Tensor) -> Tensor:
    return 2 * x
