"""Is the reconstruction any good? The codec beside averaging, PCA and published codecs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from rich.console import Console
from sklearn import decomposition
from torch import Tensor

from ldm_vae.cli.inspection_table import print_section
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.stream.batch import Batch
from ldm_vae.diagnostics import comparison, inspect
from ldm_vae.diagnostics.comparison import AVERAGING, CODEC, PCA, Comparison, CrossFittedPCA
from ldm_vae.diagnostics.findings import Section
from ldm_vae.diagnostics.inspect import InspectionJob, inspect_codec
from ldm_vae.diagnostics.reconstruction import inspect_reconstruction
from ldm_vae.metrics.image import ImageMetrics
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.metrics.pixels import ImagePairs
from tests.diagnostics.conftest import FACTOR, averaging, pictures
from tests.diagnostics.values import measured, value

COUNT = 24  # enough images for an interval


def batch(images: Tensor) -> Batch:
    return Batch(images, None, [f"{i:02d}" for i in range(len(images))], torch.arange(len(images)))


def compared(codec: LatentCodec, images: Tensor, reconstructions: Tensor, *, at_once: int = 5) -> Comparison:
    pca = CrossFittedPCA(codec)
    pca.add(batch(images))
    found = Comparison(codec, pca, len(images), seed=0)
    for start in range(0, len(images), at_once):
        part = slice(start, start + at_once)
        keys = batch(images).key[part]
        found.add(keys, tuple(images.shape[1:]), *found.compared(keys, images[part], reconstructions[part]))
    return found


def section_of(codec: LatentCodec, images: Tensor, reconstructions: Tensor) -> Section:
    return inspect_reconstruction(codec, compared(codec, images, reconstructions))


def noisy(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


def psnr_by_hand(a: Tensor, b: Tensor) -> float:
    """Mean over images, of 8-bit values."""
    ours, theirs = (to_uint8(x).numpy().astype(np.float64) for x in (a, b))
    return float((10 * np.log10(255**2 / ((ours - theirs) ** 2).mean(axis=(1, 2, 3)))).mean())


def test_pca_is_that_of_the_other_half_by_scikit_learn(codec: LatentCodec) -> None:
    """8-bit rounding of values that differ by float32's own error moves a pixel in a thousand by a level: 1e-3 dB."""
    images = pictures(6, side=30)  # no multiple of f

    def patches(x: Tensor) -> np.ndarray:
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 2), (0, 2)), mode="edge").astype(np.float64)
        return rearrange(padded, "b c (h p) (w q) -> (b h w) (c p q)", p=FACTOR, q=FACTOR)

    expected = torch.empty_like(images)
    for half in (0, 1):
        theirs = decomposition.PCA(n_components=3, svd_solver="full").fit(patches(images[1 - half :: 2]))
        decoded = theirs.inverse_transform(theirs.transform(patches(images[half::2])))
        whole = rearrange(decoded, "(b h w) (c p q) -> b c (h p) (w q)", h=8, w=8, p=FACTOR, q=FACTOR)
        expected[half::2] = torch.from_numpy(whole[:, :, :30, :30]).float()
    section = section_of(codec, images, noisy(images, 0.01))
    assert measured(section, "psnr_pca") == pytest.approx(psnr_by_hand(expected, images), abs=1e-3)


def test_psnr_is_that_of_all_images_in_any_batches(codec: LatentCodec) -> None:
    images = pictures(7)
    found = [compared(codec, images, noisy(images, 0.1), at_once=n) for n in (7, 3)]
    sections = [inspect_reconstruction(codec, one) for one in found]
    assert sections[0] == sections[1]
    assert measured(sections[0], "psnr") == pytest.approx(psnr_by_hand(noisy(images, 0.1), images), abs=1e-9)
    flat = codec.decode_raw(codec.draw(codec.moments(images)))  # this codec averages
    assert measured(sections[0], "psnr_averaging") == pytest.approx(psnr_by_hand(flat, images), abs=1e-3)


def test_ssim_and_lpips_are_those_of_the_sampled_middles(codec: LatentCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SAMPLED_SIDE", 40)
    images = pictures(9)
    reconstructions = noisy(images, 0.1)
    found = compared(codec, images, reconstructions)
    done: list[tuple[int, int]] = []
    found.measure_sample(lambda *step: done.append(step))
    assert found.sampled == 4 and done == [(0, 4), *[(1, 4)] * 4]
    sampled = [i for i, row in enumerate(found.rows[CODEC]) if "ssim" in row.values]
    assert len(sampled) == 4
    middle = (slice(None), slice(None), slice(12, 52), slice(12, 52))
    usual = ImageMetrics(("ssim", "lpips_vgg"))
    pairs = ImagePairs(reconstructions[sampled][middle], images[sampled][middle])
    for row, place in zip(usual(pairs, [""] * 4), sampled, strict=True):
        for name, expected in row.values.items():  # other batches sum in another order
            assert found.rows[CODEC][place].values[name] == pytest.approx(expected, rel=1e-4)
    assert all(set(found.rows[name][sampled[0]].values) == {"psnr", "ssim", "lpips_vgg"} for name in found.rows)


def test_lpips_looks_once_at_an_image_that_is_expanded() -> None:
    network = PairNetwork("vgg", torch.device("cpu"))
    seen: list[int] = []
    network.lpips.features[0].register_forward_hook(lambda layer, inputs, output: seen.append(len(inputs[0])))
    generator = torch.Generator().manual_seed(0)
    first, second, image = (torch.randint(0, 256, (1, 3, 32, 32), generator=generator).byte() for _ in range(3))
    both = network(torch.cat([first, second]), image.expand(2, -1, -1, -1))
    assert seen == [1, 2]
    for i, one in enumerate((first, second)):
        alone = network(one, image)
        torch.testing.assert_close(both.distance[i], alone.distance[0])
        torch.testing.assert_close(both.features[i], alone.features[0])


@pytest.mark.parametrize(
    ("deviation", "level", "words"),
    [
        (0.6, "bad", "worse than averaging 4 x 4 pixels"),
        (0.002, "good", "better than PCA of equal rate"),
    ],
)
def test_verdict(codec: LatentCodec, deviation: float, level: str, words: str) -> None:
    images = pictures(COUNT)
    verdict = section_of(codec, images, noisy(images, deviation)).verdicts[0]
    assert verdict.level == level and words in verdict.statement
    assert bool(verdict.advice) == (level != "good")


def test_verdict_between_averaging_and_pca() -> None:
    """With more numbers than colours, PCA is far better than averages; half of its error plus half of theirs is not."""
    codec = averaging(gains=[1.0, 1.0, 1.0])
    codec.model.config = codec.model.config.model_copy(update={"latent_channels": 9})
    images = pictures(COUNT)
    flat = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, FACTOR), scale_factor=FACTOR)
    verdict = section_of(codec, images, 0.7 * flat + 0.3 * images).verdicts[0]
    assert verdict.level == "warning"
    assert "worse than PCA" in verdict.statement and "better than averaging 4 x 4 pixels" in verdict.statement


def test_no_better_than_averaging_is_bad(codec: LatentCodec) -> None:
    images = pictures(COUNT)
    flat = codec.decode_raw(codec.draw(codec.moments(images)))
    verdict = section_of(codec, images, flat).verdicts[0]
    assert verdict.level == "bad" and "no better than averaging" in verdict.statement


def test_exact_reconstructions_and_none(codec: LatentCodec) -> None:
    images = pictures(4)
    exact = section_of(codec, images, images)
    assert (exact.verdicts[0].level, value(exact, "psnr")) == ("good", None)
    nothing = inspect_reconstruction(codec, Comparison(codec, CrossFittedPCA(codec), 0, seed=0))
    assert nothing.verdicts[0].level == "bad" and value(nothing, "psnr") is None
    assert all(number.missing for number in nothing.numbers)


def test_one_image_has_no_pca(codec: LatentCodec) -> None:
    images = pictures(1)
    section = section_of(codec, images, noisy(images, 0.01))
    assert value(section, "psnr_pca") is None and value(section, "psnr_averaging") is not None
    assert "two images" in next(n.missing for n in section.numbers if n.name == "psnr_pca")
    assert section.verdicts[0].level == "unknown"


@pytest.mark.parametrize(("images", "deviation"), [(1, 0.6), (1, 0.002), (2, 0.002)])
def test_one_image_is_no_verdict(codec: LatentCodec, images: int, deviation: float) -> None:
    """Of two, the first is reconstructed exactly here and has no PSNR, so that one is left to compare."""
    originals = pictures(images)
    reconstructions = noisy(originals, deviation)
    reconstructions[: images - 1] = originals[: images - 1]
    verdict = section_of(codec, originals, reconstructions).verdicts[0]
    assert verdict.level == "unknown" and "One image does not tell" in verdict.statement


@pytest.mark.parametrize("channels", [1, 4])
def test_other_colours(channels: int) -> None:
    codec = averaging(channels)
    images = pictures(6, channels=channels)
    found = compared(codec, images, noisy(images, 0.01))
    found.measure_sample(lambda *_: None)
    section = inspect_reconstruction(codec, found)
    assert [table.name for table in section.tables] == ["beside"]  # published numbers are of RGB
    assert section.tables[0].rows[1][1] == str(channels)
    assert (value(section, "lpips_vgg") is None) == (channels == 4)


def test_published_codecs_of_the_rate_with_their_pages(codec: LatentCodec) -> None:
    images = pictures(COUNT)
    section = section_of(codec, images, noisy(images, 0.002))
    table = next(table for table in section.tables if table.name == "published")
    assert {row[1] for row in table.rows} == {"f4c3", "f8c12"}
    for row in table.rows:
        number = int(row[0].rpartition("[")[2].rstrip("]"))
        assert table.notes[number - 1].startswith(f"[{number}] github.com/")
    assert "published codecs of such a rate" in section.verdicts[0].statement


def test_it_fits_80_columns(codec: LatentCodec) -> None:
    images = pictures(4)
    console = Console(width=80, record=True, markup=False)
    print_section(console, section_of(codec, images, noisy(images, 0.1)))
    text = console.export_text()
    assert "LDM kl-f4 [1]" in text and "ImageNet, 256" in text and "averages of 4 x 4 pixels" in text
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_no_image_is_coded_twice_for_it(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec encodes and decodes each image once for the survey; what is compared comes from there."""
    counts: list[dict[str, int]] = []

    def count(codec: LatentCodec) -> LatentCodec:
        seen = {"moments": 0, "decode_raw": 0}
        counts.append(seen)
        for name in seen:
            plain = getattr(codec, name)

            def counted(
                images: Tensor, *more: object, name: str = name, plain: object = plain, **given: object
            ) -> object:
                seen[name] += len(images)
                return plain(images, *more, **given)  # type: ignore[operator]

            monkeypatch.setattr(codec, name, counted)
        return codec

    job = InspectionJob(str(shards / "train"), ImageConfig())
    first = inspect_codec(count(averaging()), job, tmp_path / "with", model={})
    monkeypatch.setattr(comparison.Comparison, "compared", lambda *_: ({}, {}))
    monkeypatch.setattr(comparison.Comparison, "add", lambda *_: None)
    monkeypatch.setattr(inspect, "_fit_pca", lambda codec, *_: CrossFittedPCA(codec))
    inspect_codec(count(averaging()), job, tmp_path / "without", model={})
    assert counts[0] == counts[1] and counts[0]["decode_raw"] > 0
    assert first.sections[0].name == "reconstruction"
    assert {AVERAGING, PCA} <= {number.name.rpartition("_")[2] for number in first.sections[0].numbers}
