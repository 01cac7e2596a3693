"""Keep in the stores what only the catalogue has, for a rebuild of it: deletes, and named companions.

Each is a list of its rows: a header and lines of JSON, compressed.
"""

import gzip
import heapq
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, cast

from worker import clock
from worker.catalogue import Catalogue, KeptTombstone, NamedCompanion
from worker.limits.limited_store import AnyStore
from worker.storage import Store
from worker.storage.errors import IntegrityError, NotFound, StorageError
from worker.storage.keys import PROBE_BUCKET
from worker.storage.spooling import spooling_in

logger = logging.getLogger(__name__)

_SUFFIX = ".jsonl.gz"
_LONGEST = 1 << 16
"""Bytes of a line."""
_COPIED = 1 << 20
_TOMBSTONES, _COMPANIONS = "tombstones", "companions"
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class KeptList:
    """One list of one catalogue, on the local disk."""

    catalogue: str
    at: datetime
    file: Path

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield its rows."""
        with gzip.open(self.file, "rb") as lines:
            lines.readline(_LONGEST)
            while line := lines.readline(_LONGEST):
                yield json.loads(line)


class Rows(Protocol):
    """What the catalogue has and the stores keep."""

    def fingerprint(self) -> Sequence[Any]:
        """Return what changes with every change of the rows; its first item is their number."""
        ...

    def kept(self) -> Iterator[Any]:
        """Yield the rows, dataclasses of texts, numbers and times."""
        ...


def keep_list(store: Store, name: str, catalogue: str, rows: Rows, spool_dir: Path) -> bool:
    """Write a list to a store if it keeps one with another fingerprint; return whether it was written.

    A store without a list does not get an empty one. `catalogue` is the id of the catalogue.

    Raises:
        OutOfSpace: the disk of this machine, or the store, is full.
        StorageError: the store cannot be reached, or does not allow it.
    """
    if not store.capabilities.reserved_buckets:
        return False
    key, fingerprint = f"{name}/{catalogue}{_SUFFIX}", rows.fingerprint()
    kept = _header(store, key)
    if (kept or {}).get("extent") == fingerprint or (kept is None and not fingerprint[0]):
        return False
    with spooling_in(spool_dir), tempfile.TemporaryFile(dir=spool_dir, prefix=f"zot-{name}-") as spool:
        with gzip.GzipFile(filename="", fileobj=spool, mode="wb", mtime=0) as packed:
            header = {"catalogue": catalogue, "at": clock.now().isoformat(), "extent": fingerprint}
            packed.write(json.dumps(header).encode() + b"\n")
            for each in rows.kept():
                packed.write(json.dumps(asdict(each), default=datetime.isoformat).encode() + b"\n")
        spool.seek(0)
        store.create_bucket(PROBE_BUCKET)
        store.write_object(PROBE_BUCKET, key, spool)
    return True


def fetch_lists(
    stores: Iterable[AnyStore], name: str, directory: Path, read: Callable[[Mapping[str, Any]], object]
) -> dict[str, KeptList]:
    """Copy the lists of all stores into a directory, and return the newest of each catalogue.

    A store that cannot be read, and a list with a row that `read` cannot read, are logged and left out.
    """
    found: dict[str, KeptList] = {}
    for store in stores:
        for number, key in enumerate(_keys(store, name)):
            each = _fetch(store, key, directory / f"{len(found)}.{store.name}.{number}", read)
            other = found.get(each.catalogue) if each else None
            if each is not None and (other is None or other.at < each.at):
                found[each.catalogue] = each
    return found


def _keys(store: AnyStore, name: str) -> Sequence[str]:
    try:
        if store.capabilities.reserved_buckets:
            return [each.key for each in store.list_objects(PROBE_BUCKET, f"{name}/") if each.key.endswith(_SUFFIX)]
    except StorageError as error:
        logger.warning("the %s that %s keeps are not known: %s", name, store.name, error)
    return []


def _fetch(store: AnyStore, key: str, path: Path, read: Callable[[Mapping[str, Any]], object]) -> KeptList | None:
    """Copy a list to the local disk, and return it if it is whole."""
    try:
        with store.read_object(PROBE_BUCKET, key) as reader, path.open("wb") as file:
            shutil.copyfileobj(cast("BinaryIO", reader), file, _COPIED)
        with gzip.open(path, "rb") as lines:
            header = json.loads(lines.readline(_LONGEST))
            found = KeptList(str(header["catalogue"]), datetime.fromisoformat(header["at"]), path)
        for row in found.rows():
            read(row)
    except (StorageError, OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: the list %s/%s cannot be used: %s", store.name, PROBE_BUCKET, key, error)
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


def keep_tombstones(store: Store, catalogue: Catalogue, spool_dir: Path) -> bool:
    """Write the list of deletes that can be undone to a store, if it keeps another list; return whether it was written.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    return keep_list(store, _TOMBSTONES, catalogue.identity, catalogue.deletions, spool_dir)


class KeptTombstones:
    """The deletes that the stores keep, of every catalogue, by bucket and key; of each catalogue its newest list.

    They are read once from each store, onto the local disk. Memory does not grow with them.
    """

    def __init__(self, stores: Iterable[AnyStore], spool_dir: Path) -> None:
        """Read the lists. A store that cannot be read, and a damaged list, are logged and left out."""
        self._directory = tempfile.TemporaryDirectory(dir=spool_dir, prefix="zot-tombstones-")
        self._lists = fetch_lists(stores, _TOMBSTONES, Path(self._directory.name), _tombstone)
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


def keep_companions(store: Store, catalogue: Catalogue, spool_dir: Path) -> bool:
    """Write the list of named companions to a store, if it keeps another list; return whether it was written.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    return keep_list(store, _COMPANIONS, catalogue.identity, catalogue.companions, spool_dir)


def restore_companions(catalogue: Catalogue, stores: Iterable[AnyStore], spool_dir: Path) -> int:
    """Record what the stores keep about artifacts that the catalogue has, and return how many rows were new.

    Of two rows about the same artifact, the later one counts, whichever catalogue wrote it.
    """
    count = 0
    with tempfile.TemporaryDirectory(dir=spool_dir, prefix="zot-companions-") as directory:
        for each in fetch_lists(stores, _COMPANIONS, Path(directory), _companion).values():
            rows = map(_companion, each.rows())
            while some := list(islice(rows, _AT_ONCE)):
                count += catalogue.companions.restore(some)
    return count


def _companion(row: Mapping[str, Any]) -> NamedCompanion:
    return NamedCompanion(**{**row, "named_at": datetime.fromisoformat(row["named_at"])})
