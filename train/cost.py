"""What a training step costs: floating-point operations and bytes of memory, counted and not estimated.

The real step runs on the `meta` device, where a tensor has a shape and no values, so that a network of any size takes a
second. Operations are those of convolutions and matrix products (`torch.utils.flop_counter`; a multiplication and an
addition are two). Memory is that of all tensors that exist at once: weights, gradients, moments, averages, and what
autograd saves. Beside them a process needs what libraries take (a CUDA context, workspaces, a cache's gaps).
Everything is counted in float32, or in float64 where the recipe asks for it; bf16 takes less memory.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ldm_vae.data.stream.batch import Batch
from ldm_vae.losses.perceptual import LPIPS, perceptual_channels
from train.build import build_autoencoder, build_run
from train.recipe import Recipe
from train.state import Run
from train.step import TRAIN_STEPS

META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """What a step of some images on one process costs.

    images: number of images in one forward pass.
    flops: floating-point operations for each image.
    state: bytes that stay between steps: weights of all networks, averages, Adam's moments.
    peak: most bytes at once.
    per_image: bytes at the peak for each image.
    """

    images: int
    flops: int
    state: int
    peak: int
    per_image: int


def count_step(recipe: Recipe, size: tuple[int, int], images: int, step: int) -> Cost:
    """The cost of a step in which every loss is on that is on at `step`.

    recipe: with the architecture of `init_from` filled in.
    size: (H, W) of the images.
    images: images in a forward pass of one process.
    """
    few, many = (1, images) if images > 1 else (1, 2)
    with Counter() as counter, _FusedAttention():
        run = _run_on_meta(recipe)
        state = counter.now
        least = _peak(counter, run, recipe, size, few, step)
        flops = counter.flops
        most = _peak(counter, run, recipe, size, many, step)
    peak = most if images == many else least
    return Cost(images, flops, state, peak, (most - least) // (many - few))


class Counter(TorchDispatchMode):
    """Counts the floating-point operations that are done, and the bytes of the tensors that exist.

    now: bytes of the tensors that were made and not yet freed.
    peak: the most there were at once.
    flops: operations of convolutions and matrix products, as torch's FlopCounterMode counts them. That mode itself
        follows modules by hooks, which gradients of a leaf inside of a step do not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

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


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs compute it, without a matrix of all pairs of positions, which `meta` would make and save."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and not kwargs and len(args) == 3:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True)[0]
        return func(*args, **(kwargs or {}))


class _Alone:
    """What a run asks of accelerate, for one process on `meta`: nothing to prepare, nothing to agree on."""

    device = META

    def prepare_model(self, model: nn.Module) -> nn.Module:
        return model

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        return model

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Moments(torch.optim.Optimizer):
    """The memory of fused Adam, which torch refuses to run on `meta`: two moments, and an update in place."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        for parameter in parameters:
            self.state[parameter] = {name: torch.empty_like(parameter) for name in ("exp_avg", "exp_avg_sq")}

    def step(self, closure: Any = None) -> None:
        """Changes nothing."""


def _run_on_meta(recipe: Recipe) -> Run:
    """A run whose networks have shapes alone, with the moments that Adam has after the first step."""
    autoencoder, recipe = build_autoencoder(recipe, device="meta")
    with META:
        run = build_run(recipe, cast(Accelerator, _Alone()), autoencoder, _frozen(recipe))
    for update in run.updates.values():
        update.optimizer = _Moments(update.parameters)
    return run


def _frozen(recipe: Recipe) -> dict[str, nn.Module]:
    """The frozen networks without their weights, which need not be there yet."""
    config = recipe.loss.perceptual
    channels = perceptual_channels(config, recipe.model.out_channels) if config.weight > 0 else None
    return {} if channels is None else {"perceptual": LPIPS(config.network, channels=channels)}


def _peak(counter: Counter, run: Run, recipe: Recipe, size: tuple[int, int], images: int, step: int) -> int:
    """The most bytes during a step of some images."""
    counter.peak = counter.now
    model = recipe.model
    batch = Batch(
        image=torch.empty(images, model.in_channels, *size, dtype=run.dtype, device=META),
        label=None,
        key=[""] * images,
        slot=torch.arange(images, device="cpu"),
    )
    order = "shared" if recipe.discriminator is None else recipe.discriminator.order
    TRAIN_STEPS[order](run, [batch], step)
    return counter.peak
