"""A bounded sample is uniform, and does not depend on how the stream was cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from ldm_vae.diagnostics.sample import BoundedSample


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_cuts_do_not_matter(sizes: list[int], limit: int) -> None:
    rows = np.arange(sum(sizes) * 2).reshape(-1, 2)
    one, many = BoundedSample(limit, 0, "test"), BoundedSample(limit, 0, "test")
    one.offer(rows)
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        many.offer(part)
    np.testing.assert_array_equal(one.rows, many.rows)
    assert len(one) == min(limit, len(rows))
    assert one.rows is not None and many.rows is not None
    assert (np.diff(one.rows[:, 0]) > 0).all()  # the order of the stream


def test_every_row_is_as_likely() -> None:
    counts = np.zeros(50)
    for seed in range(2000):
        sample = BoundedSample(10, seed, "test")
        for part in np.split(np.arange(50), 5):
            sample.offer(part)
        counts[sample.rows] += 1
    assert chisquare(counts).pvalue > 1e-3
