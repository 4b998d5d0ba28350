"""Sizes and times as people read them, each in one unit: "8.2 kB", "2.3 min"."""

from __future__ import annotations

UNITS = ("kB", "MB", "GB", "TB", "PB")  # powers of 1000, as disks are sold
MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds


def size(count: float) -> str:
    """A number of bytes, such as "980 bytes", "8.2 kB", "4.92 TB", to three digits."""
    if round(count) < 1000:
        return f"{round(count)} byte{'' if round(count) == 1 else 's'}"
    for unit in UNITS:
        count /= 1000
        if float(f"{count:.3g}") < 1000 or unit == UNITS[-1]:
            break
    return f"{_three_digits(count)} {unit}"


def binary_size(count: float) -> str:
    """A number of bytes in the units of memory, such as "2.3 GiB" or "35 MiB", to two digits."""
    return f"{two_digits(count / 2**30)} GiB" if count >= 0.995 * 2**30 else f"{two_digits(count / 2**20)} MiB"


def duration(seconds: float) -> str:
    """A time, such as "0.8 s", "75 s", "2.3 min", "4.1 h", "12 days"."""
    for unit, length, end in (("s", 1, 2 * MINUTE), ("min", MINUTE, 2 * HOUR), ("h", HOUR, 2 * DAY)):
        if seconds < end:
            return f"{two_digits(seconds / length)} {unit}"
    return f"{two_digits(seconds / DAY)} days"


def rate(count: float, seconds: float) -> str:
    """A number a second, such as "0.42" or "310"; for a unit, put it behind."""
    return _three_digits(count / max(seconds, 1e-9))


def two_digits(value: float) -> str:
    """Two digits, and all before the point."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _three_digits(value: float) -> str:
    """Without an exponent."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"
