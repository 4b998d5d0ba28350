"""Residual block, attention and resampling of the KL autoencoder.

Parameter names follow diffusers' AutoencoderKL, so that export renames nothing.
Architecture: Esser et al. 2021 (arXiv:2012.09841), as in CompVis/latent-diffusion (MIT).
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_vae.nn.norm import GroupNorm, TypeKeeper

NORM_EPS = 1e-6


class ResBlock(nn.Module):
    """Twice GroupNorm, SiLU and a convolution, added to a shortcut (a 1x1 convolution where the channels change)."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(norm_groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(norm_groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:  # (B, in, H, W) -> (B, out, H, W)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return shortcut + hidden


class Attention(nn.Module):
    """Self-attention with one head over all positions, added to its input."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        tokens = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        q, k, v = (project(tokens).unsqueeze(1) for project in (self.to_q, self.to_k, self.to_v))  # (B, 1 head, HW, C)
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + rearrange(self.to_out[0](mixed), "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Halves height and width: convolution of stride 2, padded by one row below and one column on the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H/2, W/2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(TypeKeeper, nn.Module):
    """Doubles height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, 2H, 2W)
        with self.typing(x):
            doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(doubled)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked for."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, norm_groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels, norm_groups) for i in range(layers)
        )
        self.attentions = nn.ModuleList(Attention(out_channels, norm_groups) for _ in range(layers if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x


class DownLevel(Level):
    """A level of the encoder: residual blocks, then halving (`downsample`)."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, norm_groups: int, attention: bool, downsample: bool
    ) -> None:
        super().__init__(in_channels, out_channels, layers, norm_groups, attention)
        self.downsamplers = nn.ModuleList([Downsample(out_channels)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class UpLevel(Level):
    """A level of the decoder: residual blocks, then doubling (`upsample`)."""

    def __init__(
        self, in_channels: int, out_channels: int, layers: int, norm_groups: int, attention: bool, upsample: bool
    ) -> None:
        super().__init__(in_channels, out_channels, layers, norm_groups, attention)
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class Middle(nn.Module):
    """Residual block, attention (where asked for), residual block at the lowest resolution."""

    def __init__(self, channels: int, norm_groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(channels, channels, norm_groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, norm_groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)
