"""Streaming statistics against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.metrics.latent import Activation, LatentMoments, LatentStatistics

pytestmark = pytest.mark.numerical

Numbers = npt.NDArray[np.float64] | list[float]
REST = {"codec": "0" * 64, "latents": "mode", "protocol": {}, "data": "shards"}


def assert_equal(found: Numbers, expected: Numbers) -> None:
    """But for sums of float64 in another order than numpy's."""
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def latents(seed: int, count: int = 6) -> torch.Tensor:
    offsets = torch.tensor([100.0, -3.0, 0.0]).view(1, 3, 1, 1)  # a mean far from zero spoils naive sums of squares
    return torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) + offsets


def gathered(*batches: torch.Tensor) -> LatentMoments:
    moments = LatentMoments(3)
    for batch in batches:
        moments.update(batch)
    return moments


def test_equals_numpy() -> None:
    values = latents(0)
    moments, array = gathered(values), values.double().numpy()
    assert_equal(moments.mean, array.mean(axis=(0, 2, 3)))
    assert_equal(moments.std, array.std(axis=(0, 2, 3)))
    assert_equal([moments.total_mean, moments.total_std], [array.mean(), array.std()])
    assert (moments.images, moments.values) == (6, 6 * 20)


def test_images_of_different_sizes_count_by_position() -> None:
    small, large = latents(1)[:, :, :2], latents(2)
    moments = gathered(small, large)
    flat = torch.cat([x.double().transpose(0, 1).flatten(1) for x in (small, large)], dim=1).numpy()
    assert_equal(moments.std, flat.std(axis=1))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 5))
def test_neither_batches_nor_processes_matter(sizes: list[int], cut: int) -> None:
    values = latents(3, sum(sizes))
    batches = list(values.split(sizes))
    one, left, right = gathered(values), gathered(*batches[:cut]), gathered(*batches[cut:])
    left.merge(right)
    assert_equal(left.mean, one.mean)
    assert_equal(left.std, one.std)
    assert (left.images, left.values) == (one.images, one.values)


def test_state_comes_back_to_the_last_bit() -> None:
    moments = gathered(latents(4))
    again = LatentMoments.from_state(moments.state())
    assert again.state() == moments.state()
    assert LatentMoments.from_state(LatentMoments(3).state()).values == 0


def test_scales_give_unit_variance(tmp_path: Path) -> None:
    values = latents(5).double()
    moments = gathered(values)
    activation = Activation(largest=3.0, layer="encoder", images=1)
    LatentStatistics.of(moments, **REST, activation=activation).write(tmp_path / "stats.json")
    statistics = LatentStatistics.read(tmp_path / "stats.json")
    assert statistics.activation == activation
    for kind in ("factor", "shift", "channel"):
        scale = statistics.scale(kind)
        scaled = gathered(scale.apply(values))
        assert scaled.total_std == pytest.approx(1)
        if kind != "factor":
            assert scaled.total_mean == pytest.approx(0, abs=1e-12)
        if kind == "channel":
            np.testing.assert_allclose(scaled.std, 1)
        torch.testing.assert_close(scale.remove(scale.apply(values)), values)
        assert LatentScale.from_config(scale.to_config(), 3, "test") == scale


def test_collapsed_latents_have_no_scale() -> None:
    with pytest.raises(UserError, match="do not vary"):
        LatentStatistics.of(gathered(torch.ones(2, 3, 4, 4)), **REST).scale("factor")


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"format": "something else"}'])
def test_what_is_no_file_of_statistics_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "stats.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"stats\.json"):
        LatentStatistics.read(path)
