"""A frozen network is pinned by its weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_vae import UserError
from ldm_vae.pretrained.frozen import FrozenConfig, pin


def test_other_weights_are_refused() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    pinned = pin(FrozenConfig(), network, "loss.perceptual")
    assert pinned.weights_sha256 is not None and len(pinned.weights_sha256) == 64
    assert pin(pinned, network, "loss.perceptual") == pinned
    with torch.no_grad():
        network.bias[1] += 1e-6
    with pytest.raises(UserError, match="the frozen network's weights are"):
        pin(pinned, network, "loss.perceptual")
