"""Runs LPIPS' network on pairs of images: the distance of each pair, and the features of its last layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_vae.losses.perceptual import LPIPS, SMALLEST_IMAGE, LPIPSNetwork
from ldm_vae.pretrained.backbones import weights_sha256


@dataclass(frozen=True)
class PairResult:
    """What the network gives for B pairs.

    distance: (B,) LPIPS.
    features: (B, 2, d) of the reconstruction and of the image, averaged over positions.
    """

    distance: Tensor
    features: Tensor


class PairNetwork:
    """LPIPS' network, which gives a distance and features in one pass.

    The features are the activations after the last layer that LPIPS uses (relu5_3 of VGG16, d = 512; relu5 of AlexNet,
    d = 256), before LPIPS scales them to length 1.

    The result for the last pair of tensors is remembered: `ImageMetrics` asks for the distance of a batch and then
    `FeatureSets` for its features, neither knows of the other, and the network would run twice. The pair is recognised
    by identity, which is safe because its tensors are kept; they must not be changed in place.
    """

    def __init__(self, network: LPIPSNetwork, device: torch.device) -> None:
        self.lpips = LPIPS(network)
        self.smallest = SMALLEST_IMAGE[network]  # pixels along the shorter side
        self.weights = weights_sha256(self.lpips.state_dict())  # sha256
        self.lpips.to(device)
        self.lpips.features[-1].register_forward_hook(self._note)
        self._noted: list[Tensor] = []
        self._last: tuple[Tensor, Tensor, PairResult] | None = None

    def __call__(self, reconstruction: Tensor, image: Tensor) -> PairResult:
        """reconstruction, image: (B, 1 or 3, H, W), uint8; one channel is shown as grey.

        Where one image is expanded over the batch (`Tensor.expand`), the network looks at it once.
        """
        if self._last is None or self._last[0] is not reconstruction or self._last[1] is not image:
            self._noted.clear()
            seen = image[:1] if image.stride(0) == 0 else image
            ours, theirs = ((x / 127.5 - 1.0).expand(-1, 3, -1, -1) for x in (reconstruction, seen))
            distance = self.lpips(ours, theirs)
            of_image, of_reconstruction = self._noted  # LPIPS looks at the target first
            features = torch.stack([of_reconstruction, of_image.expand_as(of_reconstruction)], dim=1)
            self._last = reconstruction, image, PairResult(distance, features)
        return self._last[2]

    def _note(self, layer: Any, inputs: Any, output: Tensor) -> None:
        self._noted.append(output.mean(dim=(2, 3)))
