"""Finds what somebody changed in a live AutoencoderKL, so that it no longer computes what its configuration says.

Modules, hooks, attributes, methods and tensors are compared with those of a fresh AutoencoderKL, which holds no values.
Nothing is remembered between two calls: what is changed later is found later.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

Part = Literal["encode", "decode"]
MODULES: Mapping[Part, tuple[str, str]] = {
    "encode": ("encoder", "quant_conv"),
    "decode": ("post_quant_conv", "decoder"),
}
TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Attributes of a module that do not change what it computes without gradients, and those that are compared one by one.
# `training` is among them because dropout, the only layer that goes by it, has the probability 0: that is compared.
_APART = frozenset(
    {
        "_is_full_backward_hook",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_gradient_checkpointing_func",
        "gradient_checkpointing",
        "_modules",
        "_parameters",
        "training",
    }
)
_CALLED = ("__call__", "_wrapped_call_impl", "_call_impl", "forward", "_conv_forward")  # what runs a module of torch
_FUNCTIONS = ("conv2d", "dropout", "group_norm", "interpolate", "linear", "pad", "scaled_dot_product_attention", "silu")
_SIMPLE = (type(None), bool, int, float, str, tuple, list, dict, set, torch.dtype)


class Blueprint:
    """The modules of a fresh AutoencoderKL, without values.

    config: configuration of the AutoencoderKL, with the names that its constructor knows.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        plain: Any = AutoencoderKL  # its attributes come from mixins without types
        with torch.device("meta"):
            fresh = plain.from_config(dict(config))
        self._modules: dict[Part, dict[str, nn.Module]] = {part: modules_of(fresh, part) for part in MODULES}

    def difference(self, vae: nn.Module, part: Part) -> str | None:
        """What of `vae.encode` or `vae.decode` is not as in a fresh AutoencoderKL, the first thing only; None: nothing.

        The values of parameters may be any, and so may be their types and devices (`mixture`).
        """
        found = modules_of(vae, part)
        return next(self._differences(vae, part, found), None)

    def mixture(self, vae: nn.Module, part: Part) -> str | None:
        """Why the parameters of that part cannot be used together, in a sentence; None where they can."""
        first: tuple[str, torch.dtype, torch.device] | None = None
        for name, module in modules_of(vae, part).items():
            for key, value in module._parameters.items():
                if value is None:
                    continue
                here = (f"{name}.{key}", value.dtype, value.device)
                first = first or here
                if value.dtype not in TYPES:
                    return f"{here[0]} is of {value.dtype}"
                if here[1:] != first[1:]:
                    return f"{here[0]} is {value.dtype} on {value.device}, {first[0]} {first[1]} on {first[2]}"
        return None

    def _differences(self, vae: nn.Module, part: Part, found: Mapping[str, nn.Module]) -> Iterator[str]:
        known = self._modules[part]
        yield from _patched_functions(vae, part)
        yield from _patched_methods({type(module): None for module in known.values()})
        for name, plain in known.items():
            if (module := found.get(name)) is None:
                yield f"{name} is gone"
            elif type(module) is not type(plain):
                yield f"{name} is of the class {type(module).__name__}"
            else:
                yield from _changed_attributes(name, module, plain)
                yield from _changed_parameters(name, module, plain)
        yield from (f"{name} was added" for name in found if name not in known)


def modules_of(vae: nn.Module, part: Part) -> dict[str, nn.Module]:
    """Name -> module of all modules that `vae.encode` or `vae.decode` runs; empty for those that are no modules."""
    roots = {root: getattr(vae, root, None) for root in MODULES[part]}
    return {
        name: module
        for root, top in roots.items()
        if isinstance(top, nn.Module)
        for name, module in top.named_modules(prefix=root)
    }


def _patched_functions(vae: nn.Module, part: Part) -> Iterator[str]:
    """Functions that are called around the modules: of the AutoencoderKL, and of torch."""
    inner = f"_{part}"
    if inner in vars(vae) or not _is_from(getattr(type(vae), inner), "diffusers"):
        yield f"{inner} was replaced"
    plain: Any = AutoencoderKL
    if not _is_from(getattr(plain, part), "diffusers"):
        yield f"AutoencoderKL.{part} was replaced"
    for name in _FUNCTIONS:
        if not _is_from(getattr(F, name), "torch"):
            yield f"torch.nn.functional.{name} was replaced"
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        yield "hooks are registered for all modules"


def _patched_methods(classes: Iterable[type]) -> Iterator[str]:
    """Methods that were replaced for all objects of a class."""
    for owner in dict.fromkeys(owner for known in classes for owner in known.__mro__):
        package = owner.__module__.partition(".")[0]
        for name, value in vars(owner).items():
            ours = name in _CALLED or (package == "diffusers" and isinstance(value, types.FunctionType))
            if package in ("torch", "diffusers") and ours and not _is_from(value, "torch", "diffusers"):
                yield f"{owner.__name__}.{name} was replaced"


def _is_from(function: object, *packages: str) -> bool:
    """Whether a function was written in one of the packages. Its module's globals tell that: wrappers copy the name."""
    if isinstance(function, types.BuiltinFunctionType):
        return True
    written_in = getattr(function, "__globals__", {}).get("__name__", "")
    return written_in.partition(".")[0] in packages


def _changed_attributes(name: str, module: nn.Module, plain: nn.Module) -> Iterator[str]:
    mine, theirs = vars(module), vars(plain)
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":  # a patched constructor changes `plain` too
        yield f"{name}.padding_mode is {module.padding_mode}"
    for key, value in mine.items():
        if key in _APART or (key in theirs and _same(value, theirs[key])):
            continue
        if getattr(value, "__self__", None) is module and getattr(value, "__func__", None) is _method(module, key):
            continue  # its own method: accelerate leaves that behind when it removes a hook
        if key not in theirs:
            yield f"{name}.{key} was added"
        elif key.endswith("_hooks"):
            yield f"{name} has hooks"
        else:
            now = f"is {' '.join(str(value).split())[:60]}" if isinstance(value, _SIMPLE) else "was replaced"
            yield f"{name}.{key} {now}"
    yield from (f"{name}.{key} was removed" for key in theirs if key not in mine)


def _method(module: nn.Module, name: str) -> object:
    return getattr(type(module), name, module)  # the module itself is no method


def _same(value: object, plain: object) -> bool:
    if value is plain:
        return True
    if type(value) is not type(plain):
        return False
    if isinstance(value, _SIMPLE):
        return value == plain
    # An object such as an attention processor, which has a class and, perhaps, settings.
    return not any(_patched_methods([type(value)])) and getattr(value, "__dict__", value) == getattr(
        plain, "__dict__", plain
    )


def _changed_parameters(name: str, module: nn.Module, plain: nn.Module) -> Iterator[str]:
    mine, theirs = module._parameters, plain._parameters
    for key in {**theirs, **mine}:
        value: Tensor | None = mine.get(key)
        expected = theirs.get(key)
        if (value is None) != (expected is None) or (key in mine) != (key in theirs):
            yield f"{name}.{key} was {'added' if expected is None else 'removed'}"
        elif value is not None and expected is not None:
            if type(value) is not nn.Parameter or value.layout != torch.strided:
                yield f"{name}.{key} is no ordinary parameter"
            elif value.shape != expected.shape:
                yield f"{name}.{key} has the shape {list(value.shape)}"
            elif value.is_meta:
                yield f"{name}.{key} holds no values here: it is loaded when its module runs, or never"
