"""A drop-in inside of pipelines, and what is done to pipelines: the pictures are those with an AutoencoderKL."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import AutoencoderKL

from ldm_vae import LatentCodec
from tests.interop.passes import count_passes
from tests.interop.tiny_pipelines import BUILD
from tests.tolerance import roundings

pytest.importorskip("transformers", reason="the pipelines with text import transformers")
pytestmark = pytest.mark.numerical


def as_it_is(pipe: Any) -> Any:
    return pipe


def from_text_to_image(pipe: Any) -> Any:
    try:
        from diffusers import AutoPipelineForImage2Image
    except RuntimeError as error:  # diffusers 0.36 looks for what transformers 5 has no more
        pytest.skip(f"diffusers' automatic pipelines cannot be imported: {error}")
    return AutoPipelineForImage2Image.from_pipe(pipe)


def from_pipe(pipe: Any) -> Any:
    return type(pipe).from_pipe(pipe)


def tiled(pipe: Any) -> Any:
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()  # of 64 pixels and more, which these pictures do not have
    return pipe


def offloaded(pipe: Any) -> Any:
    """What enable_sequential_cpu_offload does to it on a machine with an accelerator."""
    accelerate.cpu_offload(pipe.vae, execution_device=torch.device("cpu"))
    return pipe


def model_offloaded(pipe: Any) -> Any:
    """What enable_model_cpu_offload does to it on a machine with an accelerator."""
    accelerate.cpu_offload_with_hook(pipe.vae, execution_device=torch.device("cpu"))
    return pipe


def fused(pipe: Any) -> Any:
    pipe.fuse_qkv_projections(unet=False)
    return pipe


def group_offloaded(pipe: Any) -> Any:
    pipe.vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    return pipe


# What is done, and which pass then decodes.
WAYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "as it is": (as_it_is, "codec"),
    "image to image": (from_text_to_image, "codec"),
    "from_pipe": (from_pipe, "codec"),
    "tiling, slicing": (tiled, "codec"),
    "offload of the model": (model_offloaded, "codec"),
    "offload layer by layer": (offloaded, "plain"),
    "offload of groups": (group_offloaded, "plain"),
    "fuse_qkv_projections": (fused, "plain"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["sd", "sdxl"])
def test_pictures_are_those_with_the_autoencoder(
    vae: AutoencoderKL, target: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, taken = WAYS[way]
    calls = count_passes(monkeypatch)
    pictures = []
    for model in (LatentCodec.load(copy.deepcopy(vae)).as_diffusers(), vae):
        torch.manual_seed(0)
        pipe, arguments = BUILD[target](model)
        pipe = change(pipe)
        pipe.set_progress_bar_config(disable=True)
        if way == "image to image":
            arguments |= {"image": torch.rand(1, 3, 32, 32), "strength": 1.0}
        else:
            arguments |= {"height": 32, "width": 32}
        arguments |= {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
        pictures.append(pipe(**arguments).images)
        if len(pictures) == 1:
            expected = {"decode": 1} | ({"encode": 1} if way == "image to image" else {})
            assert calls == (expected if taken == "codec" else {})
            calls.clear()
    ours, theirs = pictures
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    if taken == "plain":
        assert torch.equal(ours, theirs)
    else:
        # The denoiser's steps are the same; the decoder sums in another order, of some hundred terms in 20 layers.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=roundings(theirs, 1000))
