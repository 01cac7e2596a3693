"""Do something for many items in a few threads, which take the next item themselves.

A future for each item costs as much as reading or writing a small file.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")


def begin_all(pool: Executor, do: Callable[[ItemT], Any], items: Sequence[ItemT], threads: int) -> list[Future[None]]:
    """Begin to do something for all items, in so many threads, each of which ends at its first error."""
    waiting = iter(items)  # threads may share the iterator of a sequence

    def work() -> None:
        for item in waiting:
            do(item)

    return [pool.submit(work) for _ in range(min(threads, len(items)))]


def do_all(pool: Executor, do: Callable[[ItemT], Any], items: Sequence[ItemT], threads: int) -> None:
    """Do something for all items; after all threads have ended, raise the first error."""
    errors = [future.exception() for future in begin_all(pool, do, items, threads)]
    for error in errors:
        if error is not None:
            raise error
