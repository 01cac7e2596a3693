"""The bytes of an upload as objects of a store: a client writes each part with a signed URL, and the job reads them.

A client that shares no disk with the workers, and has no credentials of a store, sends bytes past the gateway. The part
`00001` and on of an upload are objects under its id, which is that of its job, in the bucket `zot-uploads`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from tempfile import TemporaryFile
from typing import NamedTuple

from worker.artifacts.sources import Source, SourceRefused
from worker.limits.limited_store import AnyStore
from worker.settings import Settings
from worker.storage import Store
from worker.storage.driver import BUFFER_SIZE, ListedObject, SignedPut
from worker.storage.errors import NotFound, SizeMismatch
from worker.storage.filesystem.open_without_symlinks import translate
from worker.storage.integrity.verifying_reader import write_at
from worker.storage.keys import UPLOADS_BUCKET
from worker.storage.spooling import spooling_in

SCHEME = "staged"
MIB = 1024 * 1024
PART = 64 * MIB
"""Bytes of a part, the last one excepted."""
_MOST = 10_000
"""Parts of an upload, above which parts are larger."""
_PART = re.compile(r"([^/]+)/[0-9]{5}")
"""The key of a part; an object with another key is not ours to remove."""


@dataclass(frozen=True, slots=True)
class PartRange:
    """The bytes of one part."""

    number: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class StagedParts:
    """The parts of one upload in a store."""

    upload: str
    size: int

    def all(self) -> list[PartRange]:
        """Return the parts; an empty artifact has one."""
        part = max(PART, -(-self.size // _MOST // MIB) * MIB)
        offsets = range(0, max(self.size, 1), part)
        return [PartRange(n, offset, min(part, self.size - offset)) for n, offset in enumerate(offsets, 1)]

    def missing(self, store: AnyStore) -> list[PartRange]:
        """Return the parts that the store does not have in their size."""
        there = {row.key: row.size for row in store.list_objects(UPLOADS_BUCKET, f"{self.upload}/")}
        return [part for part in self.all() if there.get(self._key(part)) != part.size]

    def sign(self, store: Store, part: PartRange, seconds: int) -> SignedPut:
        """Return the request that writes a part. Raise PermanentError: the store cannot sign it."""
        return store.sign_put(UPLOADS_BUCKET, self._key(part), part.size, seconds)

    def _key(self, part: PartRange) -> str:
        return f"{self.upload}/{part.number:05}"


class StagedSource(NamedTuple):
    """A source that is parts in a store. `size`: bytes of all parts, None in the messages of earlier versions."""

    store: str
    upload: str
    size: int | None


def source_of(store: str, upload: str, size: int) -> str:
    """Return the source of an upload whose parts are in a store."""
    return f"{SCHEME}://{store}/{upload}/{size}"


def read_source(source: str) -> StagedSource:
    """Parse a source that `source_of` returned."""
    store, upload, size = (*source.removeprefix(f"{SCHEME}://").split("/", 2), "", "")[:3]
    return StagedSource(store, upload, int(size) if size.isdecimal() else None)


def is_staged_in_store(source: str) -> bool:
    """Return whether a source is parts in a store."""
    return source.startswith(f"{SCHEME}://")


@contextmanager
def assembled(
    source: str, stores: Mapping[str, AnyStore], settings: Settings, *, job: str, heartbeat: Callable[[], object]
) -> Iterator[Source]:
    """Yield the bytes of all parts; their digest is compared by the caller.

    A signed URL of Azure takes a part of any size as long as it is valid, so no more bytes are spooled than announced.

    Raises:
        SourceRefused: the parts are those of another job.
        SizeMismatch: they have more or fewer bytes than were announced.
        NotFound: there are none.
        OutOfSpace: the data directory has no space left.
        PermanentError: no file can be made in its spool directory.
    """
    store, announced = _store_of(source, stores, job), read_source(source).size
    with ExitStack() as held:
        with spooling_in(settings.spool_dir):
            file = held.enter_context(TemporaryFile(dir=settings.spool_dir))
        rows, offset = list(store.list_objects(UPLOADS_BUCKET, f"{job}/")), 0
        if not rows:
            raise NotFound(f"source {source}: {store.name} has no part of it: it has expired, send it again")
        _check_size(source, sum(row.size or 0 for row in rows), announced, complete=False)
        for row in rows:
            with store.read_object(UPLOADS_BUCKET, row.key) as reader:
                _check_size(source, offset + reader.stat.size, announced, complete=row is rows[-1])
                while piece := reader.read(BUFFER_SIZE):
                    try:
                        write_at(file.fileno(), memoryview(piece), offset)
                    except OSError as error:
                        raise translate(error, f"source {source}: its parts", settings.spool_dir) from error
                    offset += len(piece)
                    heartbeat()
        yield Source(source, file, offset)


def _check_size(source: str, size: int, announced: int | None, *, complete: bool = True) -> None:
    if announced is not None and (size > announced or (complete and size < announced)):
        raise SizeMismatch(
            f"source {source}: its parts have {size} bytes, not the announced {announced}; send it again"
        )


def remove_parts(source: str, stores: Mapping[str, AnyStore], *, job: str) -> None:
    """Remove the parts of a job that has ended, and of no other one.

    Raises:
        StorageError, Snooze: some stay for the sweep.
    """
    try:
        store = _store_of(source, stores, job)
    except (SourceRefused, KeyError):
        return
    for row in list(store.list_objects(UPLOADS_BUCKET, f"{job}/")):
        store.delete_object(UPLOADS_BUCKET, row.key)


def old_uploads(store: AnyStore, before: datetime) -> dict[str, list[ListedObject]]:
    """Return the parts of uploads that got no part after a time, by the ids of the uploads."""
    found: dict[str, list[ListedObject]] = {}
    young = set[str]()
    for row in store.list_objects(UPLOADS_BUCKET):
        if (part := _PART.fullmatch(row.key)) is None:
            continue
        upload = part[1]
        found.setdefault(upload, []).append(row)
        if row.modified > before:
            young.add(upload)
    return {upload: rows for upload, rows in found.items() if upload not in young}


def _store_of(source: str, stores: Mapping[str, AnyStore], job: str) -> AnyStore:
    found = read_source(source)
    if found.upload != job:
        raise SourceRefused(f"source {source}: it belongs to another job")
    return stores[found.store]
