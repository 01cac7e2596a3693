"""Do the same for several stores; an error of one does not stop the others."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from worker.limits.snooze import Snooze
from worker.storage.errors import StorageError, TransientError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def for_each_store(items: Iterable[ItemT], do: Callable[[ItemT], ResultT]) -> list[ResultT]:
    """Do something for every item, also after one has failed, and return the results.

    Raises:
        StorageError, Snooze: the most retryable failure, see `most_retryable`, after all items are done.
    """
    results: list[ResultT] = []
    failures: list[StorageError | Snooze] = []
    for item in items:
        try:
            results.append(do(item))
        except (StorageError, Snooze) as error:
            failures.append(error)
    if failures:
        raise most_retryable(failures)
    return results


def most_retryable(failures: Sequence[StorageError | Snooze]) -> StorageError | Snooze:
    """Return the failure that decides how a job goes on: a transient error, else a snooze, else a permanent error."""
    for kind in (TransientError, Snooze):
        found = next((error for error in failures if isinstance(error, kind)), None)
        if found is not None:
            return found
    return failures[0]
