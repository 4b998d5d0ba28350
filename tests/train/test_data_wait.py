"""The time for which a device has nothing to do because images have not come, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from train import data_wait
from train.data_wait import DataWait


class Clock:
    """Seconds that pass where images are waited for, and a device that has work until a time."""

    def __init__(self, busy_until: float) -> None:
        self.now, self.busy_until = 0.0, busy_until

    def perf_counter(self) -> float:
        return self.now

    def arriving(self, at: float) -> Callable[[float], bool]:
        def arrived(seconds: float) -> bool:
            self.now = min(max(self.now, at), self.now + seconds)
            return self.now >= at

        return arrived


class Event:
    """The end of a step on the device."""

    clock: Clock

    def __init__(self, device: torch.device) -> None:
        assert device.type == "xpu"

    def record(self) -> None:
        """Work was started before."""

    def query(self) -> bool:
        return self.clock.now >= self.clock.busy_until


def waited(monkeypatch: pytest.MonkeyPatch, device: str, *, busy_until: float, arrives: float) -> float:
    clock = Clock(busy_until)
    monkeypatch.setattr(data_wait, "time", clock)
    monkeypatch.setattr(torch, "Event", Event)
    Event.clock = clock
    wait = DataWait(torch.device(device))
    wait.started()
    with wait.measured():
        arrived = wait.watched(clock.arriving(arrives))
        while not arrived(0.5):
            pass
    seconds = wait.take()
    assert wait.take() == 0.0
    return seconds


@pytest.mark.parametrize(
    ("device", "busy_until", "arrives", "expected"),
    [
        ("cpu", 9.0, 0.7, 0.7),  # a CPU has done all that was asked of it
        ("xpu", 0.0, 0.7, 0.7),
        ("xpu", 0.4, 0.7, 0.3),  # it has work for a part of the wait
        ("xpu", 0.9, 0.7, 0.0),
        ("xpu", 0.0, 0.0, 0.0),
        ("xpu", 2.0, 3.25, 1.25),  # longer than one look for signals
    ],
)
def test_only_what_the_device_stands_still_for_counts(
    monkeypatch: pytest.MonkeyPatch, device: str, busy_until: float, arrives: float, expected: float
) -> None:
    """To the time between two looks, by which the end of the work is seen too late."""
    found = waited(monkeypatch, device, busy_until=busy_until, arrives=arrives)
    assert expected - data_wait.LOOK <= found <= expected + 1e-9
