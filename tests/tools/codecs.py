"""Writes random codecs, as diffusers saves them, for the tools to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL


def write_codec(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random diffusers folder, f2 with 3 channels."""
    torch.manual_seed(seed)
    vae: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
        **({"scaling_factor": 0.6} | config),
    )
    vae.save_pretrained(folder)
    return folder
