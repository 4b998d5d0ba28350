from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ldm_vae.latents.prefetch import in_thread


def test_items_come_in_order_from_another_thread() -> None:
    def items() -> Iterator[tuple[int, int]]:
        for i in range(100):
            yield i, threading.get_ident()

    found = list(in_thread(items(), depth=3))
    assert [i for i, _ in found] == list(range(100))
    assert {ident for _, ident in found} != {threading.get_ident()}


def test_runs_ahead_by_its_depth_and_no_further() -> None:
    made, reached = [], threading.Event()

    def items() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            if i == 3:
                reached.set()
            yield i

    stream = in_thread(items(), depth=2)
    assert next(stream) == 0
    assert reached.wait(10)  # 1 and 2 wait in the queue, 3 waits to get in
    assert made == [0, 1, 2, 3]
    assert list(stream) == list(range(1, 10))


def test_error_arrives_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    stream = in_thread(items(), depth=5)
    assert next(stream) == 1
    with pytest.raises(KeyError, match="broken"):
        next(stream)


def test_thread_ends_when_the_reader_stops() -> None:
    before = threading.active_count()
    stream = in_thread(iter(range(10**9)), depth=1)
    assert next(stream) == 0
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before
