"""The table of published numbers: complete, and chosen by rate."""

from __future__ import annotations

import pytest

from ldm_vae.evaluation.published import PUBLISHED, PublishedResult, published_near


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: f"{one.codec}, {one.images}")
def test_each_number_has_its_data_and_source(one: PublishedResult) -> None:
    assert one.images and one.side and one.page.address.partition("/")[0].count(".") >= 1 and one.page.protocol
    assert one.psnr is not None or one.rfid is not None
    for value, low, high in ((one.psnr, 15, 45), (one.ssim, 0, 1), (one.lpips, 0, 1), (one.rfid, 0, 10)):
        assert value is None or low < value < high


def test_no_number_stands_twice() -> None:
    assert len({(one.codec, one.images, one.side, one.page) for one in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("factor", "channels", "expected"),
    [
        (4, 3, {"LDM kl-f4", "VAE of LiteVAE", "LiteVAE-B"}),  # 3 / 16 = 12 / 64
        (8, 16, {"FLUX.1"}),
        (16, 64, {"FLUX.1"}),
        (16, 32, {"VA-VAE"}),
        (64, 128, {"DC-AE f64c128"}),
        (8, 1, {"DC-AE f64c128"}),  # 1 / 64 is half of 1 / 32
        (8, 32, {"FLUX.1"}),  # twice its rate
        (4, 16, set()),
        (16, 2, set()),
    ],
)
def test_chosen_by_rate(factor: int, channels: int, expected: set[str]) -> None:
    assert {one.codec for one in published_near(factor, channels)} == expected


def test_those_of_the_same_f_come_first() -> None:
    factors = [one.factor for one in published_near(8, 4)]
    assert {8, 16, 32} == set(factors)
    assert factors == sorted(factors, key=lambda factor: factor != 8)


def test_codecs_of_ldm_were_measured_on_imagenet() -> None:
    """Table 8 of arXiv:2112.10752, of which the caption says: trained on OpenImages, evaluated on ImageNet-Val."""
    table = {4: (0.27, 27.53), 8: (0.90, 24.19), 16: (0.87, 24.08), 32: (2.04, 22.27)}  # f -> R-FID, PSNR
    found = {one.factor: (one.rfid, one.psnr) for one in PUBLISHED if one.codec.startswith("LDM kl-")}
    assert found == table
    assert {one.images for one in PUBLISHED if one.codec.startswith("LDM kl-")} == {"ImageNet"}
