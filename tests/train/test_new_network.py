"""A new network is one class, its configuration and a line in the table: here linear, on patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from ldm_vae import LatentCodec, UserError
from ldm_vae.networks.network import Anchor, Decoded, Encoded, Network, NetworkConfig
from ldm_vae.nn.last_layer import LastLayer
from ldm_vae.noise import Noise
from ldm_vae.parts import NETWORKS
from ldm_vae.recipe import Kind
from tests.train.conftest import Holds


class PatchesConfig(NetworkConfig):
    kind: Literal["patches"] = "patches"

    @property
    def factor(self) -> int:
        return 4


class Patches(Network):
    def __init__(self, config: PatchesConfig, heads: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__(config, heads)
        c, f = config.latent_channels, config.factor
        self.analysis = nn.Conv2d(config.in_channels, self.bottleneck.width * c, f, stride=f)
        self.synthesis = nn.Sequential(nn.Conv2d(c, config.out_channels * f * f, 1), nn.PixelShuffle(f))

    def run_encoder(self, image: Tensor, label: Tensor | None = None) -> Encoded:
        return Encoded(hidden := self.analysis(image), LastLayer(image, hidden))

    def run_decoder(self, z: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Decoded:
        z = z if noise is None else z * (noise.uniform("dropout", z) > 0.1)  # by slot: the same on any number of ranks
        return Decoded(self.synthesis(z), z)

    @property
    def anchors(self) -> Mapping[str, Anchor]:
        return {"encoder": Anchor(self.analysis), "decoder": Anchor(self.synthesis, "0.weight")}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS.table, "patches", Kind(__name__, "PatchesConfig", "Patches"))


def test_trains_on_one_and_two_processes_and_resumes(holds: Holds, tmp_path: Path) -> None:
    holds("model={kind: patches, latent_channels: 3}")
    codec = LatentCodec.load(tmp_path / "one")
    assert codec.decode_raw(codec.draw(codec.moments(torch.zeros(1, 3, 1030, 1022)))).shape == (1, 3, 1032, 1024)
    with pytest.raises(UserError, match="a network of kind patches runs as a whole"):
        codec.moments(torch.zeros(1, 3, 8, 8), max_memory=2**20)
