"""What a training step costs: floating-point operations and bytes of memory, counted and not estimated.

The real step runs on the `meta` device, where a tensor has a shape and no values, so that a network of any size takes a
second. Operations are those of convolutions and matrix products (`torch.utils.flop_counter`; a multiplication and an
addition are two). Memory is that of all tensors that exist at once: weights, gradients, moments, averages, and what
autograd saves. Beside them a process needs what libraries take (a CUDA context, workspaces, a cache's gaps).
All is counted in the recipe's precision; in bfloat16 a GPU keeps what CUDA's autocast keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ldm_vae.data.stream.batch import Batch
from ldm_vae.networks.network import Network
from ldm_vae.printable import counted
from ldm_vae.quantities import binary_size, two_digits
from train.build import build_run, frozen_networks
from train.half_on_meta import half_on_meta
from train.optimizer import OptimizerConfig, Update
from train.recipe import Recipe
from train.state import Run
from train.step import step_of

META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """What a step of some images on one process costs.

    images: number of images in one forward pass.
    flops: floating-point operations for each image.
    state: bytes that stay between steps: weights of all networks, averages, Adam's moments.
    peak: most bytes at once during the step.
    """

    images: int
    flops: int
    state: int
    peak: int

    @property
    def per_image(self) -> float:
        """Bytes at the peak for each image."""
        return (self.peak - self.state) / self.images

    def in_words(self) -> str:
        """Such as "2.9 TFLOP and 2.3 GiB an image; 151 GiB for 64 images at once"."""
        flops, unit = (self.flops / 1e12, "TFLOP") if self.flops >= 0.995e12 else (self.flops / 1e9, "GFLOP")
        together = f"{binary_size(self.peak)} for {counted(self.images, 'image')} at once"
        return f"{two_digits(flops)} {unit} and {binary_size(self.per_image)} an image; {together}"


def count_step(recipe: Recipe, autoencoder: Network, size: tuple[int, int], images: int) -> Cost:
    """The cost of the last step of a run, in which every loss is on that is ever on.

    recipe: with the architecture of `init_from` filled in.
    autoencoder: its network on `meta`, by `build_autoencoder`.
    size: (H, W) of the images.
    images: images in a forward pass of one process.
    """
    # No mode of torch: that would not reach what checkpoints compute again in the backward pass.
    half = half_on_meta() if recipe.precision == "bfloat16" else nullcontext()
    with Counter() as counter, patch.object(functional, "scaled_dot_product_attention", _fused_attention), half:
        counter.note([*autoencoder.parameters(), *autoencoder.buffers()])
        run = _run_on_meta(recipe, autoencoder)
        state = counter.now
        step_of(recipe)(run, [_batch(run, size, images)], recipe.steps - 1)
    return Cost(images, counter.flops // images, state, counter.peak)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch's own
    """Counts the floating-point operations that are done, and the bytes of the tensors that exist.

    now: bytes of the tensors that were made and not yet freed.
    peak: the most there were at once.
    flops: operations of convolutions and matrix products, as torch's FlopCounterMode counts them. That mode itself
        follows modules by hooks, which gradients of a leaf inside of a step do not allow.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spares the import of torch's compiler, which takes a second: nothing is compiled here."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.flops = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        self.note(result)
        return result

    def note(self, tensors: object) -> None:
        """Counts the memory of tensors, in any nesting, that is not counted yet."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known:
            return

        def free(_: object) -> None:
            del self._known[place]
            self.now -= size

        self._known[place] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As GPUs compute it in float32. `meta` would make, and save, a matrix of all pairs of positions."""
    attended, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)
    return cast(Tensor, attended)


class _Alone:
    """What a run asks of accelerate, for one process on `meta`: nothing to agree on.

    half: whether networks compute in bfloat16. Then accelerate hands on their results in float32.
    """

    device = META

    def __init__(self, half: bool) -> None:
        self.half = half

    def prepare_model(self, model: nn.Module) -> nn.Module:
        if self.half:
            model.forward = convert_outputs_to_fp32(model.forward)
        return model

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Moments:
    """The memory of fused Adam, which torch refuses to run on `meta`: two moments, and an update in place."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters, self.param_groups = parameters, [{"lr": 0.0}]
        self.moments = [torch.empty_like(parameter) for parameter in parameters for _ in ("mean", "mean square")]

    def step(self) -> None:
        """Changes nothing."""

    def zero_grad(self, set_to_none: bool) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _update(module: nn.Module, config: OptimizerConfig, lr: float, steps: int) -> Update:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return Update(module, cast(torch.optim.Optimizer, _Moments(trained)), lambda step: lr, config.clip)


def _run_on_meta(recipe: Recipe, autoencoder: Network) -> Run:
    """A run whose networks have shapes alone, with the moments that Adam has after the first step."""
    with META:
        return build_run(
            recipe,
            cast(Accelerator, _Alone(recipe.precision == "bfloat16")),
            autoencoder,
            frozen_networks(recipe),
            _update,
        )


def _batch(run: Run, size: tuple[int, int], images: int) -> Batch:
    pixels = torch.empty(images, run.autoencoder.config.in_channels, *size, dtype=run.dtype, device=META)
    return Batch(pixels, label=None, key=[""] * images, slot=torch.arange(images, device="cpu"))
