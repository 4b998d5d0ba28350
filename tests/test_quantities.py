"""Sizes and times, each in the unit and with the digits that people read."""

import pytest

from ldm_vae.quantities import duration, rate, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (999.6, "1.00 kB"),
        (8192, "8.19 kB"),
        (34_100_000, "34.1 MB"),
        (999_999, "1.00 MB"),
        (4.92e12, "4.92 TB"),
        (123.4e15, "123 PB"),
        (1.2e19, "12,000 PB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (0.84, "0.8 s"),
        (75.2, "75 s"),
        (140, "2.3 min"),
        (3600, "60 min"),
        (4.1 * 3600, "4.1 h"),
        (12 * 86400, "12 days"),
        (2e9, "23,148 days"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "seconds", "text"), [(42, 100, "0.42"), (3102, 10, "310"), (12000, 1, "12,000"), (1, 0, "1,000,000,000")]
)
def test_rates(count: float, seconds: float, text: str) -> None:
    assert rate(count, seconds) == text
