"""Compare the listing of a store with the catalogue, as one merge of two sorted streams."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Protocol

from worker import clock
from worker.catalogue import Catalogue, CopyState, FindingKind, RecordedCopy, Sighting
from worker.storage.driver import ListedObject
from worker.storage.errors import StorageError


class DisorderedListing(StorageError):
    """A store lists keys in another order than that of their bytes."""


class Lists(Protocol):
    """A store that lists its objects by the bytes of their keys."""

    @property
    def name(self) -> str: ...
    def list_objects(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]: ...


class ListsBuckets(Protocol):
    """A store that lists the buckets that may hold artifacts."""

    def list_buckets(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Compared:
    """One key: how many objects are listed and how many copies recorded under it, and how both differ, if they do.

    `known`: the listing shows what a verdict has recorded already.
    """

    key: str
    listed: int
    recorded: int
    sighting: Sighting | None
    known: CopyState | None = None


def buckets_to_compare(store: ListsBuckets, catalogue: Catalogue) -> list[str]:
    """Return the buckets that the store lists or the catalogue records, in their order.

    Raises:
        StorageError: the buckets of the store could not be listed.
    """
    return sorted({*catalogue.artifacts.buckets(), *store.list_buckets()})


def compare(
    store: Lists, catalogue: Catalogue, bucket: str, prefix: str, after: str, *, run: datetime
) -> Iterator[Compared]:
    """Yield every key of a bucket after the one given that the store lists or the catalogue records, by key.

    Copies in state `writing`, and objects and copies that are newer than `run`, the begin of the run, are no
    difference: they are written during it. Memory does not grow with the bucket.

    Raises:
        StorageError: the listing ended early, and the keys that were yielded so far must be discarded.
    """
    listed = in_order(store.name, store.list_objects(bucket, prefix, after=after))
    recorded = groupby(catalogue.reconciliations.recorded(store.name, bucket, prefix, after), attrgetter("key"))
    there, known = next(listed, None), _next(recorded)
    while there is not None or known is not None:
        if known is None or (there is not None and there.key < known[0].key):
            assert there is not None
            yield Compared(there.key, 1, 0, _difference(bucket, there, (), run))
            there = next(listed, None)
        elif there is None or known[0].key < there.key:
            yield Compared(known[0].key, 0, len(known), _difference(bucket, None, known, run), _known(None, known))
            known = _next(recorded)
        else:
            yield Compared(there.key, 1, len(known), _difference(bucket, there, known, run), _known(there, known))
            there, known = next(listed, None), _next(recorded)


def in_order(name: str, listing: Iterable[ListedObject]) -> Iterator[ListedObject]:
    """Yield the rows of a listing; raise DisorderedListing where a key does not come after the one before it.

    A row is yielded only after the next one was seen: a comparison ends at the last recorded key, which in a listing in
    reverse order is one of its first rows.
    """
    rows = iter(listing)
    row = next(rows, None)
    while row is not None:
        try:
            following = next(rows, None)
        except StorageError:
            yield row
            raise
        if following is not None and following.key <= row.key:
            raise DisorderedListing(f"{name}: the listing has {following.key!r} after {row.key!r}: do not rely on it")
        yield row
        row = following


def _next(recorded: Iterator[tuple[str, Iterator[RecordedCopy]]]) -> Sequence[RecordedCopy] | None:
    found = next(recorded, None)
    return None if found is None else list(found[1])


def _known(there: ListedObject | None, known: Sequence[RecordedCopy]) -> CopyState | None:
    copy = known[-1]
    if there is None:
        return copy.state if copy.state is CopyState.MISSING else None
    other_size = copy.state is CopyState.SIZE_MISMATCH and there.size not in {copy.size, None}
    return copy.state if other_size else None


def _difference(
    bucket: str, there: ListedObject | None, known: Sequence[RecordedCopy], run: datetime
) -> Sighting | None:
    if any(copy.state is CopyState.WRITING for copy in known):
        return None
    young = there is not None and clock.is_since(there.modified, run)
    if not known:
        assert there is not None
        return None if young else Sighting(bucket, there.key, FindingKind.ORPHAN, 0, there.size)
    copy = known[-1]
    if copy.read_at is not None and copy.read_at > run:
        return None
    if there is None:
        found = None if copy.state is CopyState.MISSING else FindingKind.MISSING
    elif there.size in {copy.size, None} or young or copy.state is CopyState.SIZE_MISMATCH:
        found = None
    else:
        found = FindingKind.SIZE_MISMATCH
    return Sighting(bucket, copy.key, found, copy.version, there.size if there else None) if found else None
