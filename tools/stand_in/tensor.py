"""Tensors that say they are on a GPU, and refuse what CUDA refuses."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tools.stand_in.record import RECORD

NAME = "gpu"  # what the device is called: torch's own name of a backend that it does not know
# Operations that make another view of the same memory, so that nothing runs on the device.
VIEWS = frozenset[str]().union(
    ("view", "_unsafe_view", "reshape", "alias", "detach", "slice", "select", "unsqueeze", "squeeze", "transpose", "t"),
    ("permute", "expand", "as_strided", "narrow", "split", "split_with_sizes", "chunk", "unbind", "diagonal", "lift"),
    ("lift_fresh", "view_as_real", "view_as_complex", "unfold", "_conj"),
)
# Operations that take memory and write nothing into it.
UNWRITTEN = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
# Operations whose result, or whose size, the host must know.
WAITING = frozenset[str]().union(
    ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "allclose"),
    ("_unique2", "unique_dim", "unique_consecutive"),
)
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))


class Settings:
    """How the device behaves.

    contents: where the contents of its tensors lie: "cpu", or "meta" for none, so that full-size networks cost nothing.
    float64: whether it has this type; Apple's and some of Intel's have not.
    """

    contents = "cpu"
    float64 = True


class DeviceTensor(Tensor):
    """A tensor on the stand-in device.

    contents: the tensor that holds its values.
    """

    contents: Tensor

    @staticmethod
    def __new__(cls, contents: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            contents.size(),
            strides=contents.stride(),
            storage_offset=contents.storage_offset(),
            dtype=contents.dtype,
            layout=contents.layout,
            device=torch.device(f"{NAME}:0"),
            requires_grad=False,
        )
        made.contents = contents
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.contents.untyped_storage()

    def data_ptr(self) -> int:
        return self.contents.data_ptr()

    def tolist(self) -> Any:
        return self.detach().to("cpu").tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = on_device(self.contents.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        elif self.requires_grad:
            copy.requires_grad_()
        memo[id(self)] = copy
        return copy


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch's own
    """Sees the operations that have no tensor on the device yet, such as those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


_pinned: set[int] = set()  # storages of the host whose memory is pinned


def pin(tensor: Tensor) -> Tensor:
    """Marks the memory of a tensor of the host as pinned; returns the tensor."""
    storage = tensor.untyped_storage()
    if storage._cdata not in _pinned:
        _pinned.add(storage._cdata)
        weakref.finalize(storage, _pinned.discard, storage._cdata)
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Whether the memory of a tensor is pinned."""
    return not isinstance(tensor, DeviceTensor) and tensor.untyped_storage()._cdata in _pinned


def on_device(contents: Tensor) -> DeviceTensor:
    """A tensor on the device with these contents. Raises OutOfMemoryError, and TypeError for a type it has not."""
    if contents.dtype == torch.float64 and not Settings.float64:
        raise TypeError("Cannot convert a tensor to float64: the device has no such type")
    RECORD.allocate(contents)
    return DeviceTensor(contents)


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation: on the device where one of its tensors is there or its result goes there, else as it is."""
    name, kwargs = func.overloadpacket.__name__, dict(kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    asked = kwargs.get("device")
    to_device = asked is not None and torch.device(asked).type == NAME
    if name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
        return _copy_into(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if name == "_to_copy" and asked is not None and isinstance(args[0], DeviceTensor) != to_device:
        return _copy_across(func, args[0], kwargs, to_device)
    if not ours and not to_device:
        pinned = bool(kwargs.pop("pin_memory", None))
        result = func(*args, **kwargs)
        return pin(result) if pinned else result
    _refuse_mixing(name, tensors)
    _refuse_foreign_generator(kwargs)
    _note_waits(func, name, tensors)
    if to_device:
        kwargs["device"] = Settings.contents
    kwargs.pop("pin_memory", None)
    if Settings.contents == "meta" and (known := _without_values(name, args)) is not None:
        return known
    result = func(*tree_map(_contents, args), **tree_map(_contents, kwargs))
    if name not in VIEWS | UNWRITTEN:
        RECORD.kernels[name] += 1
    same = {id(tensor.contents): tensor for tensor in ours}  # what is changed in place stays the tensor it is

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # A wrapper cannot say that its contents are conjugated when they are read: they are so at once.
        return same[id(value)] if id(value) in same else on_device(value.resolve_conj())

    return tree_map(wrapped, result)


def _contents(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.contents
    return value.to("meta") if isinstance(value, Tensor) and Settings.contents == "meta" else value


def _copy_into(target: Tensor, source: Tensor, beside: bool) -> Tensor:
    up = isinstance(target, DeviceTensor)
    RECORD.copy(source, up=up, beside=beside, pinned=is_pinned(source if up else target))
    if Settings.contents == "cpu":
        _contents(target).copy_(_contents(source))
    elif not up:
        target.zero_()
    return target


def _copy_across(func: Any, source: Tensor, kwargs: dict[str, Any], up: bool) -> Tensor:
    beside = kwargs.pop("non_blocking", False)
    RECORD.copy(source, up=up, beside=beside, pinned=is_pinned(source))
    kwargs.pop("pin_memory", None)
    kwargs["device"] = Settings.contents if up else "cpu"
    if up:
        return on_device(func(source, **kwargs))
    if Settings.contents == "meta":
        return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
    result: Tensor = func(_contents(source), **kwargs)
    return pin(result) if beside else result  # as CUDA does


def _refuse_mixing(name: str, tensors: Sequence[Tensor]) -> None:
    """Raises RuntimeError where CUDA would: a tensor of the host goes with those of the device only as a scalar."""
    of_host = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.ndim]
    if of_host and name in INDEXING:
        RECORD.wait("copy of an index")
    elif of_host:
        shapes = [tuple(tensor.shape) for tensor in of_host]
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} got {shapes} on the CPU")


def _refuse_foreign_generator(kwargs: Mapping[str, Any]) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'")


def _note_waits(func: Any, name: str, tensors: Sequence[Tensor]) -> None:
    if name in WAITING:
        RECORD.wait(name)
    elif name in INDEXING and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:]):
        RECORD.wait("mask as an index")
    elif name == "repeat_interleave" and func._overloadname != "self_int":
        RECORD.wait(name)


def _without_values(name: str, args: Sequence[Any]) -> Any:
    """What an operation returns whose result depends on values, where there are none; None for all others."""
    if name == "_local_scalar_dense":
        return 1.0 if args[0].dtype.is_floating_point else 0
    if name == "equal":
        return True
    if name == "nonzero":
        return on_device(torch.empty((0, args[0].ndim), dtype=torch.int64, device="meta"))
    return None
