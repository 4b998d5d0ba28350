"""Scores against torch.distributions, areas against counting pairs."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification  # noqa: F401  # seconds, for which no example of hypothesis has time
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from ldm_vae.diagnostics.anomaly import ROC_POINTS, Score, auc, inspect_anomaly, negative_elbo, roc, write_scores
from tests.diagnostics.values import heights, value

SCORES = [Score("a", 0.01, 50.0, 300), Score("b", 0.03, 80.0, 300), Score("c", 0.02, 20.0, 100)]
OTHERS = [Score("x", 0.5, 90.0, 300), Score("y", 0.02, 60.0, 300)]
values = st.lists(st.sampled_from([-3e8, -1.0, 0.0, 0.5, 0.5000001, 40.0, 41.0, 3e8]), min_size=1, max_size=12)


@given(values, values)
def test_area_is_the_share_of_pairs_in_order(usual: list[float], unusual: list[float]) -> None:
    """Large and nearly equal scores among them: torchmetrics alone would squash them through a float32 sigmoid."""
    pairs = [(b > a) + 0.5 * (b == a) for a in usual for b in unusual]
    assert auc(np.array(usual), np.array(unusual)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_the_curve_has_the_area_below_it() -> None:
    generator = np.random.default_rng(0)
    usual, unusual = generator.normal(size=2000), generator.normal(1.0, size=1500)
    false, true = roc(usual, unusual)
    assert len(false) <= ROC_POINTS
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(auc(usual, unusual), abs=2e-3)  # a hundred points of 3500
    assert auc(usual, unusual) == pytest.approx(0.5 * math.erfc(-0.5), abs=0.02)  # of two Gaussians: Phi(1 / sqrt 2)


def test_bound_is_that_of_torch_distributions() -> None:
    """An image of 300 values, all off by the same amount."""
    variance = 0.05
    likelihood = Normal(torch.zeros(300, dtype=torch.float64), math.sqrt(variance))
    expected = (50.0 - float(likelihood.log_prob(torch.full((300,), 0.1, dtype=torch.float64)).sum())) / 300
    assert negative_elbo([Score("a", 0.1**2, 50.0, 300)], variance)[0] == pytest.approx(expected)


def test_two_sets() -> None:
    section = inspect_anomaly(SCORES, OTHERS, "others")
    assert value(section, "auc_error") == pytest.approx((3 + 1 + 0 + 0.5) / 6)
    names = [chart.name for chart in section.charts]
    assert names == ["error_histogram", "elbo_histogram", "roc"]
    for line in section.charts[0].lines:
        assert sum(heights(line)) == pytest.approx(100)


def test_one_set_has_no_area_and_no_images_have_nothing() -> None:
    alone = inspect_anomaly(SCORES, None, None)
    assert value(alone, "negative_elbo") is not None
    missing = {number.name: number.missing for number in alone.numbers if number.value is None}
    assert missing == dict.fromkeys(("auc_error", "auc_elbo"), "give a second set with --against SHARDS")
    for scores in ([], [Score("a", 0.0, 1.0, 3)]):
        section = inspect_anomaly(scores, OTHERS, "others")
        assert all(number.value is None and number.missing for number in section.numbers)
        assert not section.charts
    broken = inspect_anomaly(SCORES, [], "others")
    assert "second set" in next(number.missing for number in broken.numbers if number.name == "auc_error")


def test_every_image_is_in_the_file_the_worst_first(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", [("one", SCORES), ("two", OTHERS)])
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["key"]) for row in rows] == [("one", k) for k in "bca"] + [("two", k) for k in "xy"]
    assert float(rows[0]["negative_elbo_nats_per_value"]) == pytest.approx(negative_elbo(SCORES, 0.02)[1])
