"""What a person who knows torch and diffusers tries with a codec: its repr, `.to()`, `from_pretrained`, `roundtrip`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub.file_download import repo_folder_name

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.load import ModelSource
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.tolerance import assert_as_exact, double

CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)


@pytest.fixture
def codec() -> LatentCodec:
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False), LatentScale(0.25))


@pytest.fixture
def folder(codec: LatentCodec, tmp_path: Path) -> Path:
    codec.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("scale", "source", "said"),
    [
        (None, None, "no scale, loaded from a network in memory"),
        (LatentScale(0.3611, 0.1159), ModelSource("runs/demo", "run", Path("x"), 1640, "ema"),
         "scale (z - 0.1159) * 0.3611, loaded from runs/demo (run, step 1,640, EMA weights)"),
        (LatentScale(2.0, -0.5), ModelSource("a/b", "diffusers"), "scale (z + 0.5) * 2, loaded from a/b (the Hub)"),
        (LatentScale(0.5, None, (0, 1, 2, 3.5), (1, 1, 2, 4)), ModelSource("out", "native", Path("out")),
         "scale (z - [0, 1, 2, 3.5]) * 0.5 / [1, 1, 2, 4], loaded from out (native)"),
    ],
)  # fmt: skip
def test_repr_says_shape_type_scale_and_source_in_two_lines(
    codec: LatentCodec, scale: LatentScale | None, source: ModelSource | None, said: str
) -> None:
    first, second = repr(LatentCodec(codec.model, scale, source)).splitlines()
    assert first == "LatentCodec: f4, 4 channels, network kl, bottleneck gaussian, float32 on cpu"
    assert second == f"  {said}"


def test_formula_and_inverse_are_what_the_scale_does() -> None:
    z = torch.tensor(1.5, dtype=torch.float64)
    for scale in (LatentScale(0.25), LatentScale(0.5, 0.125), LatentScale(0.5, -0.125)):
        assert eval(scale.formula(), {"z": z}) == scale.apply(z[None, None, None]).item()
        assert eval(scale.inverse(), {"latent": z}) == scale.remove(z[None, None, None]).item()
    scale = LatentScale(0.5, None, (1.0,), (4.0,))
    assert eval(scale.formula().replace("[", "(").replace("]", ")"), {"z": z}) == scale.apply(z[None, None]).item()
    assert (
        eval(scale.inverse().replace("[", "(").replace("]", ")"), {"latent": z}) == scale.remove(z[None, None]).item()
    )
    assert scale.inverse() == "latent * [4] / 0.5 + [1]"


@pytest.mark.parametrize(
    ("given", "named"),
    [(("bfloat16",), {}), ((torch.bfloat16,), {}), (("cpu", "torch.bfloat16"), {}), (("cpu",), {"dtype": "bfloat16"}),
     ((), {"device": "cpu", "dtype": torch.bfloat16}), ((torch.device("cpu"), torch.bfloat16), {})],
)  # fmt: skip
def test_to_casts_in_place_and_keeps_the_hash(
    codec: LatentCodec, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    digest = LatentCodec(codec.model).weights_hash
    assert codec.to(*given, **named) is codec
    assert codec.dtype == torch.bfloat16 and codec.device == torch.device("cpu")
    assert codec.weights_hash == digest != LatentCodec(codec.model).weights_hash
    assert codec.encode(torch.zeros(1, 3, 8, 8)).dtype == torch.float32


def test_to_moves_no_autoencoder_that_shares_its_tensors() -> None:
    vae: Any = AutoencoderKL(block_out_channels=[32], norm_num_groups=4)
    LatentCodec.load(vae).to("float16")
    assert vae.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [(("gpu",), "give cpu, cuda or cuda:0"), (("int8",), "give one of float32"), (("cpu", "cpu"), "the devices"),
     (("float16", torch.float32), "the types")],
)  # fmt: skip
def test_to_refuses_what_is_neither(codec: LatentCodec, given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        codec.to(*given)


def test_from_pretrained_takes_what_diffusers_takes_or_says_what_to_do(folder: Path) -> None:
    codec = LatentCodec.from_pretrained(folder, torch_dtype="bfloat16", device="cpu")
    assert codec.dtype == torch.bfloat16
    assert LatentCodec.from_pretrained(folder.parent, subfolder="m", device="cpu").weights_hash == codec.weights_hash
    for options, said in {
        "cache_dir": "HF_HOME", "device_map": "device=", "token": "HF_TOKEN", "use_safetensors": "leave it out",
        "local_files_only": "HF_HUB_OFFLINE", "colour": "give any of device, dtype, variant",
        "force_download": repo_folder_name(repo_id="OWNER/NAME", repo_type="model"),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=said):
            LatentCodec.from_pretrained(folder, **{options: "x"})
    with pytest.raises(UserError, match="dtype and torch_dtype"):
        LatentCodec.from_pretrained(folder, torch_dtype="float16", dtype="float16")
    with pytest.raises(UserError, match="only a model on the Hub"):
        LatentCodec.load(folder, revision="main")
    with pytest.raises(UserError, match="m/other not found"):
        LatentCodec.load(folder, subfolder="other")


def test_roundtrip_is_reconstruct_and_what_encode_and_decode_give(codec: LatentCodec) -> None:
    images = torch.rand(1, 3, 30, 21) * 2 - 1
    assert torch.equal(codec.roundtrip(images), codec.reconstruct(images))
    whole = codec.decode(codec.encode(images), size=(30, 21))
    exact = LatentCodec(double(codec.model), codec.scale).roundtrip(images.double())
    assert_as_exact(codec.roundtrip(images), whole, exact)  # a division by the scale


def test_roundtrip_keeps_a_bound_on_memory(codec: LatentCodec) -> None:
    images = torch.rand(1, 3, 181, 158) * 2 - 1
    bounded = codec.roundtrip(images, max_memory=3 * 2**20)
    exact = LatentCodec(double(codec.model), codec.scale).roundtrip(images.double())
    assert_as_exact(bounded, codec.roundtrip(images), exact)
    with pytest.raises(UserError, match="takes at least"):
        codec.roundtrip(images, max_memory=1000)


def test_save_pretrained_is_read_by_load_and_by_diffusers(codec: LatentCodec, folder: Path) -> None:
    assert LatentCodec.load(folder, device="cpu").weights_hash == codec.weights_hash
    vae: Any = AutoencoderKL.from_pretrained(folder)
    assert vae.config.scaling_factor == 0.25
    codec.save_pretrained(folder)  # again
    with pytest.raises(UserError, match="load the codec in float32"):
        codec.to("float16").save_pretrained(folder)


def test_a_bound_counts_what_the_codec_itself_copies(codec: LatentCodec) -> None:
    """An image whose sides are padded takes a copy, and so does one of another type."""
    image = torch.rand(1, 3, 128, 128) * 2 - 1

    def least(codec: LatentCodec, image: torch.Tensor) -> int:
        with pytest.raises(UserError) as refused:
            codec.encode(image, max_memory=1)
        return int(refused.value.remedy.split()[-1].replace(",", ""))

    alone = least(codec, image)
    assert least(codec, image[:, :, :127]) == alone + image.nbytes
    assert least(codec, image.double()) == alone + image.nbytes
