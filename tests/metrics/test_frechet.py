"""Distances of sets of features against torch-fidelity, torchmetrics, scipy and closed forms."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ldm_vae.metrics import frechet
from ldm_vae.metrics.frechet import frechet_distance, kernel_distance

pytestmark = pytest.mark.numerical

Array = np.ndarray[Any, np.dtype[Any]]


def test_subsets_and_seed_are_torch_fidelitys() -> None:
    """They are written here, too, because they go into every protocol, and the package takes seconds to import."""
    theirs = (DEFAULTS["kid_subset_size"], DEFAULTS["kid_subsets"], DEFAULTS["rng_seed"])
    assert theirs == (frechet.SUBSET, frechet.SUBSETS, frechet.SEED)


class Given(torch.nn.Identity):
    """A feature extractor for torchmetrics whose images are the features already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features


def feature_sets(n: int, d: int) -> tuple[Array, Array]:
    """Two sets like a network's: not negative, correlated, close to each other; strided views of a mapped file."""
    generator = np.random.default_rng(n * d)
    mix = generator.normal(size=(d, d)) / np.sqrt(d)
    first = np.maximum(generator.normal(size=(n, d)) @ mix + 0.3, 0)
    second = np.maximum(first + 0.2 * generator.normal(size=(n, d)) @ mix.T, 0)
    with tempfile.TemporaryFile() as place:
        file = np.memmap(place, dtype=np.float32, mode="w+", shape=(n, 2, d))
    file[:, 0], file[:, 1] = first, second
    return file[:, 0], file[:, 1]


def with_moments(mean: Array, covariance: Array, n: int = 64) -> Array:
    """(n, d) points whose mean and unbiased covariance are these."""
    points = np.random.default_rng(len(mean)).normal(size=(n, len(mean)))
    points -= points.mean(axis=0)
    white = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return (white @ np.linalg.cholesky(covariance).T + mean).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(700, 48), (40, 48), (20, 48)], ids=["many", "singular", "fewer than half"])
def test_frechet_agrees_with_torch_fidelity_and_torchmetrics(n: int, d: int) -> None:
    """1e-3 is promised. torch-fidelity averages in float32, torchmetrics sums squares: 1e-4 is found at most."""
    ours, theirs = feature_sets(n, d)
    found = frechet_distance(ours, theirs)
    statistics = [fid_features_to_statistics(torch.from_numpy(np.array(x)).double()) for x in (ours, theirs)]
    fidelity = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    metric = FrechetInceptionDistance(feature=Given(d))
    for real, features in ((True, ours), (False, theirs)):
        metric.update(torch.from_numpy(np.array(features)).double(), real=real)
    assert found == pytest.approx(fidelity, rel=1e-4)
    assert found == pytest.approx(metric.compute().item(), rel=1e-4)
    assert found > 0.01


def test_frechet_equals_the_matrix_root() -> None:
    """scipy.linalg.sqrtm of the product, 1e-8: both in float64."""
    ours, theirs = (np.array(x, dtype=np.float64) for x in feature_sets(500, 24))
    first, second = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    assert np.abs(root.imag).max() < 1e-9
    shift = ours.mean(axis=0) - theirs.mean(axis=0)
    expected = shift @ shift + np.trace(first + second - 2 * root.real)
    assert frechet_distance(ours, theirs) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_two_gaussians_in_closed_form() -> None:
    """Covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2. The points are kept in float32: 1e-5."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    s1, s2 = np.array([0.1, 0.5, 1, 2, 3, 0.7]), np.array([0.4, 0.5, 1.5, 0.2, 3.5, 0.1])
    m1, m2 = np.zeros(6), np.array([0.5, 0, -1, 0.25, 0, 0])
    ours, theirs = (with_moments(m, turn @ np.diag(s**2) @ turn.T) for m, s in ((m1, s1), (m2, s2)))
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(ours, theirs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [2, 3, 100])
def test_fewer_images_than_features(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in the dimensions that the points span. Against the root's trace as a nuclear norm of centred points."""
    seen: list[int] = []

    def watched(first: Any, second: Any, *, verbose: bool) -> Any:
        seen.append(len(first["mu"]))
        return fid_statistics_to_metric(first, second, verbose=verbose)

    monkeypatch.setattr("torch_fidelity.metric_fid.fid_statistics_to_metric", watched)
    ours, theirs = feature_sets(n, 512)
    found = frechet_distance(ours, theirs)
    assert seen == [2 * n]
    a, b = (np.array(x, dtype=np.float64) - x.mean(axis=0, dtype=np.float64) for x in (ours, theirs))
    shift = ours.mean(axis=0, dtype=np.float64) - theirs.mean(axis=0, dtype=np.float64)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = shift @ shift + ((a**2).sum() + (b**2).sum() - 2 * root) / (n - 1)
    assert found == pytest.approx(expected, rel=1e-5)  # roots of eigenvalues that are 0 but for rounding
    assert frechet_distance(ours, ours) == pytest.approx(0, abs=1e-5)


def test_kernel_distance_is_torch_fidelitys_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seed and its number of subsets; of smaller ones, since a hundred of a thousand take ten seconds."""
    monkeypatch.setattr(frechet, "SUBSET", 50)
    ours, theirs = feature_sets(130, 16)
    injected = (torch.from_numpy(np.array(x)) for x in (ours, theirs))
    expected = kid_features_to_metric(*injected, kid_subset_size=50, verbose=False)
    assert kernel_distance(ours, theirs) == expected["kernel_inception_distance_mean"]
    assert expected["kernel_inception_distance_std"] > 0  # the subsets differ


@pytest.mark.parametrize("n", [2, 200])
def test_kernel_distance_of_one_subset_agrees_with_torchmetrics(n: int) -> None:
    """All images at once, so that its other way of drawing subsets does not matter; both in float32: 1e-3."""
    ours, theirs = feature_sets(n, 16)
    metric = KernelInceptionDistance(feature=Given(16), subsets=1, subset_size=n)
    for real, features in ((True, ours), (False, theirs)):
        metric.update(torch.from_numpy(np.array(features)), real=real)
    assert kernel_distance(ours, theirs) == pytest.approx(metric.compute()[0].item(), rel=1e-3)
