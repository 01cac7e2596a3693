"""Multipart uploads on Cloud Storage: part objects that are composed, with a condition on the result.

Everything of one write is under `.zot-parts/TOKEN/`: the empty object `00000` marks the write as open and has its
target; `00001` and on are its parts; `join-…` are intermediate compositions. All of it is hidden from listings by its
name. The token is also the writer's token of the finished object.
"""

import base64
import itertools
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.listing import inside, rows_of
from worker.storage.cloud.metadata import UNKNOWN_TIME
from worker.storage.driver import ObjectStat, Part, PartData, StaleUpload
from worker.storage.errors import Conflict, SizeMismatch, StorageError, UploadEnded
from worker.storage.gcs.client import COMMIT_TIMEOUT, Connection, ObjectName, check_answer, list_blobs, retry
from worker.storage.gcs.errors import SDK_ERRORS, status_of, translated
from worker.storage.gcs.object_stat import blob_of, described, to_stat
from worker.storage.gcs.upload import REFUSED, TRIES, GcsWrite, Upload, checksum_of, delete, find_blob, send_bytes
from worker.storage.keys import RESERVED_SEGMENT
from worker.storage.transfer.split_into_parts import md5_of

ROOT = f"{RESERVED_SEGMENT}parts/"
OPENING = "00000"
OF = "zot-key"
"""In the metadata of the opening object: the bucket and key of the write."""
MAX_SOURCES = 32
"""Of one composition."""
THREADS = 8

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class MultipartWrite:
    """One multipart upload, open or not: its real bucket, its token, and its target for messages."""

    def __init__(self, connection: Connection, origin: Origin, real: str, token: str, what: str) -> None:
        self._connection = connection
        self._origin = origin
        self._real = real
        self._token = token
        self._what = what

    def begin(self) -> None:
        """Open the write.

        Raises:
            NotFound: the bucket does not exist.
        """
        with self._errors():
            self._send(OPENING, b"", {OF: self._what})

    def put(self, number: int, data: PartData) -> Part:
        """Send one part, and delete it again if the upload was ended meanwhile, because no cleanup would find it."""
        with self._errors():
            blob = self._send(f"{number:05}", data, {})
            if find_blob(self._connection, self._name_of(OPENING)) is None:
                delete(self._connection, self._name_of(f"{number:05}"), blob.generation)
                raise self._not_open()
        return Part(number, len(data), str(blob.generation))

    def parts(self) -> list[Part]:
        """Return the parts in the store."""
        with self._errors():
            blobs = {_short(blob): blob for blob in self._blobs()}
        if OPENING not in blobs:
            raise self._not_open()
        numbers = sorted(int(name) for name in blobs if name.isdecimal() and name != OPENING)
        there = ((number, blobs[f"{number:05}"]) for number in numbers)
        return [Part(number, int(blob.size), str(blob.generation)) for number, blob in there]

    def complete(self, parts: Sequence[Part], write: GcsWrite) -> ObjectStat:
        """Compose the parts to the object, and remove them. A second call finds the object of the first one."""
        upload = Upload(self._connection, self._origin, write)
        found = upload.found()
        if upload.is_ours(found):
            stat = to_stat(self._origin.store, write.bucket, write.key, found)
        else:
            self._check(parts, write)
            upload.check_condition(found)
            stat = upload.commit(self._composing(parts, write))
        try:
            self.remove()
        except StorageError as error:  # the object is complete; iter_stale_uploads finds the remaining parts
            log.warning("parts of a completed upload stay for now: %s", error)
        return stat

    def remove(self) -> bool:
        """End the write and delete everything under its token; return whether anything was there.

        The opening goes first: a process that still sends a part then sees that the upload is over,
        and deletes the part.
        """
        with self._errors():
            opening = find_blob(self._connection, self._name_of(OPENING))
            if opening is not None:
                delete(self._connection, self._name_of(OPENING), opening.generation)
            rest = [(self._name_of(_short(blob)), blob.generation) for blob in self._blobs()]
            _at_once(lambda item: delete(self._connection, *item), rest)
            return opening is not None or bool(rest)

    # How

    def _name_of(self, name: str) -> ObjectName:
        return ObjectName(self._real, f"{ROOT}{self._token}/{name}")

    def _blobs(self) -> Iterator[Any]:
        return iter_blobs(self._connection, self._origin, self._real, f"{ROOT}{self._token}/")

    def _send(self, name: str, data: PartData, metadata: Mapping[str, str]) -> Any:
        """Send a part as a new object, or over exactly the existing one if that has other bytes."""
        part, pin = self._name_of(name), 0
        description = described(metadata, self._connection.storage_class)  # composing takes objects of one class only
        for _ in range(TRIES):
            try:
                return send_bytes(self._connection, part, data, description, pin)
            except SDK_ERRORS as error:
                if status_of(error) not in REFUSED:
                    raise
            found = find_blob(self._connection, part)
            if found is not None and _holds(found, data):
                return found  # sent before; only the answer was lost
            pin = found.generation if found else 0
        raise Conflict(f"{self._origin.store}: {self._what}: part {int(name)} is being sent by another process")

    def _check(self, parts: Sequence[Part], write: GcsWrite) -> None:
        """Raise if the store does not have exactly these parts."""
        there = set(self.parts())
        missing = [str(part.number) for part in parts if part not in there]
        where = f"{self._origin.store}: {self._what}"
        if missing or not parts:
            raise UploadEnded(f"{where}: part {', '.join(missing) or '1'} is missing, or was replaced since")
        if (size := sum(part.size for part in parts)) != write.size:
            raise SizeMismatch(f"{where}: the parts have {size} bytes, not the announced {write.size}")

    def _composing(self, parts: Iterable[Part], write: GcsWrite) -> Callable[[int], Any]:
        """Return the function that composes the object; intermediate compositions are made at its first call only."""
        sources = [(f"{part.number:05}", int(part.tag)) for part in parts]
        joined: list[list[tuple[str, int]]] = []

        def compose(pin: int) -> Any:
            if not joined:
                joined.append(self._join(sources))
            return self._compose(write.name, joined[0], pin, write.description)

        return compose

    def _join(self, sources: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Compose groups of sources, and groups of those, until one composition can take all that are left."""
        while len(sources) > MAX_SOURCES:
            groups = [sources[start : start + MAX_SOURCES] for start in range(0, len(sources), MAX_SOURCES)]
            sources = _at_once(self._join_group, groups)
        return sources

    def _join_group(self, group: Sequence[tuple[str, int]]) -> tuple[str, int]:
        name = f"join-{uuid.uuid4().hex}"
        try:
            blob = self._compose(self._name_of(name), group, 0, described({}, self._connection.storage_class))
        except SDK_ERRORS as error:
            blob = find_blob(self._connection, self._name_of(name)) if status_of(error) in REFUSED else None
            if blob is None:
                raise
        return name, blob.generation  # only this write uses the name, so its answer was lost

    def _compose(self, target: ObjectName, sources: Sequence[tuple[str, int]], pin: int, destination: Any) -> Any:
        """Compose an object of exactly these generations. The library's own call does not pass the encryption key."""
        pinned: Any = [
            {"name": self._name_of(name).name, "generation": str(generation)} for name, generation in sources
        ]

        def ask() -> Any:
            reply = self._connection.session.request(
                "POST",
                f"{self._connection.object_url(target)}/compose",
                params=self._connection.pinned(pin),
                json={"sourceObjects": pinned, "destination": destination},
                timeout=COMMIT_TIMEOUT,
            )
            check_answer(reply)
            return blob_of(reply)

        return retry()(ask)()

    def _not_open(self) -> StorageError:
        return UploadEnded(f"{self._origin.store}: {self._what}: the multipart upload is not open any more")

    def _errors(self) -> AbstractContextManager[None]:
        return translated(self._origin, self._what)


def iter_stale_uploads(connection: Connection, origin: Origin, real: str) -> Iterator[StaleUpload]:
    """Yield the multipart uploads of a real bucket that are open, or that left objects."""
    for token, group in itertools.groupby(
        iter_blobs(connection, origin, real, ROOT), key=lambda blob: blob.name.split("/")[1]
    ):
        blobs = [(_created(blob), blob.metadata) for blob in group]
        since, metadata = min(blobs, key=itemgetter(0))[0], blobs[0][1]
        what = (metadata or {}).get(OF, f"{real}/{ROOT}{token}")
        yield StaleUpload(f"multipart upload of {what}", since, (real, token, what))


def iter_blobs(
    connection: Connection, origin: Origin, real: str, prefix: str, start: str | None = None
) -> Iterator[Any]:
    """Yield real objects, by the bytes of their names, from `start` on; pages are fetched as they are needed."""
    fields = "items(name,size,generation,updated,timeCreated,metadata),nextPageToken"
    listing = list_blobs(connection, real, fields, prefix=prefix, start_offset=start)
    rows = rows_of(listing.pages, iter, origin, f"{real}/{prefix}")
    yield from inside(rows, prefix, attrgetter("name"), origin)


def _created(blob: Any) -> datetime:
    try:
        return blob.time_created or UNKNOWN_TIME
    except (ValueError, OverflowError):
        return UNKNOWN_TIME


def _short(blob: Any) -> str:
    return str(blob.name).rpartition("/")[2]


def _holds(blob: Any, data: PartData) -> bool:
    """Return whether an object has these bytes, by the size and checksums of the store.

    The CRC32C alone is too little: it is easy to find other bytes that have the same one.
    """
    found, md5 = (blob.size, blob.crc32c, blob.md5_hash), base64.b64encode(md5_of(data)).decode()
    return found == (len(data), checksum_of(data), md5)


def _at_once(do: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="gcs") as pool:
        return list(pool.map(do, items))
