"""Decodes pictures in threads and gives them in order, so that those on the way take no more memory than allowed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")

# Bytes of pictures that are being decoded, or wait for those before them. One picture alone may always pass.
IN_FLIGHT = 2**30


@dataclass(frozen=True)
class Work(Generic[ItemT]):
    """What a thread does for one item.

    run: gives the item.
    peak: bytes that it takes meanwhile.
    """

    run: Callable[[], ItemT]
    peak: int


def in_order(
    work: Iterable[Work[ItemT]],
    pool: ThreadPoolExecutor,
    *,
    ahead: int,
    size: Callable[[ItemT], int],
) -> Iterator[ItemT]:
    """Gives the items in the order of `work`, while up to `ahead` of them are being made.

    They take `IN_FLIGHT` bytes at most, or are one.
    size: bytes that an item takes once it is made. Before, its peak counts.
    What a thread raises is raised in place of its item.
    """

    def taken(waiting: tuple[Future[ItemT], int]) -> int:
        future, peak = waiting
        if not future.done():
            return peak
        return 0 if future.exception() is not None else size(future.result())

    waiting: deque[tuple[Future[ItemT], int]] = deque()
    for each in work:
        while waiting and sum(map(taken, waiting)) + each.peak > IN_FLIGHT:
            yield waiting[0][0].result()
            waiting.popleft()  # only now, because what was given may have waited for room in a queue
        waiting.append((pool.submit(each.run), each.peak))
        if len(waiting) == ahead:
            yield waiting[0][0].result()
            waiting.popleft()
    while waiting:
        yield waiting[0][0].result()
        waiting.popleft()
