"""Evaluation: every image once, at its own size, the same on any number of processes, and nothing silent."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
import torch
from torch import Tensor

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import USUAL_SET_METRICS, MetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.stream.batch import Batch
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import evaluate_batches, evaluate_shards, measure_batches
from ldm_vae.evaluation.results import BROKEN, EvaluationProtocol, Results, summarize
from ldm_vae.metrics import sets
from ldm_vae.metrics.image import ImageMetrics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.pretrained import inception

pytestmark = pytest.mark.numerical

TESTS = Path(__file__).parent
IMAGE_METRICS: tuple[MetricName, ...] = ("psnr", "ssim")
PSNR_SSIM = EvaluationProtocol(metrics=IMAGE_METRICS)
SIZES = {"wide": (40, 61), "tall": (77, 48), "square": (64, 64), "other": (64, 64)}


class Quantizer:
    """A codec that keeps every fourth 8-bit level; `spoiled` images come back as NaN."""

    device = torch.device("cpu")

    def __init__(self, spoiled: int | None = None) -> None:
        self.spoiled = spoiled

    def encode(self, images: Tensor) -> Tensor:
        return (images * 32.0).round()

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        assert latents.shape[2:] == size
        images = latents / 32.0
        if self.spoiled is not None and size == SIZES["square"]:
            images[self.spoiled, 0, 3, 3] = torch.nan
        return images


def photograph(height: int, width: int, left: int) -> Tensor:
    """(3, height, width) in [-1, 1]."""
    pixels = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)
    return pixels[:, 60 : 60 + height, left : left + width] / 127.5 - 1.0


def batches() -> Iterator[Batch]:
    """Four images of three sizes, the two squares together."""
    images = {name: photograph(*size, left=150 + 10 * i) for i, (name, size) in enumerate(SIZES.items())}
    for names in (["wide"], ["square", "other"], ["tall"]):
        yield Batch(torch.stack([images[name] for name in names]), None, names, torch.zeros(len(names)))


def test_means_are_over_images_and_pooling_over_values() -> None:
    results = evaluate_batches(Quantizer(), batches(), PSNR_SSIM)
    errors, sizes = [], []
    for batch in batches():
        height, width = batch.image.shape[2:]
        reconstruction = Quantizer().decode(Quantizer().encode(batch.image), size=(height, width))
        for ours, theirs in zip(to_uint8(reconstruction), to_uint8(batch.image), strict=True):
            errors.append((ours.double() - theirs.double()).square().sum().item())
            sizes.append(theirs.numel())
    psnrs = [10 * math.log10(255**2 * n / error) for error, n in zip(errors, sizes, strict=True)]
    assert results.metrics["psnr"] == pytest.approx(sum(psnrs) / 4, abs=1e-9)
    pooled = 10 * math.log10(255**2 * sum(sizes) / sum(errors))
    assert results.metrics["psnr_pooled"] == pytest.approx(pooled, abs=1e-9)
    assert pooled != pytest.approx(sum(psnrs) / 4, abs=1e-3)  # else the two could be mixed up unseen
    assert [row.key for row in results.per_image] == sorted(SIZES)
    assert results.protocol["images"] == 4


def test_any_division_into_processes_and_batches_gives_the_same_numbers() -> None:
    """Bitwise: each row is measured by itself, and means are exact sums (fsum) in no matter which order."""
    metrics = ImageMetrics(IMAGE_METRICS)
    whole = evaluate_batches(Quantizer(), batches(), PSNR_SSIM)
    alone = [
        Batch(batch.image[i : i + 1], None, [key], batch.slot[:1])
        for batch in batches()
        for i, key in enumerate(batch.key)
    ]
    parts = [measure_batches(Quantizer(), part, metrics) for part in (alone[2:], alone[:2], [])]
    merged = summarize([row for part in parts for row in part], PSNR_SSIM, metrics)
    assert merged == whole


def test_nan_in_a_reconstruction_is_named() -> None:
    results = evaluate_batches(Quantizer(spoiled=1), batches(), PSNR_SSIM)
    reason = f"{BROKEN} (1 of 4 images, the first other)"
    assert results.metrics == {"psnr": None, "psnr_pooled": None, "ssim": None}
    assert set(results.missing.values()) == {reason}
    assert {row.key for row in results.per_image if row.values} == {"wide", "square", "tall"}


def test_overflow_inside_the_codec_is_named() -> None:
    """LatentCodec raises for the batch; the other images of the batch are measured all the same."""
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4))
    codec = LatentCodec(model.eval(), LatentScale())

    def overflow(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output[inputs[0].mean(dim=(1, 2, 3)) > 0.99] = torch.inf  # the white image

    model.encoder.conv_in.register_forward_hook(overflow)
    white = torch.cat([photograph(32, 32, 200)[None], torch.ones(1, 3, 32, 32), photograph(32, 32, 260)[None]])
    results = evaluate_batches(codec, [Batch(white, None, ["a", "white", "b"], torch.zeros(3))], PSNR_SSIM)
    assert results.missing["psnr"] == f"{BROKEN} (1 of 3 images, the first white)"
    assert [row.key for row in results.per_image if row.values] == ["a", "b"]


def test_one_image_too_small_makes_the_mean_missing() -> None:
    results = evaluate_batches(Quantizer(), batches(), EvaluationProtocol(metrics=("psnr", "ms_ssim")))
    assert results.metrics["ms_ssim"] is None
    assert "161 pixels" in results.missing["ms_ssim"]
    assert "4 of 4 images" in results.missing["ms_ssim"]
    assert results.metrics["psnr"] is not None
    assert json.loads(json.dumps(results.to_json(), allow_nan=False))["metrics"]["ms_ssim"] is None


def test_no_image_is_an_error() -> None:
    with pytest.raises(UserError, match="no image to evaluate"):
        evaluate_batches(Quantizer(), [], PSNR_SSIM)


def test_broken_images_are_left_out_and_counted(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards / "validation", folder)
    shard = folder / "000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b"IDAT", b"XDAT", 1))
    with caplog.at_level(logging.WARNING):
        results = evaluate_shards(Quantizer(), str(folder), PSNR_SSIM)
    assert (results.protocol["left_out"], results.protocol["images"]) == (1, 4)
    assert "left out 1 of 5 images, the first 00100" in caplog.text
    with pytest.raises(UserError, match="smaller than the crop"):
        evaluate_shards(Quantizer(), str(shards / "validation"), EvaluationProtocol(image=ImageConfig(crop=100)))


def test_resize_and_crop(shards: Path) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(Quantizer):
        def encode(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return super().encode(images)

    evaluate_shards(Watched(), str(shards / "validation"), PSNR_SSIM)
    protocol = EvaluationProtocol(metrics=("psnr",), image=ImageConfig(resize=36, crop=32))
    results = evaluate_shards(Watched(), str(shards / "validation"), protocol)
    assert seen == [(5, 3, 40, 48), (5, 3, 32, 32)]
    assert results.protocol["resize"] == "short side 36, bicubic, antialias"
    assert results.protocol["crop"] == "center 32"


ALL_SETS = EvaluationProtocol(metrics=("psnr", *USUAL_SET_METRICS))


class Colours(torch.nn.Module):
    """In Inception's place: mean colour and contrast of an image, spread over 2048 features."""

    def forward(self, images: Tensor) -> tuple[Tensor]:
        pixels = images.double().flatten(2) / 255.0
        values = torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)
        return (values.float().repeat(1, 342)[:, :2048],)


def test_sets_are_the_same_in_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG sums in another order in batches: 1e-4."""
    monkeypatch.setattr(sets, "inception", lambda file: Colours())
    whole = evaluate_batches(Quantizer(), batches(), ALL_SETS)
    alone = [
        Batch(batch.image[i : i + 1], None, [key], batch.slot[:1])
        for batch in batches()
        for i, key in enumerate(batch.key)
    ]
    parts = evaluate_batches(Quantizer(), alone[::-1], ALL_SETS)
    assert whole.metrics["rfid"] is not None and whole.metrics["rfid"] > 0
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-4)
    assert set(whole.notes) == set(USUAL_SET_METRICS)
    assert whole.protocol["metric_weights"]["rfid"] == inception.WEIGHTS_SHA256


def test_an_image_without_reconstruction_leaves_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "inception", lambda file: Colours())
    results = evaluate_batches(Quantizer(spoiled=1), batches(), ALL_SETS)
    assert set(results.missing.values()) == {f"{BROKEN} (1 of 4 images, the first other)"}
    assert set(results.missing) == {"psnr", "psnr_pooled", *USUAL_SET_METRICS}


def test_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "inception", lambda file: Colours())
    results = evaluate_batches(Quantizer(), list(batches())[:1], ALL_SETS)
    assert results.metrics["psnr"] is not None
    assert results.missing == dict.fromkeys(USUAL_SET_METRICS, "needs at least 2 images, not 1")


def test_a_sample_depends_on_seed_and_key_alone() -> None:
    """Not on the batch: to float32's summation order, 1e-3 dB. Another key, another noise."""
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4)).eval()
    codec = LatentCodec(model, LatentScale())
    mode, sample, other = (
        EvaluationProtocol(metrics=("psnr",), latent="mode", seed=0),
        EvaluationProtocol(metrics=("psnr",), latent="sample", seed=0),
        EvaluationProtocol(metrics=("psnr",), latent="sample", seed=1),
    )
    squares = list(batches())[1]
    together = evaluate_batches(codec, [squares], sample)
    alone = evaluate_batches(
        codec, [Batch(squares.image[i : i + 1], None, [squares.key[i]], squares.slot[:1]) for i in (1, 0)], sample
    )
    for ours, theirs in zip(together.per_image, alone.per_image, strict=True):
        assert ours.values == pytest.approx(theirs.values, abs=1e-3)
    assert "seed 0" in together.protocol["latent"]
    for protocol in (mode, other):
        assert evaluate_batches(codec, [squares], protocol).metrics["psnr"] != pytest.approx(
            together.metrics["psnr"], abs=1e-2
        )
    same = Batch(squares.image[:1].repeat(2, 1, 1, 1), None, ["a", "b"], squares.slot)
    first, second = evaluate_batches(codec, [same], sample).per_image
    assert first.values["psnr"] != pytest.approx(second.values["psnr"], abs=1e-4)
    with pytest.raises(UserError, match="no posterior"):
        evaluate_batches(Quantizer(), [squares], sample)


PROGRAM = """
import json, sys
from pathlib import Path
from ldm_vae.evaluation.evaluate import evaluate_shards
from ldm_vae.metrics import sets
from ldm_vae.ranks import rank_and_world
from test_evaluate import ALL_SETS, Colours, Quantizer
sets.inception = lambda file: Colours()
rank, world = rank_and_world()
results = evaluate_shards(Quantizer(), sys.argv[1], ALL_SETS)
keys = [row.key for row in results.per_image]
Path(sys.argv[2], f"{rank}_of_{world}.json").write_text(json.dumps({"keys": keys, **results.to_json()}))
"""


@pytest.mark.slow
def test_two_processes_equal_one(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """23 images in 3 uneven shards, shared out by torchrun: each process ends with what one alone measures. Bit for
    bit, but for VGG, which sums in another order in other batches: 1e-4."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent.parent)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, str(program), str(shards / "train"), str(tmp_path)], check=True, env=environment)
    monkeypatch.setattr(sets, "inception", lambda file: Colours())
    alone = evaluate_shards(Quantizer(), str(shards / "train"), ALL_SETS)
    keys = [row.key for row in alone.per_image]
    assert len(set(keys)) == 23
    assert set(alone.metrics) == {"psnr", "psnr_pooled", *USUAL_SET_METRICS} and not alone.missing
    for rank in range(2):
        expected = {"keys": keys, **alone.to_json()}
        found = json.loads((tmp_path / f"{rank}_of_2.json").read_text())
        for content in (expected, found):
            content["metrics"] = dict(content["metrics"])
        vgg = found["metrics"].pop("frechet_vgg16")
        assert vgg == pytest.approx(expected["metrics"].pop("frechet_vgg16"), rel=1e-4)
        assert found == expected


def test_results_are_ordered_by_key() -> None:
    results: Results = evaluate_batches(Quantizer(), reversed(list(batches())), PSNR_SSIM)
    assert [row.key for row in results.per_image] == sorted(SIZES)
