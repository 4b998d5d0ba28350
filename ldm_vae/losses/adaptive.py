"""The adaptive weight: makes the gradient of a loss as long as the reconstruction's at a last layer.

Source: Esser et al. 2021, arXiv:2012.09841, eq. 7; `calculate_adaptive_weight` of CompVis/latent-diffusion (MIT).
Ours: the gradients of the weight come from `losses/anchor.py`; over processes they are averaged before norms are taken.
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
    """|grad_reconstruction| / (|grad_generator| + eps), at most `maximum`; Euclidean norms. Returns (), no gradient.

    grad_reconstruction, grad_generator: equal shapes, gradients of the two losses with respect to one weight.
    reduce: average of a tensor over the processes, which then agree on the weight; None for one process.
    eps and maximum are CompVis', for a reconstruction loss summed over an image and averaged over images, beside a
    generator loss averaged over patches and images. Where the reconstruction loss is divided by s (its values per
    image, say), the same training takes maximum / s; where both are, eps / s.
    """
    with torch.no_grad():
        gradients = torch.stack([at_least_float32(grad_reconstruction), at_least_float32(grad_generator)])
        if reduce is not None:
            gradients = reduce(gradients)
        reconstruction, generator = gradients.flatten(1).norm(dim=1)
        weight: Tensor = (reconstruction / (generator + eps)).clamp(max=maximum)
    return weight
