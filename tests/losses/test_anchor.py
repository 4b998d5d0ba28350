"""Gradients at a last layer against autograd through it, whatever the layer is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.losses.anchor import weight_gradients
from ldm_vae.networks.network import Anchor
from tests.tolerance import roundings


class Doubled(nn.Module):
    """2 x - 1 of a linear layer, as TAESD's decoder ends."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x) - 1


LAYERS = {
    "convolution": (Anchor(nn.Conv2d(6, 3, 3, padding=1)), (2, 6, 9, 7)),
    "1x1 without bias": (Anchor(nn.Conv2d(6, 3, 1, bias=False)), (2, 6, 4, 4)),
    "stride 2": (Anchor(nn.Conv2d(6, 3, 4, stride=2, padding=1)), (2, 6, 8, 8)),
    "shuffle": (Anchor(nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.PixelShuffle(2)), "0.weight"), (2, 6, 5, 5)),
    "linear": (Anchor(nn.Linear(5, 3)), (4, 5)),
    "affine of a linear layer": (Anchor(Doubled(), "inner.weight"), (4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_any_layer_equals_autograd(name: str) -> None:
    anchor, shape = LAYERS[name]
    anchor.layer.double()
    below = torch.randn(shape, dtype=torch.float64)
    weight = dict(anchor.layer.named_parameters())[anchor.weight]
    output = anchor.layer(below)
    gradients = [torch.randn_like(output) for _ in range(2)]
    found = weight_gradients(anchor, below, gradients)
    for gradient, ours in zip(gradients, found, strict=True):
        (expected,) = torch.autograd.grad(output, weight, gradient, retain_graph=True)
        assert torch.equal(ours, expected)
    assert weight.grad is None and weight.requires_grad  # the network's own gradients are left alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, grad_output = torch.randn(2, 16, 9, 7).to(dtype), torch.randn(2, 3, 9, 7).to(dtype)
    layer = nn.Conv2d(16, 3, 3, padding=1)
    weight = layer.weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.conv2d(hidden.double(), weight, padding=1), weight, grad_output.double())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        (found,) = weight_gradients(Anchor(layer), hidden, [grad_output])
    assert found.dtype == torch.float32 and not found.requires_grad
    # Sums of 126 products in float32: their roundings add up as a random walk does, to about sqrt(126) = 11 of the
    # largest sum. Rounded to bfloat16 on the way, where a rounding is 2^16 times as large, they would be off by more.
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=roundings(found, 30))
