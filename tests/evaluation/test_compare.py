"""Paired intervals against Student's t and by how often they hold the truth; what makes a pair."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ldm_vae.errors import UserError
from ldm_vae.evaluation import compare as module
from ldm_vae.evaluation.compare import compare, differences_to_json
from ldm_vae.metrics.image import MeasuredImage


def rows(values: dict[str, list[float]] | list[float], *, first: int = 0) -> list[MeasuredImage]:
    by_name = values if isinstance(values, dict) else {"psnr": values}
    count = len(next(iter(by_name.values())))
    return [
        MeasuredImage(f"{i + first:04d}", (3, 8, 9), 0, {name: v[i] for name, v in by_name.items()})
        for i in range(count)
    ]


def test_interval_is_that_of_the_differences() -> None:
    """Normal differences: 1.96 standard errors to each side, by Student's t; resampling makes 5 % of that noise.
    Images differ a hundred times as much as the codecs do, which pairing takes out."""
    generator = np.random.default_rng(0)
    images, gains = generator.normal(25, 5, 400), generator.normal(0.05, 0.3, 400)
    (found,) = compare(rows(list(images + gains)), rows(list(images))).values()
    low, high = scipy.stats.t.interval(0.95, 399, gains.mean(), gains.std(ddof=1) / 20)
    assert found.difference == pytest.approx(gains.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert found.images == 400


def test_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % of 300 sets of 60 images, give or take three standard deviations of such a count (3.8 %)."""
    monkeypatch.setattr(module, "RESAMPLES", 400)
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        (found,) = compare(rows(list(generator.normal(0.4, 1, 60))), rows([0.0] * 60)).values()
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.4 <= found.high
    assert 0.95 - 0.038 <= inside / 300 <= 0.95 + 0.038


def test_verdicts_know_which_way_is_better() -> None:
    better = {"psnr": [30.0, 31, 32, 33] * 5, "lpips_vgg": [0.1, 0.2, 0.1, 0.2] * 5, "ssim": [0.5, 0.7, 0.5, 0.7] * 5}
    worse = {"psnr": [29.0, 29, 31, 31] * 5, "lpips_vgg": [0.3, 0.5, 0.3, 0.5] * 5, "ssim": [0.6, 0.6, 0.6, 0.6] * 5}
    found = compare(rows(better), rows(worse))
    assert {name: difference.verdict(name) for name, difference in found.items()} == {
        "psnr": "gain",
        "ssim": "noise",
        "lpips_vgg": "gain",
    }
    assert compare(rows(worse), rows(better))["psnr"].verdict("psnr") == "loss"
    assert compare(rows(better)[:19], rows(worse)[:19])["psnr"].verdict("psnr") == "too few images"
    assert differences_to_json(found)["psnr"].keys() == {"difference", "low", "high", "images", "verdict"}
    assert differences_to_json(found)["ssim"]["verdict"] == "noise"


def test_one_image_has_no_interval_and_equal_codecs_none_of_any_width() -> None:
    (found,) = compare(rows([1.5]), rows([1.0])).values()
    assert (found.difference, found.low, found.high, found.images) == (0.5, None, None, 1)
    assert found.verdict("psnr") == "too few images"
    (found,) = compare(rows([1.0, 2.0] * 10), rows([1.0, 2.0] * 10)).values()
    assert (found.low, found.high, found.verdict("psnr")) == (0, 0, "noise")


def test_only_images_that_both_measured() -> None:
    first, other = rows([1.0, 2.0, 3.0]), rows([0.0, 0.0, 0.0])
    del other[1].values["psnr"]
    assert compare(first, other)["psnr"].images == 2
    for row in first:
        row.values.clear()
    assert compare(first, other) == {}


def test_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="different images"):
        compare(rows([1.0, 2.0]), rows([1.0, 2.0], first=1))
    with pytest.raises(UserError, match="different images"):
        compare(rows([1.0, 2.0]), rows([1.0]))
