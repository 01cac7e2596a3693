"""Do something for many items in a few threads, which take the next item themselves.

A future for each item costs as much as reading or writing a small file.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")


def begin_all(pool: Executor, do: Callable[[ItemT], Any], items: list[ItemT], threads: int) -> list[Future[None]]:
    """Begin to do something for all items, in so many threads, each of which ends at its first error."""
    return _begin(pool, do, iter(items), min(threads, len(items)))


def do_all(pool: Executor, do: Callable[[ItemT], Any], items: list[ItemT], threads: int) -> None:
    """Do something for all items; after all threads have ended, raise the first error.

    A caller that is interrupted waits for the items that were begun, and for no others.
    """
    waiting = iter(items)
    under_way = _begin(pool, do, waiting, min(threads, len(items)))
    try:
        errors = [future.exception() for future in under_way]
    except BaseException:
        for _ in waiting:
            pass
        raise
    for error in errors:
        if error is not None:
            raise error


def _begin(pool: Executor, do: Callable[[ItemT], Any], waiting: Iterator[ItemT], threads: int) -> list[Future[None]]:
    def work() -> None:
        for item in waiting:  # threads may share the iterator of a list
            do(item)

    return [pool.submit(work) for _ in range(threads)]
