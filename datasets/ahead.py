"""Work done ahead of its consumer: a few items at once in threads, results in order.

For work that spends its time outside the interpreter's lock: Polars, NumPy, files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")

DEPTH = 2
"""Items in work at once; each is held in memory."""


def ahead(items: Iterable[T], work: Callable[[T], R], depth: int = DEPTH) -> Iterator[tuple[T, R]]:
    """Items in their order, each with what `work` made of it.

    Items are drawn in the calling thread. An error of an item's drawing or work is raised at its place: all items
    before it come out first.
    """
    pool = ThreadPoolExecutor(depth, thread_name_prefix="ctrbench-ahead")
    source, waiting = iter(items), deque[tuple[T, Future[R]]]()
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception:
                yield from _drain(waiting)
                raise
            waiting.append((item, pool.submit(work, item)))
            del item  # the caller's memory is bounded by what waits
            if len(waiting) >= depth:
                first, made = waiting.popleft()
                yield first, made.result()
                del first, made
        yield from _drain(waiting)
    finally:  # also when the caller abandons the rest
        pool.shutdown(wait=True, cancel_futures=True)


def _drain(waiting: deque[tuple[T, Future[R]]]) -> Iterator[tuple[T, R]]:
    while waiting:
        first, made = waiting.popleft()
        yield first, made.result()
