"""Do the same for several stores, none of which may stop the others."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from worker.storage.errors import StorageError, TransientError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def each(items: Iterable[ItemT], do: Callable[[ItemT], ResultT]) -> list[ResultT]:
    """Do something for every item, also after one has failed, and return what came of each.

    Raises:
        StorageError: the first failure that may pass, else the first that will not; after all items had their turn.
    """
    results: list[ResultT] = []
    failures: list[StorageError] = []
    for item in items:
        try:
            results.append(do(item))
        except StorageError as error:
            failures.append(error)
    if failures:
        raise next((error for error in failures if isinstance(error, TransientError)), failures[0])
    return results
