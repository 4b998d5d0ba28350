"""Every form in which diffusers stores weights is read, and the rounded one is written as diffusers reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import load_model
from ldm_vae.interop.weights import INDEX, WEIGHTS, read_weights


def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        picture: torch.Tensor = vae.decode(latents).sample
    return picture


def test_weights_in_several_files_are_read(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / INDEX).is_file() and not (tmp_path / WEIGHTS).exists()
    expected = vae.state_dict()
    found = read_weights(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    lost = next(tmp_path.glob("*-00001-of-*.safetensors"))
    lost.unlink()
    with pytest.raises(UserError, match="which is not beside it"):
        load_model(tmp_path)


def test_a_file_outside_of_the_folder_is_not_read(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = json.loads((tmp_path / "model" / INDEX).read_text())
    home = sorted(set(index["weight_map"].values()))[0]
    shutil.move(tmp_path / "model" / home, tmp_path / home)
    index["weight_map"] = {name: f"../{home}" if file == home else file for name, file in index["weight_map"].items()}
    (tmp_path / "model" / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is not beside it"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("size", ["10GB", "20KB"])
def test_a_rounded_variant_is_read_alone_or_beside_the_others(vae: AutoencoderKL, tmp_path: Path, size: str) -> None:
    half = AutoencoderKL.from_config(vae.config)
    half.load_state_dict(vae.state_dict())
    half.half().save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    assert all(value.dtype == torch.float16 for value in read_weights(tmp_path).values())
    vae.save_pretrained(tmp_path / "whole")  # apart, for diffusers removes the parts of other variants
    shutil.copy(tmp_path / "whole" / WEIGHTS, tmp_path)
    assert all(value.dtype == torch.float32 for value in read_weights(tmp_path).values())
    assert all(value.dtype == torch.float16 for value in read_weights(tmp_path, "fp16").values())
    codec = LatentCodec.load(tmp_path, device="cpu", variant="fp16")
    state = codec.model.state_dict()
    assert all(torch.equal(state[name], value.half().float()) for name, value in vae.state_dict().items())
    with pytest.raises(UserError, match="no weights of the variant bf16"):
        LatentCodec.load(tmp_path, variant="bf16")
    with pytest.raises(UserError, match=r"variant '\.\./x'"):
        LatentCodec.load(tmp_path, variant="../x")


def test_an_export_of_the_variant_is_what_diffusers_loads(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    notes = export_model(loaded, tmp_path / "out", None, variant="fp16", command="")
    assert any("variant='fp16'" in note for note in notes)
    again: Any = AutoencoderKL
    theirs = again.from_pretrained(tmp_path / "out", variant="fp16", torch_dtype=torch.float16)
    stored = load_file(tmp_path / "out" / "diffusion_pytorch_model.fp16.safetensors")
    assert not (tmp_path / "out" / WEIGHTS).exists()
    for name, value in vae.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value.half()) and torch.equal(stored[name], value.half())
    latents = torch.randn(1, 4, 4, 4)
    ours = LatentCodec.load(tmp_path / "out", device="cpu")
    torch.testing.assert_close(
        ours.decode_raw(latents), decoded(theirs.float(), latents), rtol=0, atol=1e-5
    )  # the order of sums; values are about 1
    export_model(loaded, tmp_path / "out", None, command="")  # and the other way round, in the same place
    assert (tmp_path / "out" / WEIGHTS).exists()


def test_weights_beyond_float16_are_not_rounded_to_infinity(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        next(iter(loaded.model.parameters())).flatten()[0] = 1e5
    with pytest.raises(UserError, match="beyond float16"):
        export_model(loaded, tmp_path / "out", None, variant="fp16", command="")
    assert not (tmp_path / "out").exists()


def test_a_state_dict_within_a_pickle_is_read(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({"state_dict": vae.state_dict()}, tmp_path / "diffusion_pytorch_model.bin")
    assert read_weights(tmp_path).keys() == vae.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("sdxl_vae.safetensors", "from_single_file"), ("vae.ckpt", "from_single_file"), ("vae.txt", "give a run")],
)
def test_a_single_file_names_what_reads_it(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=remedy):
        LatentCodec.load(tmp_path / name)


def test_a_file_in_a_folder_of_a_model_names_the_folder(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=f"give its folder: {tmp_path / 'model'}"):
        LatentCodec.load(tmp_path / "model" / WEIGHTS)


def test_integers_as_weights_are_refused(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    state = {name: value.int() for name, value in vae.state_dict().items()}
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"as torch\.int32: weights are floating point"):
        load_model(tmp_path)


def test_the_scale_of_a_rounded_export_is_that_of_the_model(vae: AutoencoderKL, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "model")
    export_model(load_model(tmp_path / "model"), tmp_path / "out", None, variant="fp16", command="")
    assert load_model(tmp_path / "out").scale == LatentScale(0.5)
