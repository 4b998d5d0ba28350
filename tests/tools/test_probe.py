"""The probe end to end on tiny codecs: its reconstructions score as in evaluate; scale and decoding lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_vae.bottlenecks.deterministic import DeterministicConfig
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.evaluation.evaluate import evaluate_shards
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import picture, write_shards
from tests.tools.codecs import write_codec
from tools import learnability
from tools.command import run_command
from tools.denoiser import DenoiserConfig
from tools.learnability import AT_ONCE, picture_features, reconstruct, standardise
from tools.probe import probe, read_images

pytestmark = pytest.mark.numerical

SIZE, IMAGES = 32, 23  # pixels, and how many the shards hold
TINY = ["--size", str(SIZE), "--images", str(IMAGES), "--tokens", "4", "--width", "32", "--depth", "1"]
TINY += ["--steps", "3", "--batch", "4", "--seeds", "2", "--sampling-steps", "2"]


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("codecs")
    return [write_codec(folder / "a"), write_codec(folder / "b", seed=1, scaling_factor=7.0)]


@pytest.fixture(scope="module")
def network() -> PairNetwork:
    return PairNetwork("vgg", torch.device("cpu"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that the resize leaves alone: else `evaluate` would not round them before the network."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(IMAGES):
        picture(seed, (SIZE, SIZE)).save(folder / f"{seed:02d}.png")
    return folder


def run(*arguments: str | Path) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        run_command(probe, [str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_table_and_file(codecs: list[Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*codecs, images, *TINY, "--json", tmp_path / "probe.json") == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "probe.json").read_text())
    assert [row["name"] for row in found["codecs"]] == [str(path) for path in codecs]
    protocol = EvaluationProtocol(
        image=ImageConfig(resize=SIZE, crop=SIZE, crop_mode="center"), metrics=("psnr", "lpips_vgg", "frechet_vgg16")
    )
    for row, path in zip(found["codecs"], codecs, strict=True):
        codec = LatentCodec.load(path)
        assert row["weights"] == codec.weights_hash
        expected = evaluate_shards(codec, str(images), protocol).metrics
        for name, value in row["metrics"].items():
            # Decoded in batches of another size, a few values turn over a rounding step of 8 bits; a distance between
            # 23 points in 512 dimensions feels that.
            assert value == pytest.approx(expected[name], rel=1e-3 if name == "frechet_vgg16" else 1e-5), name
        assert [one["seed"] for one in row["samples"]] == [0, 1]
        assert row["samples"][0]["frechet_vgg16"] != row["samples"][1]["frechet_vgg16"]
        assert f"{row['samples'][1]['frechet_vgg16']:.1f}" in printed
    for value in found["protocol"].values():
        assert str(value) in printed

    assert run(codecs[1], images, *TINY, "--json", tmp_path / "again.json") == 0
    again = json.loads((tmp_path / "again.json").read_text())["codecs"][0]
    assert again == found["codecs"][1]  # by seed alone, whatever was probed before


def test_samples_that_are_the_data_score_as_the_reconstructions_do(
    codecs: list[Path], shards: Path, network: PairNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A perfect sampler, which draws the standardised means: scale and decoding then stand between them alone."""
    codec = LatentCodec.load(codecs[1])
    pictures = read_images(str(shards / "train"), SIZE, IMAGES)
    found = reconstruct(codec, pictures, network)
    means = standardise(codec, found.moments).apply(codec.draw(found.moments))
    monkeypatch.setattr(learnability, "sample_latents", lambda model, noise, labels, steps: means[: len(noise)])
    config = DenoiserConfig(width=32, depth=1, tokens=4, steps=1)
    result = learnability.learn(codec, found, network, config, sampling_steps=2, done=lambda loss: None)
    assert IMAGES < AT_ONCE  # one batch, so that the means came in order
    # Standardising and back turns a few values over a rounding step of 8 bits.
    assert result["frechet_vgg16"] == pytest.approx(found.frechet_vgg16, rel=1e-2)


def test_a_codec_without_a_posterior_learns_from_its_modes() -> None:
    config = AutoencoderConfig(
        block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, bottleneck=DeterministicConfig()
    )
    codec = LatentCodec(Autoencoder(config).eval().requires_grad_(False))
    moments = torch.randn(2, 4, 8, 8)
    assert torch.equal(learnability.draw_latents(codec, moments, torch.Generator().manual_seed(0)), moments)
    scaled = standardise(codec, moments).apply(moments)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3), correction=0), torch.ones(4))


def test_latents_are_standardised_in_each_channel(codecs: list[Path]) -> None:
    """By the variance of the draws, which is the means' and the posteriors' together; 2 x 24 x 24 x 50 draws."""
    codec = LatentCodec.load(codecs[0])
    spread = torch.tensor([3.0, 0.1, 1.0]).view(1, 3, 1, 1)
    means = torch.randn(50, 3, 24, 24, generator=torch.Generator().manual_seed(1)) * spread + 5  # samples have seed 0
    moments = torch.cat([means, spread.square().log().expand_as(means)], dim=1)
    scale = standardise(codec, moments)
    assert scale.std == pytest.approx((2**0.5 * spread).flatten().tolist(), rel=0.02)
    assert scale.mean == pytest.approx([5, 5, 5], abs=0.1)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_pictures_are_looked_at_in_order_and_once(count: int, network: PairNetwork) -> None:
    pictures = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    one_by_one = torch.cat([network(picture[None], picture[None]).features[:, 0] for picture in pictures])
    torch.testing.assert_close(
        picture_features(network, [pictures]), one_by_one, rtol=1e-4, atol=1e-4
    )  # other batch sizes


def test_a_training_that_diverged_has_no_distance(
    codecs: list[Path], shards: Path, network: PairNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = LatentCodec.load(codecs[0])
    found = reconstruct(codec, read_images(str(shards / "train"), SIZE, 4), network)
    monkeypatch.setattr(learnability, "sample_latents", lambda model, noise, labels, steps: noise * float("nan"))
    config = DenoiserConfig(width=32, depth=1, tokens=4, steps=1)
    result: dict[str, Any] = learnability.learn(codec, found, network, config, sampling_steps=2, done=lambda loss: None)
    assert result["frechet_vgg16"] is None
    assert "not finite" in result["missing"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "24"], "holds 23 images, not 24: give more shards, or a lower --images"),
        (["--size", "33"], "--size 33 is not divisible by 2"),
        (["--size", "36"], "side 18 are not divisible into 4 patches"),
        (["--width", "40"], "options: width: input should be a multiple of 32"),
    ],
)
def test_bad_input_is_told_in_a_line(
    options: list[str],
    message: str,
    codecs: list[Path],
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(codecs[0], shards / "train", *TINY, *options, "--json", tmp_path / "probe.json") == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1
    assert not (tmp_path / "probe.json").exists()


def test_codecs_of_other_images_are_refused(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = write_codec(tmp_path / "grey", in_channels=1, out_channels=1)
    assert run(grey, shards / "train", *TINY) == 2
    assert "is for images of 1 channels" in capsys.readouterr().err


def test_broken_images_are_counted(tmp_path: Path, codecs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards(tmp_path / "shards", [3])
    tar = bytearray((folder / "000000.tar").read_bytes())
    place = tar.index(b"\x89PNG")
    tar[place + 60 : place + 90] = bytes(30)
    (folder / "000000.tar").write_bytes(tar)
    assert run(codecs[0], folder, *TINY, "--images", "3") == 2
    assert "holds 2 images and 1 broken ones, not 3" in capsys.readouterr().err
