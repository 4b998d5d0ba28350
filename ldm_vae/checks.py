"""Checks of values that lie on a device: each at once, or all of them read with the result that they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor


class Checks:
    """What is to be looked at once it is on the host: the host goes on meanwhile, as if nothing were wrong.

    values: tensors on the device, in the order in which `passed` wants them.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self._judges: list[Callable[[Tensor], bool]] = []

    def require(self, flags: Tensor) -> None:
        """flags: bool, any shape; one that is False fails."""
        self.look_at(flags, lambda arrived: bool(arrived.all()))

    def look_at(self, value: Tensor, judge: Callable[[Tensor], bool]) -> None:
        """judge: gets the value on the host, and says whether it passes."""
        self.values.append(value)
        self._judges.append(judge)

    def passed(self, arrived: Sequence[Tensor]) -> bool:
        """arrived: `values`, on the host."""
        verdicts = [judge(value) for judge, value in zip(self._judges, arrived, strict=True)]  # each may warn
        return all(verdicts)


_open: ContextVar[Checks | None] = ContextVar("checks", default=None)


@contextmanager
def checked_later() -> Iterator[Checks]:
    """Inside, what would wait for the device to check a value adds it to these checks, and goes on."""
    checks = Checks()
    token = _open.set(checks)
    try:
        yield checks
    finally:
        _open.reset(token)


def open_checks() -> Checks | None:
    """The checks that are read later; None where each is to be done at once."""
    return _open.get()
