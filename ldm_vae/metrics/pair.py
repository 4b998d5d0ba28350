"""LPIPS' network over a pair of images, once for two numbers: their distance, and what its last layer sees in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_vae.losses.perceptual import LPIPS, SMALLEST_SIDE, LPIPSNetwork
from ldm_vae.pretrained.backbones import fingerprint


@dataclass(frozen=True)
class Seen:
    """distance: (B,).   features: (B, 2, d), of the reconstruction and of the image, means over positions."""

    distance: Tensor
    features: Tensor


class PairNetwork:
    """The metrics that use one network share its pass: the last pair is remembered.

    features: the activations after the last tapped layer (relu5_3 of VGG16, d = 512; relu5 of AlexNet, d = 256), as
    they are before LPIPS stretches them to length 1, averaged over positions.
    """

    def __init__(self, network: LPIPSNetwork, device: torch.device) -> None:
        self.lpips = LPIPS(network)
        self.smallest = SMALLEST_SIDE[network]  # pixels along the shorter side
        self.weights = fingerprint(self.lpips.state_dict())  # sha256
        self.lpips.to(device)
        self.lpips.features[-1].register_forward_hook(self._note)
        self._noted: list[Tensor] = []
        self._last: tuple[Tensor, Tensor, Seen] | None = None

    def __call__(self, reconstruction: Tensor, image: Tensor) -> Seen:
        """reconstruction, image: (B, 1 or 3, H, W), uint8; one channel is shown as grey."""
        if self._last is None or self._last[0] is not reconstruction or self._last[1] is not image:
            self._noted.clear()
            shape = (len(image), 3, *image.shape[2:])
            ours, theirs = ((x / 127.5 - 1.0).expand(shape) for x in (reconstruction, image))
            distance = self.lpips(ours, theirs)
            of_image, of_reconstruction = self._noted  # LPIPS looks at the target first
            self._last = reconstruction, image, Seen(distance, torch.stack([of_reconstruction, of_image], dim=1))
        return self._last[2]

    def _note(self, layer: Any, inputs: Any, output: Tensor) -> None:
        self._noted.append(output.mean(dim=(2, 3)))
