"""Do the same for several stores, none of which may stop the others."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from worker.jobs.running import PutOff
from worker.storage.errors import StorageError, TransientError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def each(items: Iterable[ItemT], do: Callable[[ItemT], ResultT]) -> list[ResultT]:
    """Do something for every item, also after one has failed, and return what came of each.

    Raises:
        StorageError, PutOff: the one to act on, see `foremost`; after all items had their turn.
    """
    results: list[ResultT] = []
    failures: list[StorageError | PutOff] = []
    for item in items:
        try:
            results.append(do(item))
        except (StorageError, PutOff) as error:
            failures.append(error)
    if failures:
        raise foremost(failures)
    return results


def foremost(failures: Sequence[StorageError | PutOff]) -> StorageError | PutOff:
    """Return the failure that decides how a job goes on: one that may pass, else a wait, else one that stays."""
    for kind in (TransientError, PutOff):
        found = next((error for error in failures if isinstance(error, kind)), None)
        if found is not None:
            return found
    return failures[0]
