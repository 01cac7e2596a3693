"""Keep the tombstones of a catalogue in the stores, so that a rebuild brings back no artifact that was deleted."""

import gzip
import heapq
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from worker import clock
from worker.catalogue import Catalogue, KeptTombstone
from worker.storage import Store
from worker.storage.errors import IntegrityError, NotFound, StorageError
from worker.storage.keys import PROBE_BUCKET

logger = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "tombstones/", ".jsonl.gz"
_LONGEST = 1 << 16
"""Bytes of a line."""
_COPIED = 1 << 20


def keep_tombstones(store: Store, catalogue: Catalogue, spool_dir: Path) -> bool:
    """Write the list of deletes that can be undone to a store, if it keeps another list; return whether it was written.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    if not store.capabilities.reserved_buckets:
        return False
    now = catalogue.deletions.extent()
    key = f"{_PREFIX}{catalogue.identity}{_SUFFIX}"
    kept = _header(store, key)
    if (kept or {}).get("extent") == now or (kept is None and not now[0]):
        return False
    with tempfile.TemporaryFile(dir=spool_dir, prefix="zot-tombstones-") as spool:
        with gzip.GzipFile(filename="", fileobj=spool, mode="wb", mtime=0) as packed:
            header = {"catalogue": catalogue.identity, "at": clock.now().isoformat(), "extent": now}
            packed.write(json.dumps(header).encode() + b"\n")
            for each in catalogue.deletions.kept():
                packed.write(json.dumps(_document(each)).encode() + b"\n")
        spool.seek(0)
        store.create_bucket(PROBE_BUCKET)
        store.write_object(PROBE_BUCKET, key, spool)
    return True


@dataclass(frozen=True, slots=True)
class _List:
    """One list, on the local disk."""

    catalogue: str
    at: datetime
    file: Path

    def rows(self) -> Iterator[KeptTombstone]:
        with gzip.open(self.file, "rb") as lines:
            lines.readline(_LONGEST)
            while line := lines.readline(_LONGEST):
                yield _tombstone(json.loads(line))


class KeptTombstones:
    """The deletes that the stores keep, of every catalogue, by bucket and key; of each catalogue its newest list.

    They are read once from each store, onto the local disk. Memory does not grow with them.
    """

    def __init__(self, stores: Iterable[Store], spool_dir: Path) -> None:
        """Read the lists. A store that cannot be read, and a damaged list, are logged and left out."""
        self._directory = tempfile.TemporaryDirectory(dir=spool_dir, prefix="zot-tombstones-")
        self._lists: dict[str, _List] = {}
        for store in stores:
            for number, key in enumerate(_keys(store)):
                each = _fetch(store, key, Path(self._directory.name) / f"{len(self._lists)}.{store.name}.{number}")
                other = self._lists.get(each.catalogue) if each else None
                if each is not None and (other is None or other.at < each.at):
                    self._lists[each.catalogue] = each
        self._rows = heapq.merge(*(each.rows() for each in self._lists.values()), key=_place)
        self._next = next(self._rows, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._directory.cleanup()

    def of_catalogue(self, identity: str) -> Iterator[KeptTombstone]:
        """Yield the deletes of one catalogue."""
        if identity in self._lists:
            yield from self._lists[identity].rows()

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


def _keys(store: Store) -> Sequence[str]:
    try:
        if store.capabilities.reserved_buckets:
            return [each.key for each in store.list_objects(PROBE_BUCKET, _PREFIX) if each.key.endswith(_SUFFIX)]
    except StorageError as error:
        logger.warning("the deletes that %s keeps are not known: %s", store.name, error)
    return []


def _fetch(store: Store, key: str, path: Path) -> _List | None:
    """Copy a list to the local disk, and return it if it is whole."""
    try:
        with store.read_object(PROBE_BUCKET, key) as reader, path.open("wb") as file:
            shutil.copyfileobj(cast("BinaryIO", reader), file, _COPIED)
        with gzip.open(path, "rb") as lines:
            header = json.loads(lines.readline(_LONGEST))
            found = _List(str(header["catalogue"]), datetime.fromisoformat(header["at"]), path)
        for _ in found.rows():
            pass
    except (StorageError, OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: %s/%s, a list of deletes, cannot be used: %s", store.name, PROBE_BUCKET, key, error)
        return None
    return found


def _header(store: Store, key: str) -> dict[str, Any] | None:
    """Return the first line of the list that a store keeps; empty if it is damaged, None if there is none."""
    try:
        with store.read_object(PROBE_BUCKET, key) as reader:
            lines = gzip.GzipFile(fileobj=cast("BinaryIO", reader), mode="rb")
            return dict(json.loads(lines.readline(_LONGEST)))
    except NotFound:
        return None
    except (IntegrityError, OSError, EOFError, zlib.error, ValueError, TypeError):
        return {}


def _document(each: KeptTombstone) -> dict[str, Any]:
    times = {"deleted_at": each.deleted_at.isoformat(), "purge_after": each.purge_after.isoformat()}
    return asdict(each) | times


def _tombstone(row: Mapping[str, Any]) -> KeptTombstone:
    times = {name: datetime.fromisoformat(row[name]) for name in ("deleted_at", "purge_after")}
    return KeptTombstone(**{**row, **times})
