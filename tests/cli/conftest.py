from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import encoded, write_tar

CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint of a tiny f4 codec and a recipe."""
    torch.manual_seed(0)
    states = {"model": Autoencoder(CONFIG).state_dict(), "ema": Autoencoder(CONFIG).state_dict()}
    folder = tmp_path / "run"
    meta = {"step": 7, "model": CONFIG.model_dump(mode="json")}
    Checkpoint.write(folder / "checkpoints" / "step_00000007", states, meta)
    (folder / "recipe.yaml").write_text("data: {train: photographs, image: {crop: 30}}\n")
    return folder


def write_shard(path: Path, keys: list[str], *, sizes: list[tuple[int, int]] | None = None) -> Path:
    """A tar of png pictures of changing sizes, each with a class and a text."""
    generator = np.random.default_rng(len(keys))
    members: dict[str, bytes] = {}
    for number, key in enumerate(keys):
        height, width = (sizes or [(16, 16), (17, 30), (24, 12)])[number % len(sizes or [0, 0, 0])]
        members[f"{key}.png"] = encoded(Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        members |= {f"{key}.cls": str(number).encode(), f"{key}.txt": f"number {number}".encode()}
    return write_tar(path, members)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of 7 and 4 pictures; one key holds dots."""
    folder = tmp_path / "shards"
    write_shard(folder / "000000.tar", ["a", "b.v1.0", "c", "d", "e", "f", "g"])
    write_shard(folder / "000001.tar", ["h", "i", "j", "k"])
    return folder
