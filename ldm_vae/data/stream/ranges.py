"""Warns of pictures of floats that seem to lie in [0, 1] instead of [-1, 1]. Nothing is refused or changed."""

from __future__ import annotations

from collections.abc import Iterable

from ldm_vae.data.shards.index import Index
from ldm_vae.data.shards.left_out import warn_once

ENOUGH = 8  # pictures without a value below 0 that make a warning; fewer where the data has fewer


class UnitRangeWatch:
    """Looks at pictures of floats until one has a value below 0, or until there were enough that have none."""

    def __init__(self, index: Index) -> None:
        self._name = index.shards[0].url
        self._enough = min(ENOUGH, index.samples)
        self._seen: set[str] = set()
        self._signed = False

    def add(self, pictures: Iterable[tuple[str, float | None]]) -> None:
        """Looks at more pictures: (key, lowest value of a picture that is stored as floats, None for another)."""
        if self._signed or len(self._seen) >= self._enough:
            return
        for key, lowest in pictures:
            self._signed |= lowest is not None and lowest < 0
            if lowest is not None:
                self._seen.add(key)
        if not self._signed and len(self._seen) >= self._enough:
            what = f"{self._name}: none of {self._enough} pictures of floats has a value below 0"
            warn_once(f"{what}: floats are taken as [-1, 1]; if they are in [0, 1], store 2 x - 1, or uint8")
