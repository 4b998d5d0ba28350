"""Latent -> reconstruction."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.nn.blocks import NORM_EPS, Middle, UpLevel
from ldm_vae.nn.checkpointing import run_block
from ldm_vae.nn.last_layer import LastLayer
from ldm_vae.nn.norm import GroupNorm


class Decoder(nn.Module):
    """(B, in_channels, h, w) -> (B, out_channels, h*f, w*f), f = 2^(levels - 1).

    channels: width of each level, full resolution first, as in the encoder; `up_blocks` run from last to first.
    attention: whether each level has attention, in the same order.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        layers: int,
        attention: Sequence[bool],
        mid_attention: bool,
        norm_groups: int,
    ) -> None:
        super().__init__()
        widths = [channels[-1], *reversed(channels)]
        levels = list(reversed(attention))
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(in_channels, channels[-1], 3, padding=1)
        self.mid_block = Middle(channels[-1], norm_groups, mid_attention)
        self.up_blocks = nn.ModuleList(
            UpLevel(widths[i], widths[i + 1], layers, norm_groups, levels[i], upsample=i != last)
            for i in range(len(channels))
        )
        self.conv_norm_out = GroupNorm(norm_groups, channels[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, z: Tensor) -> LastLayer:
        hidden = self.conv_in(z)
        for block in (self.mid_block, *self.up_blocks):
            hidden = run_block(block, hidden, self.gradient_checkpointing)
        below = F.silu(self.conv_norm_out(hidden))
        return LastLayer(below, self.conv_out(below))
