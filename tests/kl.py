"""Says which kind of network a codec, a run or a loaded model holds, where a test reaches for its layers."""

from __future__ import annotations

from torch import nn

from ldm_vae.networks.kl import Autoencoder


def autoencoder_in(model: nn.Module) -> Autoencoder:
    """The same network, as the kind that the test has put there."""
    assert isinstance(model, Autoencoder)
    return model
