"""Counts which pass a drop-in took: that of the codec, or diffusers' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae import LatentCodec

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
LATENTS = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(1))


def count_passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of the codec, under "encode" and "decode", from now on."""
    calls: Counter[str] = Counter()
    for part, method in (("encode", "moments"), ("decode", "decode_raw")):
        monkeypatch.setattr(LatentCodec, method, _counted(getattr(LatentCodec, method), part, calls))
    return calls


def _counted(run: Callable[..., Tensor], part: str, calls: Counter[str]) -> Callable[..., Tensor]:
    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls[part] += 1
        return run(*args, **kwargs)

    return counted


def results(vae: AutoencoderKL, images: Tensor = IMAGES, latents: Tensor = LATENTS) -> dict[str, Tensor]:
    """What the AutoencoderKL computes of these: the posterior's parameters, and pictures."""
    return {"encode": vae.encode(images).latent_dist.parameters, "decode": vae.decode(latents).sample}
