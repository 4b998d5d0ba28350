"""Exports in the pipelines of diffusers, with tiny random denoisers: two steps to an image, and nothing is ignored."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import Target
from ldm_vae.errors import UserError
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel, ModelSource, weights_hash
from ldm_vae.interop.pipelines import PIPELINES
from ldm_vae.metrics.latent import Activation, LatentMoments, LatentStatistics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.piecewise import decode_pieces
from tests.interop.tiny_pipelines import BUILD
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical

CHANNELS: dict[Target, int] = {"sd": 4, "sdxl": 4, "sd3": 16, "flux": 16, "dit": 4}


def autoencoder(channels: int, image_channels: int = 3) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        in_channels=image_channels,
        out_channels=image_channels,
        block_out_channels=(8, 8),
        norm_groups=4,
        layers_per_block=1,
        latent_channels=channels,
    )
    return Autoencoder(config).eval().requires_grad_(False)


def statistics(model: Autoencoder, largest: float = 10.0) -> LatentStatistics:
    moments = LatentMoments(model.config.latent_channels)
    offsets = torch.arange(model.config.latent_channels).view(1, -1, 1, 1)
    moments.update(torch.randn(4, model.config.latent_channels, 8, 8) * 3 + offsets)
    activation = Activation(largest=largest, layer="encoder", images=1)
    rest: dict[str, Any] = {"latents": "mode", "protocol": {}, "data": "shards", "activation": activation}
    return LatentStatistics.of(moments, codec=weights_hash(model), **rest)


def export(folder: Path, model: Autoencoder, target: Target, **options: Any) -> list[str]:
    loaded = LoadedModel(model, None, ModelSource("test", "run"))
    measured = statistics(model, options.pop("largest", 10.0))
    return export_model(loaded, folder, measured, target=target, command="ldm-vae export", **options)


@pytest.mark.parametrize("target", PIPELINES)
def test_pipeline_decodes_exactly_as_the_codec_does(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents that reach the decoder inside the pipeline are those that our scale gives: nothing was ignored."""
    if target != "dit":
        pytest.importorskip("transformers", reason="the pipelines with text import transformers")
    notes = export(tmp_path / "out", autoencoder(CHANNELS[target]), target)
    assert notes == []
    vae = AutoencoderKL.from_pretrained(tmp_path / "out")
    torch.manual_seed(0)
    pipe, arguments = BUILD[target](vae)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == PIPELINES[target].name
    codec = LatentCodec.load(tmp_path / "out", device="cpu")
    assert codec.scale is not None
    raw: list[torch.Tensor] = []
    decode = vae.decode

    def watched(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raw.append(z)
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(vae, "decode", watched)
    seen: list[torch.Tensor] = []
    if target == "dit":  # which has no callback, and has the latents of the last step from its scheduler
        step = pipe.scheduler.step
        monkeypatch.setattr(pipe.scheduler, "step", lambda *args: _recorded(step(*args), seen))
    else:
        arguments |= {"height": 16, "width": 16, "callback_on_step_end": _keep(seen)}
    images = pipe(**arguments, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 16, 16, 3)
    assert len(raw) == 1
    if target == "flux":
        seen = [pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor) for latents in seen]
    # The same affine map, written in another order.
    assert_as_exact(raw[0], codec.scale.remove(seen[-1]), codec.scale.remove(seen[-1].double()))
    expected, exact = codec.decode_raw(raw[0]), double(codec.model).decode(raw[0].double())
    assert_as_exact(torch.from_numpy(images), shown(expected), shown(exact))


def shown(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) in [0, 1], as pipelines give it."""
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


@pytest.mark.parametrize("target", PIPELINES)
def test_drop_in_makes_the_same_picture_in_pieces(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target != "dit":
        pytest.importorskip("transformers", reason="the pipelines with text import transformers")
    export(tmp_path / "out", autoencoder(CHANNELS[target]), target)
    torch.manual_seed(0)
    pipe, arguments = BUILD[target](AutoencoderKL.from_pretrained(tmp_path / "out"))
    pipe.set_progress_bar_config(disable=True)
    if target != "dit":  # which makes pictures of one size
        arguments |= {"height": 32, "width": 24}
    arguments |= {"num_inference_steps": 2, "output_type": "np"}
    expected = pipe(**arguments, generator=torch.Generator().manual_seed(0)).images
    factor = getattr(pipe, "vae_scale_factor", None)

    monkeypatch.setattr("ldm_vae.piecewise.passes.WHOLE_ON_CPU", 0)
    monkeypatch.setattr("ldm_vae.piecewise.plan.STRIP_BYTES", 2**10)
    pipe.vae = LatentCodec.load(tmp_path / "out", device="cpu").as_diffusers()
    passes: list[tuple[torch.Tensor, Any]] = []  # latents, and the plan by which they were decoded

    def watched(model: Autoencoder, z: torch.Tensor, **options: Any) -> tuple[torch.Tensor, Any]:
        result, plan = decode_pieces(model, z, **options)
        passes.append((z, plan))
        return result, plan

    monkeypatch.setattr("ldm_vae.piecewise.passes.decode_pieces", watched)
    images = pipe(**arguments, generator=torch.Generator().manual_seed(0)).images
    ((z, plan),) = passes
    assert plan.strips > 1
    exact = shown(double(LatentCodec.load(tmp_path / "out", device="cpu").model).decode(z.double()))
    assert_as_exact(torch.from_numpy(images), torch.from_numpy(expected), exact)  # sums in another order
    torch.manual_seed(0)
    again, _ = BUILD[target](pipe.vae)  # built around it, a pipeline reads f of its configuration
    assert isinstance(again.vae, AutoencoderKL) and getattr(again, "vae_scale_factor", None) == factor
    again.save_pretrained(tmp_path / "pipeline")
    # Saved as the class that everyone has. Without its text encoders the pipeline as a whole cannot be loaded.
    assert json.loads((tmp_path / "pipeline" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    saved = AutoencoderKL.from_pretrained(tmp_path / "pipeline", subfolder="vae")
    assert saved.config.scaling_factor == pipe.vae.config.scaling_factor


def _keep(seen: list[torch.Tensor]) -> Any:
    def callback(pipe: Any, step: int, time: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(values["latents"])
        return values

    return callback


def _recorded(output: Any, seen: list[torch.Tensor]) -> Any:
    seen.append(output.prev_sample)
    return output


def test_statistics_per_channel_reach_sdxl(tmp_path: Path) -> None:
    export(tmp_path, autoencoder(4), "sdxl", kind="channel")
    scale = LatentCodec.load(tmp_path, device="cpu").scale
    assert scale is not None
    assert scale.mean is not None


def test_shift_is_a_number_where_the_pipeline_adds_it(tmp_path: Path) -> None:
    export(tmp_path / "sd3", autoencoder(16), "sd3", kind="factor")
    assert AutoencoderKL.from_pretrained(tmp_path / "sd3").config.shift_factor == 0.0


@pytest.mark.parametrize(
    ("target", "kind", "channels", "message"),
    [
        ("sd", "shift", 4, "StableDiffusionPipeline passes over the shift"),
        ("dit", "shift", 4, "DiTPipeline passes over the shift"),
        ("sdxl", "shift", 4, "StableDiffusionXLPipeline passes over the shift"),
        ("sdxl", "channel", 8, "only for 4 channels"),
        ("flux", "channel", 16, "FluxPipeline applies statistics per channel not at all"),
    ],
)
def test_what_a_pipeline_would_ignore_is_refused(
    target: Target, kind: str, channels: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export(tmp_path / "out", autoencoder(channels), target, kind=kind)
    assert not (tmp_path / "out").exists()


def test_pictures_of_other_channels_are_refused_and_unusual_latents_noted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 image channels"):
        export(tmp_path / "out", autoencoder(4, image_channels=5), "sd")
    assert export(tmp_path / "eight", autoencoder(8), "sd") == [
        "the published denoisers for StableDiffusionPipeline take 4 latent channels; yours must take 8"
    ]
    assert "bfloat16 or float32" in export(tmp_path / "hot", autoencoder(4), "sd", largest=1e5)[0]
    assert export(tmp_path / "upcast", autoencoder(4), "sdxl", largest=1e5) == []


def test_pipelines_that_get_it_wrong_are_named_with_the_way_round(tmp_path: Path) -> None:
    assert export(tmp_path / "all", autoencoder(16), "sd3") == []  # the scale that its siblings read, too
    assert LatentCodec.load(tmp_path / "all", device="cpu").scale.shift == 0.0  # type: ignore[union-attr]
    (note,) = export(tmp_path / "shift", autoencoder(16), "sd3", kind="shift")
    assert note.startswith("StableDiffusion3InpaintPipeline decodes without the shift") and "--scale factor" in note
    (note,) = export(tmp_path / "channel", autoencoder(4), "sdxl", kind="channel")
    assert note.startswith("StableDiffusionXLInpaintPipeline and") and "--scale factor" in note
    bare = Autoencoder(autoencoder(4).config.model_copy(update={"post_quant_conv": False})).eval()
    (note,) = export(tmp_path / "hot", bare, "sdxl", largest=1e5)
    assert "float16 without a post_quant_conv" in note
    assert export(tmp_path / "cool", bare, "sdxl") == []


def test_what_the_notes_say_of_diffusers_is_still_so() -> None:
    """A version that mends one of these needs its note no more."""
    pytest.importorskip("transformers", reason="the pipelines with text import transformers")
    from diffusers import (
        StableDiffusion3InpaintPipeline,
        StableDiffusionXLInpaintPipeline,
        StableDiffusionXLInstructPix2PixPipeline,
        StableDiffusionXLPipeline,
    )

    decoding = inspect.getsource(StableDiffusion3InpaintPipeline.__call__)
    assert (
        "self.vae.decode(latents / self.vae.config.scaling_factor" in decoding
        and "+ self.vae.config.shift" not in decoding
    )
    for wrong in (StableDiffusionXLInpaintPipeline._encode_vae_image, StableDiffusionXLInstructPix2PixPipeline):
        encoding = inspect.getsource(getattr(wrong, "prepare_image_latents", wrong))
        assert "scaling_factor" in inspect.getsource(wrong) and "latents_mean" not in encoding
    assert "self.vae.post_quant_conv.parameters()" in inspect.getsource(StableDiffusionXLPipeline.__call__)


def test_scale_of_a_diffusers_model_is_kept_for_a_target(tmp_path: Path) -> None:
    loaded = LoadedModel(autoencoder(16), LatentScale(0.4), ModelSource("test", "diffusers"))
    export_model(loaded, tmp_path / "out", None, target="flux", command="")
    assert LatentCodec.load(tmp_path / "out", device="cpu").scale == LatentScale(0.4, shift=0.0)
