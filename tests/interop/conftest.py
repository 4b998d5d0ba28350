from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL


@pytest.fixture
def vae() -> AutoencoderKL:
    """A tiny AutoencoderKL, f4, with attention in one level and in the middle, norms and biases not trivial."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        block_out_channels=[8, 8, 16],
        norm_num_groups=4,
        scaling_factor=0.5,
        sample_size=64,
    )
    with torch.no_grad():
        for parameter in vae.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return vae.eval().requires_grad_(False)
