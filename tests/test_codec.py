"""LatentCodec against diffusers.AutoencoderKL, on sizes, types and inputs of every kind."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.codec import NonFiniteError, from_numpy, from_pil, to_numpy, to_pil
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.padding import pad_to_multiple
from tests.kl import autoencoder_in
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical

CONFIG = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False), LatentScale(0.25))


def exactly(codec: LatentCodec) -> LatentCodec:
    """The same codec in float64."""
    return LatentCodec(double(codec.model), codec.scale)


def pictures(height: int, width: int, batch: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


def test_equals_diffusers_in_its_conventions() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=4,
        scaling_factor=0.3,
        shift_factor=0.2,
    ).eval()
    codec = LatentCodec.load(vae)
    images = pictures(16, 24)
    exact = double(vae)
    with torch.no_grad():
        dist, exact_dist = vae.encode(images).latent_dist, exact.encode(images.double()).latent_dist
        # As StableDiffusion3Img2ImgPipeline has it.
        expected, exact_latents = (dist.mode() - 0.2) * 0.3, (exact_dist.mode() - 0.2) * 0.3
        decoded, exact_decoded = (
            model.decode(z / 0.3 + 0.2).sample for model, z in ((vae, expected), (exact, expected.double()))
        )
    # The same weights in the same operations; attention alone sums in another order.
    assert_as_exact(codec.encode(images), expected, exact_latents)
    assert_as_exact(codec.decode(expected), decoded, exact_decoded)
    assert_as_exact(codec.moments(images), dist.parameters, exact_dist.parameters)


@pytest.mark.parametrize(
    "scale",
    [LatentScale(0.5), LatentScale(0.5, shift=0.3), LatentScale(0.5, mean=(1.0, 2, 3, 4), std=(0.5, 1, 2, 3))],
)
def test_decode_undoes_the_scale_of_encode(codec: LatentCodec, scale: LatentScale) -> None:
    codec.scale = scale
    images = pictures(16, 16)
    assert not torch.equal(codec.encode(images), codec.moments(images).chunk(2, dim=1)[0])
    # The scale and its inverse round in float32.
    assert_as_exact(codec.decode(codec.encode(images)), codec.reconstruct(images), exactly(codec).reconstruct(images))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (8, 8), (13, 4), (17, 30)])
def test_any_size_comes_back_at_its_size(codec: LatentCodec, size: tuple[int, int]) -> None:
    images = pictures(*size)
    latents = codec.encode(images)
    assert latents.shape[2:] == tuple(-(-side // 4) for side in size)
    assert codec.decode(latents, size=size).shape == images.shape
    assert codec.reconstruct(images).shape == images.shape
    padded = pad_to_multiple(images, 4)
    assert torch.equal(padded[:, :, : size[0], : size[1]], images)
    assert torch.equal(codec.moments(padded), codec.moments(images))


def test_sample_follows_the_posterior_and_its_generator(codec: LatentCodec) -> None:
    images = pictures(16, 16)
    mean, logvar = codec.moments(images).chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    sample = codec.encode(images, sample=True, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample, (mean + (0.5 * logvar).exp() * noise) * 0.25)
    assert torch.equal(codec.encode(images), mean * 0.25)


def test_autocast_changes_nothing(codec: LatentCodec) -> None:
    images = pictures(16, 16)
    expected = codec.reconstruct(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16  # autocast is on
        assert torch.equal(codec.reconstruct(images), expected)


def test_bfloat16_codec_is_near_and_gives_float32(codec: LatentCodec) -> None:
    images = pictures(32, 32)
    expected = codec.reconstruct(images)
    digest = codec.weights_hash
    half = LatentCodec(codec.model.bfloat16(), codec.scale, weights_hash=digest)
    result = half.reconstruct(images)
    assert half.dtype == torch.bfloat16
    assert result.dtype == torch.float32
    # 8 bits of mantissa (2e-3 a rounding) through about 20 layers that normalise; measured 0.05
    assert (result - expected).square().mean().sqrt() < 0.1 * expected.std()


def test_load_in_bfloat16_keeps_the_hash_of_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=[32], norm_num_groups=4)
    vae.save_pretrained(tmp_path)
    half = LatentCodec.load(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.weights_hash == LatentCodec.load(vae).weights_hash
    assert LatentCodec.load(tmp_path, device="cpu").dtype == torch.float32


def test_overflow_of_a_half_type_is_computed_again_in_float32(
    codec: LatentCodec, caplog: pytest.LogCaptureFixture
) -> None:
    """float16 stands for bfloat16 here: it overflows at 65504, and takes the same path."""
    with torch.no_grad():
        autoencoder_in(codec.model).encoder.conv_in.weight.mul_(3e5)
    half = LatentCodec(codec.model.half(), codec.scale)
    expected = LatentCodec(Autoencoder(CONFIG).eval(), codec.scale)
    expected.model.load_state_dict(half.model.state_dict())  # the rounded weights, in float32
    images = pictures(16, 16)
    images[0] *= 1e-5
    with caplog.at_level(logging.WARNING):
        result = half.moments(images)
    assert "1 of 2 posteriors are not finite in float16" in caplog.text
    # One image in a batch of one and of two: sums in another order.
    assert_as_exact(result[1], expected.moments(images)[1], exactly(expected).moments(images)[1])


def test_what_stays_non_finite_is_never_passed_on(codec: LatentCodec) -> None:
    with torch.no_grad():
        autoencoder_in(codec.model).encoder.conv_in.weight.fill_(1e38)
    images = pictures(8, 8)
    images[0] = 0
    moments, broken = codec.checked_moments(images)
    assert broken == [1]
    assert moments[0].isfinite().all()
    with pytest.raises(NonFiniteError, match="posterior of sample 1 "):
        codec.moments(images)
    latents = torch.zeros(2, 4, 2, 2)
    latents[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="image of sample 0 "):
        codec.decode(latents)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(1, 4, 8, 8), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 3, 0, 8), "at least one pixel"),
        (torch.zeros(0, 3, 8, 8), "at least one image"),
        (torch.full((1, 3, 8, 8), float("nan")), "picture of sample 0"),
    ],
)
def test_bad_images_are_refused(codec: LatentCodec, images: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        codec.moments(images)


def test_bad_latents_and_sizes_are_refused(codec: LatentCodec) -> None:
    with pytest.raises(UserError, match=r"\(B, 4, h, w\)"):
        codec.decode(torch.zeros(1, 3, 2, 2))
    for size in ((9, 8), (8, 0)):
        with pytest.raises(UserError, match="8 x 8 at most"):
            codec.decode(torch.zeros(1, 4, 2, 2), size=size)


def test_values_out_of_range_and_a_missing_scale_are_told_once(
    codec: LatentCodec, caplog: pytest.LogCaptureFixture
) -> None:
    codec.scale = None
    images = pictures(8, 8)
    for _ in range(2):
        assert torch.equal(codec.encode(images * 3), codec.moments(images * 3).chunk(2, dim=1)[0])
    assert caplog.text.count("trained on [-1, 1]") == 1
    assert caplog.text.count("not scaled") == 1
    caplog.clear()
    codec.reconstruct(images)
    assert not caplog.text


def test_each_kind_of_wrong_range_is_told_once_with_its_remedy(
    codec: LatentCodec, caplog: pytest.LogCaptureFixture
) -> None:
    images = pictures(8, 8)
    for _ in range(2):
        codec.encode((images + 1) * 127.5)  # 0 to 255
        codec.encode(images * 2.6)  # as ImageNet's mean and deviation make them
        codec.encode((images + 1) / 2)  # 0 to 1
        codec.encode(images)
        codec.encode(torch.ones(1, 3, 8, 8))  # all white, which is no mistake
    assert [record.getMessage().rsplit(": ", 1)[1] for record in caplog.records] == [
        "give `x / 127.5 - 1` of 8 bits",
        "give clamped ones, or another normalisation",
        "if yours are in [0, 1], give `2 * x - 1`",
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_no_latents(codec: LatentCodec, dtype: torch.dtype) -> None:
    latents = torch.ones(1, 4, 2, 2, dtype=dtype)
    for decode in (codec.decode, codec.decode_raw):
        with pytest.raises(UserError, match=r"latents of shape .*, (int64|uint8|bool): this codec decodes floats"):
            decode(latents)


def test_no_gradient_is_kept(codec: LatentCodec) -> None:
    codec.model.requires_grad_(True)
    assert not codec.reconstruct(pictures(8, 8).requires_grad_()).requires_grad


@pytest.mark.parametrize("options", [{"channels_last": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)])
def test_options_of_speed_change_neither_results_nor_names(tmp_path: Path, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=[32], norm_num_groups=4, scaling_factor=0.5).save_pretrained(tmp_path)
    plain = LatentCodec.load(tmp_path, device="cpu")
    channels_last, compiled = "channels_last" in options, "compile" in options
    fast = LatentCodec.load(tmp_path, device="cpu", channels_last=channels_last, compile=compiled)
    if compiled:
        assert autoencoder_in(fast.model).encoder._compiled_call_impl is not None
    else:
        assert autoencoder_in(fast.model).encoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())
    assert fast.weights_hash == plain.weights_hash
    images, exact = pictures(16, 24), exactly(plain)
    # Sums in another order.
    assert_as_exact(fast.encode(images), plain.encode(images), exact.encode(images))
    assert_as_exact(fast.reconstruct(images), plain.reconstruct(images), exact.reconstruct(images))


def test_numpy_and_pil_come_back_bit_by_bit() -> None:
    array = np.arange(2 * 5 * 7 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 5, 7, 3)
    tensor = from_numpy(array)
    assert tensor.shape == (2, 3, 5, 7)
    assert np.array_equal(to_numpy(tensor), array)
    assert torch.equal(from_pil([Image.fromarray(picture) for picture in array]), tensor)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in to_pil(tensor)]), array)
    grey = from_pil(Image.fromarray(array[0, :, :, 0]), channels=1)
    assert to_pil(grey)[0].mode == "L"
    with pytest.raises(UserError, match="2 sizes"):
        from_pil([Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2))])
    with pytest.raises(UserError, match="uint8"):
        from_numpy(np.zeros((4, 4, 3)))  # float64, on purpose


def test_codec_needs_no_package_of_training_or_measuring(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=[32], norm_num_groups=4).save_pretrained(tmp_path)
    program = """
import sys
for name in (
    "lpips", "accelerate", "torchmetrics", "torch_fidelity", "scipy", "webdataset", "matplotlib", "jinja2",
    "tensorboard", "transformers", "diffusers", "train", "tools",
):
    sys.modules[name] = None  # importing it raises
import ldm_vae
assert "torch" not in sys.modules, "the package itself must be light"
from ldm_vae import LatentCodec, UserError, __version__
import numpy, torch
codec = LatentCodec.load(sys.argv[1], device="cpu")
latent = codec.encode(torch.linspace(-1, 1, 75).view(1, 3, 5, 5))
numpy.save(sys.argv[2], codec.decode(latent).numpy())
"""
    result = tmp_path / "result.npy"
    done = subprocess.run([sys.executable, "-c", program, tmp_path, result], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codec = LatentCodec.load(tmp_path, device="cpu")
    expected = codec.decode(codec.encode(torch.linspace(-1, 1, 75).view(1, 3, 5, 5)))
    assert np.array_equal(np.load(result), expected.numpy())


def test_a_bound_on_memory_decodes_in_pieces_to_the_same_picture(codec: LatentCodec) -> None:
    latent = torch.randn(1, codec.latent_channels, 48, 40, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latent, size=(90, 79))
    passes: list[int] = []
    autoencoder_in(codec.model).decoder.register_forward_hook(lambda *_: passes.append(1))
    pieces = codec.decode(latent, size=(90, 79), max_memory=3 * 2**19)
    assert passes == []  # the network was never run as a whole
    assert_as_exact(pieces, whole, exactly(codec).decode(latent, size=(90, 79)))  # the order of summation alone
    with pytest.raises(UserError, match="takes at least"):
        codec.decode(latent, max_memory=1000)


def test_a_bound_on_memory_holds_for_encoding_too(codec: LatentCodec) -> None:
    image = pictures(181, 158, batch=1)
    whole = codec.encode(image)
    passes: list[int] = []
    autoencoder_in(codec.model).encoder.register_forward_hook(lambda *_: passes.append(1))
    pieces = codec.encode(image, max_memory=3 * 2**19)
    assert passes == []
    assert_as_exact(pieces, whole, exactly(codec).encode(image))
    with pytest.raises(UserError, match="takes at least"):
        codec.encode(image, max_memory=1000)


@pytest.mark.parametrize("options", [{"channels_last": True}, pytest.param({"compile": True}, marks=pytest.mark.slow)])
def test_options_of_speed_leave_pieces_exact(
    tmp_path: Path, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=[32], norm_num_groups=4, scaling_factor=0.5).save_pretrained(tmp_path)
    plain = LatentCodec.load(tmp_path, device="cpu")
    expected, exact = (codec.reconstruct(pictures(40, 56)) for codec in (plain, exactly(plain)))
    monkeypatch.setattr("ldm_vae.piecewise.passes.WHOLE_ON_CPU", 0)
    monkeypatch.setattr("ldm_vae.piecewise.plan.STRIP_BYTES", 2**12)
    channels_last, compiled = "channels_last" in options, "compile" in options
    fast = LatentCodec.load(tmp_path, device="cpu", channels_last=channels_last, compile=compiled)
    passes: list[int] = []
    autoencoder_in(fast.model).decoder.register_forward_hook(lambda *_: passes.append(1))
    result = fast.reconstruct(pictures(40, 56))
    assert passes == []
    assert_as_exact(result, expected, exact)


def test_large_pictures_pass_in_pieces_by_themselves(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures(96, 80)
    moments, exact, passes = codec.moments(image), exactly(codec).moments(image), []
    monkeypatch.setattr("ldm_vae.piecewise.passes.WHOLE_ON_CPU", 0)
    monkeypatch.setattr("ldm_vae.piecewise.plan.STRIP_BYTES", 2**14)  # cut what would be small enough
    autoencoder_in(codec.model).encoder.register_forward_hook(lambda *_: passes.append(1))
    assert_as_exact(codec.moments(image), moments, exact)
    assert passes == []


class Labelled(Autoencoder):
    codec = False


def test_a_network_that_is_no_codec_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="is a network of kind kl: it needs labels or one size of image"):
        LatentCodec(Labelled(CONFIG))
