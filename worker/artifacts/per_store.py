"""Do the same for several stores; an error of one does not stop the others."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.storage.errors import REFUSALS, PermanentError, SizeMismatch, StorageError, TransientError
from zot_artifact_client.contract import KeptBesideBytes

PLACED = ("repaired", "stored", "already_there")
DELETED = ("deleted", "already_gone")
"""The outcomes of copies, in the order in which `first_of` takes them."""
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


def check_beside_bytes(request: KeptBesideBytes, stores: Mapping[str, LimitedStore], names: Iterable[str]) -> None:
    """Check what an upload asks of its stores, `names`, before its first effect.

    Raises:
        UnknownStore: naming the stores there are.
        PermanentError: a store has no such storage class.
        InvalidMetadata: a store that keeps metadata cannot keep this.
    """
    for name, storage_class in request.storage_classes.items():
        known = stores[name].capabilities.storage_classes
        if known is None:
            raise PermanentError(f"{name}: the store has no storage classes; leave it out of storage_classes")
        if not known.fullmatch(storage_class):
            raise PermanentError(f"{name}: the store has no storage class {storage_class!r} for what is verified")
    for name in names:
        if rules := stores[name].capabilities.metadata:
            rules.check(request.metadata, name)


def check_size(size: int, stores: Iterable[LimitedStore], what: str) -> None:
    """Raise SizeMismatch if one of the stores holds no object that is so large."""
    for store in stores:
        if (most := store.capabilities.max_object_size) is not None and size > most:
            raise SizeMismatch(f"{store.name}: {what} has {size} bytes, the store takes at most {most}")


def is_refused(error: Exception | None) -> bool:
    """Return whether a store has refused an object, and may refuse all of them until an operator acts."""
    return isinstance(error, REFUSALS) and bool(error.store)


def first_of(order: Sequence[str], words: Collection[str]) -> str:
    """Return the outcome of an object whose copies have these outcomes: the first in this order, or its last."""
    return next((word for word in order if word in words), order[-1])


class SingleFailures:
    """Lets a sweep continue after an object that fails, until so many fail in a row that the store must be away."""

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
