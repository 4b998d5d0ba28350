"""`ldm-vae roundtrip` against evaluation, and the 8 bits it tries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.cli.app import main
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import load_index
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import evaluate_shards
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.roundtrip import measure_roundtrip, round_to_bits


def encode(run: Path, shards: Path, out: Path, *options: object) -> Path:
    with pytest.raises(SystemExit) as stop:
        main(["encode", str(run), str(shards), str(out), *map(str, options)])
    assert not stop.value.code
    return out


@pytest.mark.parametrize("options", [(), ("--crop", "center:12", "--batch", 3)])
def test_unstored_latents_score_as_in_evaluation_and_stored_ones_nearly(
    run: Path, shards: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    out = encode(run, shards, tmp_path / "out", *options)
    codec = LatentCodec.load(run, device="cpu")
    progress: list[int] = []
    found = measure_roundtrip(
        codec,
        LatentDataset(out, codec=codec),
        load_index(str(shards)),
        metrics=("psnr",),
        done=lambda count, total: progress.append(total),
    )
    assert progress == [11] * 11
    codec.scale = LatentScale()
    protocol = EvaluationProtocol(image=ImageConfig(crop=12 if options else None), metrics=("psnr",))
    expected = evaluate_shards(codec, str(shards), protocol, batch=1).metrics["psnr"]
    assert found["float32"].results.metrics["psnr"] == expected
    # Rounding a latent to 11 bits moves some pixels across a rounding to 8; to 8 bits, a few more.
    assert found["float16"].results.metrics["psnr"] == pytest.approx(expected, abs=0.01)
    assert found["8 bits"].results.metrics["psnr"] == pytest.approx(expected, abs=0.1)
    assert found["float32"].bytes == 2 * found["float16"].bytes
    assert found["8 bits"].bytes == found["float16"].bytes / 2 + 8 * 4


def test_command_writes_every_way_of_storing(run: Path, shards: Path, tmp_path: Path) -> None:
    out = encode(run, shards, tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        main(["roundtrip", str(run), str(out), str(shards), "--json", str(tmp_path / "numbers.json")])
    assert not stop.value.code
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert list(content) == ["float32", "float16", "8 bits"]
    assert content["float16"]["metrics"]["psnr"] > 0
    assert content["float16"]["bytes_per_image"] > 0


def test_other_images_are_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    out = encode(run, shards, tmp_path / "out")
    codec = LatentCodec.load(run, device="cpu")
    (shards / "000000.tar").unlink()
    with pytest.raises(UserError, match="not the images"):
        measure_roundtrip(codec, LatentDataset(out), load_index(str(shards)), metrics=("psnr",), done=lambda *_: None)


@given(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, 1e-6, 1.0, 1e3]), st.integers(0, 99))
def test_8_bits_err_by_half_a_step_at_most(offset: float, spread: float, seed: int) -> None:
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * spread + offset
    step = (z.amax(dim=(2, 3)) - z.amin(dim=(2, 3))) / 255
    error = (round_to_bits(z, 8) - z).abs().amax(dim=(2, 3))
    # float32 has 24 bits for an offset on top of the 8
    assert (error <= step * 0.5 + 3e-7 * z.abs().amax()).all()
    assert all(len(channel.unique()) <= 256 for channel in round_to_bits(z, 8).flatten(0, 1))
