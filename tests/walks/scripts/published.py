"""A codec that others published, as diffusers saves it: `python published.py FOLDER`. Its weights are random."""

import sys

import torch
from diffusers import AutoencoderKL

torch.manual_seed(0)
AutoencoderKL(
    block_out_channels=(16, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=4,
    layers_per_block=1,
    latent_channels=4,
    scaling_factor=0.18215,
).save_pretrained(sys.argv[1])
