"""codec.as_diffusers(): as AutoencoderKL to everybody who asks, and as the codec in what it computes."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.codec import NonFiniteError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.nn.decoder import Decoder
from ldm_vae.nn.encoder import Encoder
from tests.interop.passes import count_passes
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical


def inputs(height: int = 16, width: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    return images, torch.randn(2, 4, height // 4, width // 4, generator=generator)


@torch.no_grad()
def check_equal(ours: AutoencoderKL, theirs: AutoencoderKL) -> None:
    """But for rounding: attention, and pieces, sum in another order in float32."""
    images, z = inputs()
    exact = double(theirs)
    first, second, third = (
        model.encode(given).latent_dist for model, given in ((ours, images), (theirs, images), (exact, images.double()))
    )
    assert_as_exact(first.parameters, second.parameters, third.parameters)
    sample, other = (dist.sample(torch.Generator().manual_seed(1)) for dist in (first, second))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    assert_as_exact(sample, other, third.mean + third.std * noise)
    assert_as_exact(ours.decode(z).sample, theirs.decode(z).sample, exact.decode(z.double()).sample)
    assert_as_exact(ours(images).sample, theirs(images).sample, exact(images.double()).sample)
    generator = torch.Generator().manual_seed(1)  # taken, and of no use
    assert torch.equal(ours.decode(z, return_dict=False, generator=generator)[0], ours.decode(z).sample)
    assert torch.equal(ours.encode(images, return_dict=False)[0].mean, first.mean)


def test_equals_the_autoencoder_and_shares_its_tensors(vae: AutoencoderKL) -> None:
    ours = LatentCodec.load(vae).as_diffusers()
    assert isinstance(ours, AutoencoderKL)
    check_equal(ours, vae)
    theirs = vae.state_dict()
    assert all(value.data_ptr() == theirs[name].data_ptr() for name, value in ours.state_dict().items())
    assert (ours.dtype, ours.device, ours.training) == (torch.float32, torch.device("cpu"), False)
    described = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "block_out_channels", "act_fn")
    assert {name: ours.config[name] for name in described} == {name: vae.config[name] for name in described}


def test_large_pictures_run_in_pieces_with_tiling_and_slicing_on(
    vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_vae.piecewise.passes.WHOLE_ON_CPU", 0)
    monkeypatch.setattr("ldm_vae.piecewise.plan.STRIP_BYTES", 2**10)
    ours = LatentCodec.load(vae).as_diffusers()
    ours.enable_tiling()
    ours.enable_slicing()
    ours.tile_sample_min_size = ours.tile_latent_min_size = 2  # tiles would cut even these pictures
    for network in (Encoder, Decoder):
        monkeypatch.setattr(network, "forward", lambda *_: pytest.fail("the network was run as a whole"))
    calls = count_passes(monkeypatch)
    check_equal(ours, vae)
    assert calls["encode"] and calls["decode"]


def test_bound_on_memory_is_kept_or_refused(vae: AutoencoderKL) -> None:
    images, z = inputs()
    check_equal(LatentCodec.load(vae).as_diffusers(max_memory=2**20), vae)
    with pytest.raises(UserError, match="takes at least"):
        LatentCodec.load(vae).as_diffusers(max_memory=1000).decode(z)
    with pytest.raises(UserError, match="takes at least"):
        LatentCodec.load(vae).as_diffusers(max_memory=1000).encode(images)


def test_another_type_is_that_of_weights_and_results(vae: AutoencoderKL) -> None:
    images, z = inputs()
    ours = LatentCodec.load(vae).as_diffusers()
    exact = ours.decode(z).sample
    assert ours.to(torch.bfloat16) is ours
    assert ours.dtype == torch.bfloat16
    half = ours.decode(z.bfloat16()).sample
    assert half.dtype == ours.encode(images).latent_dist.mean.dtype == torch.bfloat16
    assert 0 < (half - exact).abs().mean() < 0.1 * exact.std()  # 8 bits of mantissa
    fresh = LatentCodec.load(copy.deepcopy(vae).bfloat16()).as_diffusers()
    assert torch.equal(half, fresh.decode(z.bfloat16()).sample)
    assert not torch.equal(half, exact.bfloat16())  # it was computed in that type, not rounded to it
    assert vae.dtype == torch.float32  # the codec's own tensors stay as they were


def test_loaded_weights_and_copies_are_those_that_are_used(vae: AutoencoderKL) -> None:
    _, z = inputs()
    ours = LatentCodec.load(vae).as_diffusers()
    before = ours.decode(z).sample
    other = copy.deepcopy(ours)
    for factor in (1.5, 2.5):  # the second time after it has decoded
        weights = {
            name: value * factor if name.endswith("conv_out.weight") else value.clone()
            for name, value in vae.state_dict().items()
        }
        other.load_state_dict(weights, assign=True)
        plain = AutoencoderKL.from_config(vae.config)
        plain.load_state_dict(weights)
        check_equal(other, plain.eval())
    with torch.no_grad():
        other.decoder.conv_out.weight.zero_()
    assert (other.decode(z).sample == other.decoder.conv_out.bias[:, None, None]).all()
    assert torch.equal(ours.decode(z).sample, before)
    copied = copy.deepcopy(other)
    with torch.no_grad():
        copied.decoder.conv_out.bias.add_(1)
    assert torch.equal(copied.decode(z).sample, other.decode(z).sample + 1)


def test_overflow_of_a_half_type_gives_no_black_picture(vae: AutoencoderKL, caplog: pytest.LogCaptureFixture) -> None:
    _, z = inputs()
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5)  # beyond float16; the norm that follows makes it harmless
        expected = vae.decode(z).sample
        plain = copy.deepcopy(vae).half().decode(z.half()).sample
    assert plain.isnan().any()
    result = LatentCodec.load(vae).as_diffusers().half().decode(z.half()).sample
    assert result.dtype == torch.float16
    assert "computed again in float32" in caplog.text
    assert (result - expected).abs().mean() < 0.1 * expected.std()
    with pytest.raises(NonFiniteError):
        LatentCodec.load(vae).as_diffusers().decode(torch.full_like(z, float("nan")))


def test_gradients_are_those_of_the_autoencoder(vae: AutoencoderKL) -> None:
    _, z = inputs()
    found = []
    for model in (LatentCodec.load(vae).as_diffusers(), vae):
        leaf = z.clone().requires_grad_()
        model.decode(leaf).sample.square().sum().backward()
        found.append(leaf.grad)
    ours, theirs = found
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_what_is_saved_is_an_ordinary_autoencoder(vae: AutoencoderKL, tmp_path: Path) -> None:
    LatentCodec.load(vae).as_diffusers().save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert type(again) is AutoencoderKL
    check_equal(LatentCodec.load(tmp_path, device="cpu").as_diffusers(), again.eval())


@pytest.mark.parametrize(("force_upcast", "sample_size"), [(False, 512), (True, 1024)])
def test_what_pipelines_go_by_is_kept(vae: AutoencoderKL, force_upcast: bool, sample_size: int) -> None:
    vae.register_to_config(force_upcast=force_upcast, sample_size=sample_size)
    ours = LatentCodec.load(vae).as_diffusers()
    assert (ours.config["force_upcast"], ours.config["sample_size"]) == (force_upcast, sample_size)


def test_codec_without_a_scale_is_refused(vae: AutoencoderKL) -> None:
    codec = LatentCodec.load(vae)
    codec.scale = None
    with pytest.raises(UserError, match="no scale"):
        codec.as_diffusers()


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
def test_it_can_be_pickled(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1)
    codec = LatentCodec(Autoencoder(config).eval().requires_grad_(False), LatentScale(0.5))
    vae = codec.as_diffusers(max_memory=2**20)
    vae.decode(torch.zeros(1, 4, 4, 4))  # with a codec inside, which is not pickled along
    if way == "pickle":
        again = pickle.loads(pickle.dumps(vae))
    else:
        torch.save(vae, tmp_path / "vae.pt")
        again = torch.load(tmp_path / "vae.pt", weights_only=False)
    image = torch.rand(1, 3, 17, 24) * 2 - 1
    assert again.max_memory == 2**20 and again.config == vae.config
    assert torch.equal(again.encode(image).latent_dist.mode(), vae.encode(image).latent_dist.mode())
