"""`ldm-vae encode` on a GPU stores the latents of the CPU, also where a batch of images does not fit.

`python -m pytest -m gpu` asks a card; the other tests ask a device that pretends to be one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm_vae import LatentDataset
from ldm_vae.bottlenecks.scale import LatentScale
from tests.cards import DEVICES, run_module
from tests.cli.conftest import write_shard

IMAGES = 16
# Height and width of the pictures, and MiB of the device. On a card cuBLAS takes 64 of them, and one layer of all
# pictures takes 100.
LITTLE = {"gpu": ((64, 96), 4), "cuda": ((384, 512), 200)}


def encode(device: str, run: Path, shards: Path, out: Path, mebibytes: int = 0) -> tuple[dict[str, np.ndarray], str]:
    """Key -> latent, and what the command said."""
    arguments = ("encode", run, shards, out, "--batch", IMAGES)
    code, said = run_module(device, "ldm_vae", *arguments, mebibytes=mebibytes)
    assert code == 0, said
    latents = LatentDataset(out, sample=False, scale=LatentScale())
    return {item["key"]: item["latent"].numpy() for item in map(latents.__getitem__, range(len(latents)))}, "\n".join(
        said
    )


@pytest.mark.parametrize("device", DEVICES)
def test_latents_are_those_of_the_cpu(device: str, run: Path, tmp_path: Path) -> None:
    """Both round in float32, and then to float16, where a value between two numbers may become either one: 2^-10. With
    TF32 the differences would be 5e-3 of the standard deviation."""
    size, mebibytes = LITTLE[device]
    write_shard(tmp_path / "shards" / "0.tar", [str(i) for i in range(IMAGES)], sizes=[size])
    expected, _ = encode("cpu", run, tmp_path / "shards", tmp_path / "cpu")
    whole, said = encode(device, run, tmp_path / "shards", tmp_path / "whole")
    assert "ran out" not in said
    little, said = encode(device, run, tmp_path / "shards", tmp_path / "little", mebibytes)
    assert f"ran out with {IMAGES} images at a time" in said
    assert len(expected) == IMAGES
    for found in (whole, little):
        assert found.keys() == expected.keys()
        for key, latent in found.items():
            np.testing.assert_allclose(latent, expected[key], rtol=2**-10, atol=1e-4 * expected[key].std())
