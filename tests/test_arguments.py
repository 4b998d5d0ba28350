"""What is no tensor, type or device is refused in a line that names the helper; what is unambiguous is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_vae import LatentCodec, UserError, from_numpy, from_pil, from_uint8
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel, ModelSource
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import picture

CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)


@pytest.fixture
def codec() -> LatentCodec:
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False), LatentScale(0.25))


@pytest.fixture
def folder(codec: LatentCodec, tmp_path: Path) -> Path:
    export_model(LoadedModel(codec.model, codec.scale, ModelSource("x", "diffusers")), tmp_path / "m", None, command="")
    return tmp_path / "m"


IMAGES = {
    "picture": (picture(0), "Image", "from_pil"),
    "pictures": ([picture(0), picture(1)], "list of Image", "from_pil"),
    "bytes": (np.zeros((1, 16, 16, 3), np.uint8), "ndarray", "from_numpy"),
    "arrays": ([np.zeros((16, 16, 3), np.uint8)], "list of ndarray", "from_numpy"),
    "tensors": ([torch.zeros(3, 16, 16)], "list of Tensor", "torch.stack"),
    "numbers": ([[0.0]], "list of list", "give a tensor of floats (B, 3, H, W)"),
    "empty": ([], "list", "give a tensor of floats"),
    "nothing": (None, "NoneType", "give a tensor of floats"),
    "number": (3, "int", "give a tensor of floats"),
    "text": ("a.png", "str", "give a tensor of floats"),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("method", ["encode", "reconstruct", "moments", "checked_moments"])
def test_what_is_no_tensor_names_the_helper(codec: LatentCodec, method: str, name: str) -> None:
    given, kind, remedy = IMAGES[name]
    with pytest.raises(UserError) as refused:
        getattr(codec, method)(given)
    assert kind in refused.value.what and remedy in refused.value.remedy


def test_the_helpers_that_are_named_give_what_is_wanted(codec: LatentCodec) -> None:
    pictures = [picture(0), picture(1)]
    arrays = np.stack([np.asarray(one) for one in pictures])
    assert torch.equal(from_pil(pictures), from_numpy(arrays))
    assert codec.encode(from_pil(pictures)).shape == (2, 4, 10, 12)


def test_bytes_in_a_tensor_name_the_helper(codec: LatentCodec) -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"ldm_vae\.from_uint8 makes it of 8 bits"):
        codec.encode(images)
    assert codec.encode(from_uint8(images)).shape == (1, 4, 4, 4)


@pytest.mark.parametrize("given", [np.zeros((1, 4, 2, 2), np.float32), [torch.zeros(4, 2, 2)], None, 3, "z"])
@pytest.mark.parametrize("method", ["decode", "decode_raw"])
def test_latents_that_are_no_tensor(codec: LatentCodec, method: str, given: Any) -> None:
    with pytest.raises(UserError, match=r"latents that are .*torch\.from_numpy"):
        getattr(codec, method)(given)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bfloat16", torch.bfloat16), ("torch.float16", torch.float16), ("float32", torch.float32), (None, torch.float32)],
)
def test_a_type_goes_by_its_name(folder: Path, dtype: str | None, expected: torch.dtype) -> None:
    assert LatentCodec.load(folder, device="cpu", dtype=dtype).dtype == expected


@pytest.mark.parametrize(
    "dtype", ["half precision", "int8", "nn", "", torch.int32, 16, np.float32, np.dtype("float32")]
)
def test_what_is_no_type_is_refused(folder: Path, dtype: Any) -> None:
    with pytest.raises(UserError, match="give one of float32, bfloat16, float16, float64"):
        LatentCodec.load(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "", ["cpu"], 1.5])
def test_what_is_no_device_is_refused(folder: Path, device: Any) -> None:
    with pytest.raises(UserError, match="give cpu, cuda or cuda:0"):
        LatentCodec.load(folder, device=device)


@pytest.mark.parametrize("ref", [None, 3, b"x", ["a"], Image.new("RGB", (4, 4))])
def test_what_is_no_model_is_refused(ref: Any) -> None:
    with pytest.raises(UserError, match="cannot load a model from a"):
        LatentCodec.load(ref)
