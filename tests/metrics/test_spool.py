"""Features on disk: in the order of keys, whatever came first; a full disk is said."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from ldm_vae.errors import UserError
from ldm_vae.metrics import spool
from ldm_vae.metrics.spool import Spool, chunks


def test_rows_come_back_in_the_order_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CHUNK_IMAGES", 3)  # so that there are several, the last one not full
    rows = np.random.default_rng(0).normal(size=(10, 2, 5)).astype(np.float32)
    keys = [f"{i:02d}" for i in np.random.default_rng(1).permutation(10)]
    kept = Spool((2, 5))
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        kept.add(keys[part], rows[part])
    whole = kept.gathered()
    assert isinstance(whole, np.memmap)  # not in memory
    np.testing.assert_array_equal(whole, rows[np.argsort(keys)])
    parts = list(chunks(whole))
    assert [len(part) for part in parts] == [3, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Spool((2, 5))

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kept, "_file", Full())
    with pytest.raises(UserError, match="set TMPDIR"):
        kept.add(["a"], np.zeros((1, 2, 5), dtype=np.float32))
