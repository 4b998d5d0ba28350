"""What users of diffusers do to an AutoencoderKL: each change, and the pass that a drop-in takes after it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import accelerate
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.interop.passes import IMAGES, LATENTS, results

Change = Callable[[Any], Any]  # of an AutoencoderKL, in place; what it returns, if anything, is used in its stead


def load(vae: Any) -> None:
    vae.load_state_dict({name: value * 1.25 for name, value in vae.state_dict().items()})


def load_assigned(vae: Any) -> None:
    vae.load_state_dict({name: value * 1.25 for name, value in vae.state_dict().items()}, assign=True)
    vae.requires_grad_(False)


def replace_decoder(vae: Any) -> None:
    decoder = copy.deepcopy(vae.decoder)
    with torch.no_grad():
        decoder.conv_out.weight.mul_(2)
    vae.decoder = decoder


def replace_layers(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        conv = copy.deepcopy(part.conv_in)
        conv.weight = nn.Parameter(conv.weight.flip(0), requires_grad=False)
        part.conv_in = conv


def new_parameters(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        part.conv_in.weight = nn.Parameter(part.conv_in.weight * 1.5, requires_grad=False)


def new_data(vae: Any) -> None:
    for parameter in vae.parameters():
        parameter.data = parameter.data * 1.25


@torch.no_grad()
def in_place(vae: Any) -> None:
    for parameter in vae.parameters():
        parameter.mul_(1.25)
    vae.decoder.conv_out.bias.copy_(torch.ones(3))
    vae.encoder.conv_in.weight.data.neg_()


def wrap(vae: Any) -> None:
    """As an adapter wraps a layer."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.scale = base, 1.5

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.base(x)

    for part in (vae.encoder, vae.decoder):
        part.conv_out = Adapter(part.conv_out)


def quantize(vae: Any) -> None:
    """As libraries that quantise do: a linear layer of another class, with weights of few bits."""

    class Quantized(nn.Linear):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__(base.in_features, base.out_features)
            self.step = base.weight.abs().max() / 3
            del self.weight
            self.register_buffer("weight", (base.weight / self.step).round().to(torch.int8))
            self.bias = base.bias

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight.to(x.dtype) * self.step, self.bias)

    for part in (vae.encoder, vae.decoder):
        attention = part.mid_block.attentions[0]
        attention.to_v = Quantized(attention.to_v)


def quantize_in_place(vae: Any) -> None:
    """As libraries do that leave the layer and exchange its weight for a tensor that is no ordinary one."""

    class Half(Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is F.conv2d:
                weights: Any = [0.5 * arg.as_subclass(Tensor) if isinstance(arg, Half) else arg for arg in args]
                return function(*weights)
            return super().__torch_function__(function, types, args, kwargs or {})

    for part in (vae.encoder, vae.decoder):
        part.conv_in.weight = nn.Parameter(part.conv_in.weight.detach().as_subclass(Half), requires_grad=False)


def circular(vae: Any) -> None:
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def circular_in_one_direction(vae: Any) -> None:
    """As those do who make pictures that can be tiled."""

    def forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.pad(x, (self.padding[1], self.padding[1], 0, 0), mode="circular")
        x = F.pad(x, (0, 0, self.padding[0], self.padding[0]))
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)

    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module._conv_forward = forward.__get__(module, nn.Conv2d)  # type: ignore[method-assign]


def hooks(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        part.mid_block.register_forward_hook(lambda module, args, output: 2 * output)
        part.conv_out.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def patched_forward(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        part.forward = lambda x, *args, run=part.forward, **kwargs: run(x, *args, **kwargs) * 2


def patched_inner(vae: Any) -> None:
    vae._decode = lambda z, return_dict=True, run=vae._decode: run(z * 2, return_dict)
    vae._encode = lambda x, run=vae._encode: run(x / 2)


def patched_outer(vae: Any) -> None:
    vae.decode = lambda z, *args, run=vae.decode, **kwargs: run(z * 2, *args, **kwargs)
    vae.encode = lambda x, *args, run=vae.encode, **kwargs: run(x / 2, *args, **kwargs)


def other_numbers(vae: Any) -> None:
    """Attributes that layers compute with."""
    vae.encoder.conv_norm_out.eps = vae.decoder.conv_norm_out.eps = 0.5
    for part in (vae.encoder, vae.decoder):
        part.mid_block.resnets[0].output_scale_factor = 2.0


def other_activation(vae: Any) -> None:
    vae.encoder.conv_act = vae.decoder.conv_act = nn.GELU()


def other_processor(vae: Any) -> None:
    class Doubled(AttnProcessor):  # type: ignore[misc]
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result: Tensor = super().__call__(attn, 2 * hidden_states, *args, **kwargs)
            return result

    vae.set_attn_processor(Doubled())


def fuse_and_unfuse(vae: Any) -> None:
    vae.fuse_qkv_projections()
    results(vae)
    vae.unfuse_qkv_projections()


def spectral(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        parametrizations.spectral_norm(part.conv_in)


def normalised(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        parametrizations.weight_norm(part.conv_out)
        part.conv_out.parametrizations.weight.original0.data.mul_(2)


def parametrized(vae: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    for part in (vae.encoder, vae.decoder):
        parametrize.register_parametrization(part.conv_out, "weight", Doubled())


def pruned(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        prune.l1_unstructured(part.conv_out, "weight", amount=0.5)


def without_bias(vae: Any) -> None:
    for part in (vae.encoder, vae.decoder):
        part.conv_out.bias = None


def longer(vae: Any) -> None:
    vae.decoder.up_blocks.append(nn.Tanh())
    vae.decoder.up_blocks[-1].forward = lambda x, *args: torch.tanh(x)
    vae.encoder.mid_block.resnets.append(copy.deepcopy(vae.encoder.mid_block.resnets[0]))
    vae.encoder.mid_block.attentions.append(None)


def sequential_offload(vae: Any) -> None:
    in_place(vae)
    accelerate.cpu_offload(vae, execution_device=torch.device("cpu"))


def model_offload(vae: Any) -> None:
    in_place(vae)
    accelerate.cpu_offload_with_hook(vae, execution_device=torch.device("cpu"))


def without_offload_again(vae: Any) -> None:
    sequential_offload(vae)
    results(vae, IMAGES.to(vae.dtype), LATENTS.to(vae.dtype))
    accelerate.hooks.remove_hook_from_submodules(vae)


def group_offload(vae: Any) -> None:
    in_place(vae)
    vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def block_offload(vae: Any) -> None:
    in_place(vae)
    vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


def layerwise(vae: Any) -> None:
    vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def other_places(vae: Any) -> None:
    vae.to(memory_format=torch.channels_last)
    in_place(vae)


def copied(vae: Any) -> Any:
    again = copy.deepcopy(vae)
    in_place(again)
    return again


def pickled(vae: Any) -> Any:
    in_place(vae)
    return pickle.loads(pickle.dumps(vae))


CODEC, PLAIN = "codec", "plain"
# What is done, and which pass then encodes and decodes.
CHANGES: dict[str, tuple[Change, str, str]] = {
    "load_state_dict": (load, CODEC, CODEC),
    "load_state_dict(assign=True)": (load_assigned, CODEC, CODEC),
    "vae.decoder = other": (replace_decoder, CODEC, CODEC),
    "layers replaced": (replace_layers, CODEC, CODEC),
    "new Parameter": (new_parameters, CODEC, CODEC),
    "param.data = other": (new_data, CODEC, CODEC),
    "in place": (in_place, CODEC, CODEC),
    "channels_last": (other_places, CODEC, CODEC),
    "deepcopy": (copied, CODEC, CODEC),
    "vae.decode = other": (patched_outer, CODEC, CODEC),
    "offload of the model": (model_offload, CODEC, CODEC),
    "offload layer by layer, removed": (without_offload_again, CODEC, CODEC),
    "an adapter around layers": (wrap, PLAIN, PLAIN),
    "quantised layers": (quantize, PLAIN, PLAIN),
    "quantised tensors": (quantize_in_place, PLAIN, PLAIN),
    "circular padding": (circular, PLAIN, PLAIN),
    "circular padding in one direction": (circular_in_one_direction, PLAIN, PLAIN),
    "hooks": (hooks, PLAIN, PLAIN),
    "vae.decoder.forward = other": (patched_forward, PLAIN, PLAIN),
    "vae._decode = other": (patched_inner, PLAIN, PLAIN),
    "other numbers": (other_numbers, PLAIN, PLAIN),
    "other activation": (other_activation, PLAIN, PLAIN),
    "set_attn_processor": (other_processor, PLAIN, PLAIN),
    "spectral_norm": (spectral, PLAIN, PLAIN),
    "weight_norm": (normalised, PLAIN, PLAIN),
    "parametrize": (parametrized, PLAIN, PLAIN),
    "prune": (pruned, PLAIN, PLAIN),
    "a bias removed": (without_bias, PLAIN, PLAIN),
    "a layer more": (longer, PLAIN, PLAIN),
    "offload layer by layer": (sequential_offload, PLAIN, PLAIN),
    "offload of groups, leaf by leaf": (group_offload, PLAIN, PLAIN),
    "offload of groups, block by block": (block_offload, PLAIN, PLAIN),
    "enable_layerwise_casting": (layerwise, PLAIN, PLAIN),
}
# What should not change the result at all.
SAME: dict[str, tuple[Change, str, str]] = {
    "fuse_qkv_projections": (lambda vae: vae.fuse_qkv_projections(), PLAIN, PLAIN),
    "unfuse_qkv_projections": (fuse_and_unfuse, PLAIN, PLAIN),
    "set_default_attn_processor": (lambda vae: vae.set_default_attn_processor(), PLAIN, PLAIN),
    "enable_slicing": (lambda vae: vae.enable_slicing(), CODEC, CODEC),
    "train": (lambda vae: vae.train(), CODEC, CODEC),
    "pickle": (lambda vae: pickle.loads(pickle.dumps(vae)), CODEC, CODEC),
    "enable_gradient_checkpointing": (lambda vae: vae.enable_gradient_checkpointing(), CODEC, CODEC),
}


def changed(vae: Any, change: Change) -> Any:
    torch.manual_seed(1)  # for changes that draw numbers, as spectral_norm does
    return change(vae) or vae
