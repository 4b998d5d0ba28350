"""How much memory a network may take for one image, where a device had too little for it as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ldm_vae.errors import UserError


class NoRoom(UserError):
    """No way to compute fits into the memory that a device has free."""


_share: ContextVar[float | None] = ContextVar("share", default=None)


@contextmanager
def sparing(share: float | None) -> Iterator[None]:
    """Inside, networks run in pieces, within a share of what they take as a whole; None leaves it to them."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def share_of_whole() -> float | None:
    """The share that was set; None where nobody has."""
    return _share.get()
