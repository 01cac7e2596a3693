"""Do something for many items in a few threads, which take the next item themselves.

A future for each item costs as much time as reading or writing a small file. A second thread that mostly computes costs
as much, because it takes Python's lock from the first one.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")

_SLOW = 0.001
"""Seconds for an item above which its thread mostly waits, so that another thread may be faster."""


def begin_all(
    pool: Executor, do: Callable[[ItemT], Any], items: list[ItemT], threads: int, *, begin: int | None = None
) -> list[Future[None]]:
    """Begin to do something for all items, in so many threads, each of which ends at its first error.

    `begin`: how many threads at first; an item that takes longer than a millisecond starts another thread. The list
    grows with them: a new thread is in it before the thread that started it ends.
    """
    return _begin(pool, do, iter(items), min(threads, len(items)), begin)


def do_all(
    pool: Executor, do: Callable[[ItemT], Any], items: list[ItemT], threads: int, *, begin: int | None = None
) -> None:
    """Do something for all items; after all threads have ended, raise the first error. `begin`: see `begin_all`.

    A caller that is interrupted waits for the items that were begun, and for no others.
    """
    waiting = iter(items)
    under_way = _begin(pool, do, waiting, min(threads, len(items)), begin)
    try:
        errors = [future.exception() for future in under_way]
    except BaseException:
        for _ in waiting:
            pass
        raise
    for error in errors:
        if error is not None:
            raise error


def _begin(
    pool: Executor, do: Callable[[ItemT], Any], waiting: Iterator[ItemT], threads: int, begin: int | None
) -> list[Future[None]]:
    first = threads if begin is None else min(begin, threads)
    more = iter(range(threads - first))
    under_way: list[Future[None]] = []

    def work() -> None:
        for item in waiting:  # threads may share the iterator of a list
            begun = time.monotonic()
            do(item)
            if time.monotonic() - begun > _SLOW and next(more, None) is not None:
                under_way.append(pool.submit(work))

    under_way += [pool.submit(work) for _ in range(first)]
    return under_way
