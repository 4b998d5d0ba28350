"""Which scale an export gets, where the model has one and statistics give another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import ScaleKind, Target
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import load_model, weights_hash
from ldm_vae.metrics.latent import LatentMoments, LatentStatistics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1)


@pytest.mark.parametrize(
    ("kind", "target", "factor", "shifted"),
    [(None, None, 0.3, False), ("factor", None, 0.5, False), (None, "sd3", 0.5, True)],
)
def test_scale_of_a_run_stays_unless_another_is_asked_for(
    tmp_path: Path, kind: ScaleKind | None, target: Target | None, factor: float, shifted: bool
) -> None:
    config = CONFIG.model_copy(update={"latent_channels": 16})
    state = {"model": Autoencoder(config).state_dict()}
    meta = {"step": 1, "model": config.model_dump(mode="json")}
    Checkpoint.write(tmp_path / "run" / "checkpoints" / "step_00000001", state, meta)
    loaded = replace(load_model(tmp_path / "run"), scale=LatentScale(0.3))
    moments = LatentMoments(16)
    moments.update(torch.tensor([-2.0, 2.0]).repeat(1, 16, 2, 1))  # mean 0, standard deviation 2
    statistics = LatentStatistics.of(
        moments, codec=weights_hash(loaded.model), latents="mode", protocol={"resize": 256, "crop": None}, data="shards"
    )
    export_model(loaded, tmp_path / "out", statistics, kind=kind, target=target, command="")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["scaling_factor"] == pytest.approx(factor)
    assert (written["shift_factor"] is not None) == shifted
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Latents measured on: shards (images 1, resize 256, crop none)." in card
