"""Photographs, and the lpips package with the same backbone as ours."""

import warnings

import lpips
import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from ldm_vae.losses.perceptual import BACKBONE, LPIPS
from ldm_vae.pretrained.backbones import backbone_weights


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """(4, 3, 64, 64) in [-1, 1]: crops around the middle."""
    crops = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        image = torch.from_numpy(np.ascontiguousarray(getattr(skimage.data, name)())).permute(2, 0, 1).float()
        top, left = (image.shape[1] - 64) // 2, (image.shape[2] - 64) // 2
        crops.append(image[:, top : top + 64, left : left + 64] / 127.5 - 1.0)
    return torch.stack(crops)


@pytest.fixture(scope="session", params=["vgg", "alex"])
def pair(request: pytest.FixtureRequest) -> tuple[LPIPS, lpips.LPIPS]:
    """Ours and the package's."""
    with warnings.catch_warnings(action="ignore"):  # it calls torchvision in an old way
        theirs = lpips.LPIPS(net=request.param, pnet_rand=True, verbose=False)  # its own heads; the backbone follows
    weights = backbone_weights(BACKBONE[request.param])
    # The package cuts torchvision's network into slices that keep the numbering: slice2.4.weight is features.4.weight.
    theirs.net.load_state_dict({key: weights[f"features.{key.partition('.')[2]}"] for key in theirs.net.state_dict()})
    return LPIPS(request.param), theirs.requires_grad_(False)
