"""Image -> moments of the posterior."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_vae.nn.blocks import NORM_EPS, DownLevel, Middle
from ldm_vae.nn.checkpointing import run_block
from ldm_vae.nn.last_layer import LastLayer
from ldm_vae.nn.norm import GroupNorm


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H/f, W/f), f = 2^(levels - 1).

    channels: width of each level, full resolution first.
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
        widths = [channels[0], *channels]
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(widths[i], widths[i + 1], layers, norm_groups, attention[i], downsample=i != last)
            for i in range(len(channels))
        )
        self.mid_block = Middle(channels[-1], norm_groups, mid_attention)
        self.conv_norm_out = GroupNorm(norm_groups, channels[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    def forward(self, image: Tensor) -> LastLayer:
        hidden = self.conv_in(image)
        for block in (*self.down_blocks, self.mid_block):
            hidden = run_block(block, hidden, self.gradient_checkpointing)
        below = F.silu(self.conv_norm_out(hidden))
        return LastLayer(below, self.conv_out(below))
