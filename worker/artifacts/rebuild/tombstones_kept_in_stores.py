"""Keep the tombstones of a catalogue in the stores, so that a rebuild brings back no artifact that was deleted."""

import heapq
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from worker.artifacts.rebuild.kept_list_files import fetch_lists, keep_list
from worker.catalogue import Catalogue, KeptTombstone
from worker.limits.limited_store import AnyStore
from worker.storage import Store

_NAME = "tombstones"


def keep_tombstones(store: Store, catalogue: Catalogue, spool_dir: Path) -> bool:
    """Write the list of deletes that can be undone to a store, if it keeps another list; return whether it was written.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    return keep_list(store, _NAME, catalogue.identity, catalogue.deletions, spool_dir)


class KeptTombstones:
    """The deletes that the stores keep, of every catalogue, by bucket and key; of each catalogue its newest list.

    They are read once from each store, onto the local disk. Memory does not grow with them.
    """

    def __init__(self, stores: Iterable[AnyStore], spool_dir: Path) -> None:
        """Read the lists. A store that cannot be read, and a damaged list, are logged and left out."""
        self._directory = tempfile.TemporaryDirectory(dir=spool_dir, prefix="zot-tombstones-")
        self._lists = fetch_lists(stores, _NAME, Path(self._directory.name), _tombstone)
        self._rows = heapq.merge(*map(self.of_catalogue, self._lists), key=_place)
        self._next = next(self._rows, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._directory.cleanup()

    def of_catalogue(self, identity: str) -> Iterator[KeptTombstone]:
        """Yield the deletes of one catalogue."""
        if identity in self._lists:
            yield from map(_tombstone, self._lists[identity].rows())

    def kept_at(self, identity: str) -> datetime | None:
        """Return when the list of one catalogue was written, None if no store has one."""
        return self._lists[identity].at if identity in self._lists else None

    def take(self, bucket: str, keys: Iterable[str]) -> Mapping[str, KeptTombstone]:
        """Return the last delete of each of these keys. The next call has to ask for later keys or buckets."""
        wanted = set(keys)
        last = (bucket, max((key.encode() for key in wanted), default=b""))
        found: dict[str, KeptTombstone] = {}
        while self._next is not None and _place(self._next) <= last:
            each = self._next
            before = found.get(each.key)
            if each.bucket == bucket and each.key in wanted and (before is None or before.deleted_at < each.deleted_at):
                found[each.key] = each
            self._next = next(self._rows, None)
        return found


def _place(each: KeptTombstone) -> tuple[str, bytes]:
    return each.bucket, each.key.encode()


def _tombstone(row: Mapping[str, Any]) -> KeptTombstone:
    times = {name: datetime.fromisoformat(row[name]) for name in ("deleted_at", "purge_after")}
    return KeptTombstone(**{**row, **times})
