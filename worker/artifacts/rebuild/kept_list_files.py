"""The files in which stores keep lists of rows that only the catalogue has: a header and lines of JSON, compressed."""

import gzip
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from worker import clock
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
