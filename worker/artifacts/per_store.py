"""Do the same for several stores; an error of one does not stop the others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.storage.errors import PermanentError, StorageError, TransientError

_IN_A_ROW = 5
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


def check_storage_classes(classes: Iterable[str], stores: Mapping[str, LimitedStore]) -> None:
    """Raise PermanentError if an upload names a storage class for a store that has none; UnknownStore for no store."""
    for name in classes:
        if not stores[name].capabilities.storage_classes:
            raise PermanentError(f"{name}: the store has no storage classes; leave it out of storage_classes")


class SingleFailures:
    """Lets a sweep continue behind an object that fails, until so many fail in a row that the store must be away."""

    def __init__(self) -> None:
        self.all: list[StorageError] = []
        self._in_a_row = 0

    def add(self, error: StorageError) -> None:
        """Record a failure; raise it if the store has failed too often in a row."""
        self.all.append(error)
        self._in_a_row += error.of_store
        if self._in_a_row >= _IN_A_ROW:
            raise error

    def ended(self) -> None:
        """Record that the store has answered about an object."""
        self._in_a_row = 0

    def check(self) -> None:
        """Raise the most retryable failure, if there is one."""
        if self.all:
            raise most_retryable(self.all)


def most_retryable(failures: Sequence[StorageError | Snooze]) -> StorageError | Snooze:
    """Return the failure that decides how a job goes on: a transient error, else a snooze, else a permanent error.

    Of several transient errors it is the one with the longest Retry-After.
    """
    if transient := [error for error in failures if isinstance(error, TransientError)]:
        return max(transient, key=lambda error: error.retry_after or 0)
    return next((error for error in failures if isinstance(error, Snooze)), failures[0])
