"""The scatter of latent means by class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from ldm_vae.diagnostics.classes import CLASSES_SHOWN, class_names, scatter


def test_classes_stand_where_their_means_are() -> None:
    generator = np.random.default_rng(0)
    classes = np.repeat([0, 1, 7], 20)
    means = generator.normal(scale=0.1, size=(60, 3)) + np.array([[5, 0, 0]]) * (classes == 1)[:, None]
    chart = scatter(means, classes, ["cat", "dog"])
    assert chart is not None
    assert [line.label for line in chart.lines] == ["cat", "dog", "class 7"]
    centres = [np.asarray(line.x, dtype=float).mean() for line in chart.lines]
    assert centres[1] - centres[0] == pytest.approx(5, abs=0.2)
    assert centres[2] == pytest.approx(centres[0], abs=0.2)
    assert all(len(line.x) == 20 for line in chart.lines)
    assert "class" in chart.definition.lower()


def test_places_are_the_scores_of_a_principal_component_analysis() -> None:
    """scikit-learn's, up to the sign of each direction; the main one is no axis."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=(50, 3)) * (3.0, 1.0, 0.3) @ np.linalg.qr(generator.normal(size=(3, 3)))[0]
    chart = scatter(means, np.zeros(50, dtype=np.int64), [])
    assert chart is not None
    places = np.array([chart.lines[0].x, chart.lines[0].y], dtype=float).T
    np.testing.assert_allclose(np.abs(places), np.abs(PCA(n_components=2).fit_transform(means)), atol=1e-9)


def test_the_most_frequent_classes_are_shown() -> None:
    classes = np.concatenate([np.arange(30), np.arange(30), np.arange(20, 30)])
    chart = scatter(np.random.default_rng(0).normal(size=(70, 1)), classes, [])
    assert chart is not None
    assert [line.label for line in chart.lines] == [f"class {n}" for n in range(20, 30)]
    assert len(chart.lines) == CLASSES_SHOWN
    assert "of 30 classes" in chart.definition


def test_nothing_to_show() -> None:
    assert scatter(np.ones((5, 2)), np.arange(5), []) is None
    assert scatter(np.arange(4.0).reshape(2, 2), np.arange(2), []) is None


def test_names_of_classes(tmp_path: Path) -> None:
    assert class_names(str(tmp_path)) == []
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    assert class_names(str(tmp_path)) == class_names(str(tmp_path / "{0..3}.tar")) == ["cat", "dog"]
    (tmp_path / "classes.json").write_text("{")
    assert class_names(str(tmp_path)) == []
