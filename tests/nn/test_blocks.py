from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm_vae.nn.blocks import Attention, DownLevel, Downsample, Middle, ResBlock, UpLevel, Upsample
from ldm_vae.nn.checkpointing import run_block

pytestmark = pytest.mark.numerical


class Calls(TorchFunctionMode):
    """Counts the calls of one torch function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.count = function, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is self.function
        return func(*args, **(kwargs or {}))


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_attention_is_the_formula_through_scaled_dot_product_attention() -> None:
    attention, x = Attention(8, 4).double(), image(2, 8, 3, 5).double()
    with Calls(F.scaled_dot_product_attention) as calls:
        result = attention(x)
    assert calls.count == 1
    tokens = attention.group_norm(x).flatten(2).transpose(1, 2)
    q, k, v = attention.to_q(tokens), attention.to_k(tokens), attention.to_v(tokens)
    mixed = attention.to_out[0]((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v)
    torch.testing.assert_close(result, x + mixed.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(("height", "width"), [(8, 12), (2, 2), (7, 5)])
def test_resampling_halves_and_doubles(height: int, width: int) -> None:
    x = image(1, 4, height, width)
    assert Downsample(4)(x).shape == (1, 4, height // 2, width // 2)
    assert Upsample(4)(x).shape == (1, 4, 2 * height, 2 * width)


def test_shortcut_is_a_convolution_only_where_channels_change() -> None:
    assert ResBlock(8, 8, 4).conv_shortcut is None
    assert isinstance(ResBlock(8, 16, 4).conv_shortcut, nn.Conv2d)


@pytest.mark.parametrize("attention", [True, False])
def test_attention_follows_each_residual_block(attention: bool) -> None:
    calls = Calls(F.scaled_dot_product_attention)
    with calls:
        DownLevel(4, 8, 2, 4, attention, downsample=True)(image(1, 4, 4, 4))
        UpLevel(4, 8, 3, 4, attention, upsample=True)(image(1, 4, 4, 4))
        Middle(4, 4, attention)(image(1, 4, 4, 4))
    assert calls.count == (2 + 3 + 1 if attention else 0)


def test_checkpointed_block_is_recomputed_with_bit_equal_gradients() -> None:
    block = Middle(8, 4, attention=True)
    forwards: list[nn.Module] = []
    block.resnets[0].register_forward_hook(lambda module, *_: forwards.append(module))
    gradients = []
    for checkpointing, expected in ((False, 1), (True, 2)):
        forwards.clear()
        block.zero_grad()
        run_block(block, image(1, 8, 4, 4), checkpointing).square().sum().backward()
        assert len(forwards) == expected
        gradients.append([parameter.grad for parameter in block.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_nothing_is_recomputed_without_gradients() -> None:
    block = Middle(8, 4, attention=False)
    with torch.no_grad():
        assert not run_block(block, image(1, 8, 4, 4), checkpointing=True).requires_grad
