"""Gradients of losses at the weight of a last layer, without a backward pass through the layers before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from ldm_vae.networks.network import Anchor
from ldm_vae.precision import at_least_float32, without_autocast


def weight_gradients(anchor: Anchor, below: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients with respect to the layer's output -> gradients with respect to its weight.

    These are vector-Jacobian products. The layer runs once more with detached copies of its parameters, so that the
    network's own gradients stay as they are and DistributedDataParallel sees no backward pass.

    below: the layer's input.
    gradients: gradient of each loss with respect to the layer's output.
    Returns the gradient of each loss with respect to the weight, in at least float32.
    """
    with torch.enable_grad(), without_autocast(below.device):
        tensors = {name: value.detach() for name, value in anchor.layer.named_parameters()}
        weight = tensors[anchor.weight].requires_grad_()
        output = functional_call(anchor.layer, tensors, (at_least_float32(below.detach()),))
        last = len(gradients) - 1
        return [
            torch.autograd.grad(output, weight, at_least_float32(gradient), retain_graph=i != last)[0]
            for i, gradient in enumerate(gradients)
        ]
