"""Do the same for several stores, none of which may stop the others."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from worker.jobs.running_job import Snooze
from worker.storage.errors import StorageError, TransientError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def for_each_store(items: Iterable[ItemT], do: Callable[[ItemT], ResultT]) -> list[ResultT]:
    """Do something for every item, also after one has failed, and return what came of each.

    Raises:
        StorageError, Snooze: the one to act on, see `most_retryable`; after all items had their turn.
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
    """Return the failure that decides how a job goes on: one that may pass, else a wait, else one that stays."""
    for kind in (TransientError, Snooze):
        found = next((error for error in failures if isinstance(error, kind)), None)
        if found is not None:
            return found
    return failures[0]
