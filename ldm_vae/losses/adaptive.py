"""The adaptive GAN weight: makes the adversarial gradient as long as the reconstruction's at the decoder's last layer.

Source: Esser et al. 2021, arXiv:2012.09841, eq. 7; `calculate_adaptive_weight` of CompVis/latent-diffusion (MIT).
Ours: the gradients of the last weight are computed from those of the reconstruction, without autograd through the
decoder and so beside DistributedDataParallel; over processes the gradients are averaged before norms are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ldm_vae.precision import at_least_float32


def last_layer_gradient(last_hidden: Tensor, grad_output: Tensor, weight_shape: Sequence[int]) -> Tensor:
    """Gradient of a loss with respect to the weight of the decoder's last convolution (3x3, stride 1, padding 1).

    last_hidden: (B, channels, H, W), the convolution's input.   weight_shape: (C, channels, 3, 3).
    grad_output: (B, C, H, W), gradient of the loss with respect to the convolution's output, the reconstruction.
    Returns (C, channels, 3, 3) in at least float32.
    """
    with torch.no_grad(), torch.autocast(last_hidden.device.type, enabled=False):
        hidden, grad = at_least_float32(last_hidden), at_least_float32(grad_output)
        gradient: Tensor = conv2d_weight(hidden, weight_shape, grad, padding=1)  # type: ignore[no-untyped-call]
    return gradient


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
