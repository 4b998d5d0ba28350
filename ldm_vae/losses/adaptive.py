"""The adaptive weight: scales a loss so that its gradient at a last layer is as long as the reconstruction's.

Source: Esser et al. 2021, arXiv:2012.09841, eq. 7; `calculate_adaptive_weight` of CompVis/latent-diffusion (MIT).
Ours: `losses/anchor.py` computes the gradients, and they are averaged over the processes before norms are taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm_vae.precision import at_least_float32


def adaptive_weight(
    grad_reconstruction: Tensor,
    grad_generator: Tensor,
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
    eps: float = 1.0e-4,
    maximum: float = 1.0e4,
) -> Tensor:
    """|grad_reconstruction| / (|grad_generator| + eps), at most `maximum`, with Euclidean norms.

    Returns a scalar () without a gradient.

    grad_reconstruction, grad_generator: gradients of the two losses with respect to one weight, of its shape.
    reduce: averages a tensor over the processes, so that they agree on the weight; None for one process.
    eps, maximum: the defaults are CompVis'. They suit a reconstruction loss that is summed over an image and averaged
    over images, and a generator loss that is averaged over patches and images. If the reconstruction loss is divided
    by s, divide maximum by s; if both losses are, divide eps by s.
    """
    with torch.no_grad():
        gradients = torch.stack([at_least_float32(grad_reconstruction), at_least_float32(grad_generator)])
        if reduce is not None:
            gradients = reduce(gradients)
        reconstruction, generator = gradients.flatten(1).norm(dim=1)
        weight: Tensor = (reconstruction / (generator + eps)).clamp(max=maximum)
    return weight
