"""Objects in Google Cloud Storage."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import requests

from worker.storage.cloud.error_mapping import Origin, missing_bucket
from worker.storage.config import GcsConfig
from worker.storage.driver import (
    Body,
    Capabilities,
    Condition,
    ListedObject,
    Match,
    ObjectStat,
    Part,
    PartData,
    PartLimits,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    AlreadyExists,
    BucketNotEmpty,
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from worker.storage.gcs import buckets
from worker.storage.gcs.client import (
    TIMEOUT,
    Connection,
    Place,
    check_answer,
    connect,
    endpoint_of,
    retry,
)
from worker.storage.gcs.copy import rewrite
from worker.storage.gcs.errors import SDK_ERRORS, status_of, translated
from worker.storage.gcs.objects import WRITER, GcsReader, generation_of, stored_metadata, to_metadata, to_stat
from worker.storage.gcs.parts import MultipartWrite, iter_blobs, iter_stale_uploads
from worker.storage.gcs.resumable import CHUNK_UNIT, ResumableUpload
from worker.storage.gcs.upload import REFUSED, TRIES, Upload, Write, delete, look, send_bytes
from worker.storage.keys import RESERVED_SEGMENT
from worker.storage.transfer.server_copy import Between

MARKER = f"{RESERVED_SEGMENT}bucket"
"""The key of the empty object that keeps an empty logical bucket in existence."""
TIB = 1024**4
MAX_OBJECT = 5 * TIB
MAX_PARTS = 10_000


class GcsDriver:
    """A store in Google Cloud Storage; see `Driver` and `MultipartDriver`.

    In the layout `prefixed` one real bucket holds everything under `bucket/key`; in `native` logical buckets are real.
    The digest is the metadata `sha256`, a version is a generation. Memory: one part, twice for the moment in which it
    is handed to the library, whatever the size of the object.
    """

    def __init__(self, name: str, config: GcsConfig) -> None:
        self._name = name
        self._config = config
        self._prefixed = config.layout == "prefixed"
        self._origin = Origin(name, endpoint_of(config), config.bucket if self._prefixed else None)
        self._part_size = -(-int(config.part_size) // CHUNK_UNIT) * CHUNK_UNIT
        self._composes = config.storage_class in {None, "STANDARD"} if config.compose is None else config.compose
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            needs_digest_first=True,
            conditional_writes=True,
            implicit_buckets=self._prefixed,
            prefix_keys=True,
            user_metadata=True,
            max_object_size=MAX_OBJECT,
            max_copy_size=MAX_OBJECT,
            parts=self._part_limits() if self._composes else None,
            storage_classes=True,
            parallel_reads=True,
            realm=("gcs", endpoint_of(self._config), self._config.credentials_file, self._config.anonymous),
        )

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        """Write an object; see `Driver.put`. One that is too large for memory is sent once.

        Raises:
            Unavailable: of a large object without a condition, somebody else was faster while its bytes were sent.
        """
        write = self._write(bucket, key, info, uuid.uuid4().hex, condition)
        upload = Upload(self._connected(), self._origin, write)
        if write.size <= self._part_size:
            return upload.whole(body)
        resumable = ResumableUpload(self._connected(), self._origin, write, self._part_size)
        return upload.commit(lambda pin: resumable.send(body, pin), again=False)

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> GcsReader:
        del uncached  # nothing of the store is cached on this machine
        for _ in range(TRIES):
            found = self._look(bucket, key)
            stat = to_stat(bucket, key, found)
            wanted = max(0, stat.size - offset) if length is None else max(0, min(length, stat.size - offset))
            if wanted == 0:
                return GcsReader(stat, None, 0, self._origin)
            part = None if wanted == stat.size else (offset, offset + wanted - 1)
            reply = self._download(bucket, key, found.generation, part)
            if reply is not None:
                return GcsReader(stat, reply, wanted, self._origin)
        raise Unavailable(f"{self._name}: {bucket}/{key} is overwritten again and again while it is opened")

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return to_stat(bucket, key, self._look(bucket, key))

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        for _ in range(TRIES):
            try:
                found = self._look(bucket, key)
            except NotFound:
                return False
            if condition and found.generation != generation_of(condition):
                raise PreconditionFailed(
                    f"{self._name}: {bucket}/{key} was expected in version {condition.version}, "
                    f"{found.generation} is there"
                )
            with self._errors(f"{bucket}/{key}"):
                if delete(self._connected(), self._place(bucket, key), found.generation):
                    return True
        raise Unavailable(f"{self._name}: {bucket}/{key} is overwritten again and again while it is deleted")

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> ObjectStat:
        found = self._look(bucket, key)
        metadata = {**stored_metadata(found), WRITER: uuid.uuid4().hex}
        write = Write(
            to_bucket,
            to_key,
            self._place(to_bucket, to_key),
            int(found.size),
            metadata,
            None,
            self._config.storage_class,
        )
        connection = self._connected()
        original = connection.blob(self._place(bucket, key), found.generation)
        return Upload(connection, self._origin, write).commit(lambda pin: rewrite(connection, original, write, pin))

    def location(self, bucket: str, key: str) -> Place:
        return self._place(bucket, key)

    def copy_from(self, original: Place, found: ObjectStat, info: WriteInfo, *, between: Between) -> ObjectStat:
        write = self._write(found.bucket, found.key, info, uuid.uuid4().hex, "create_only")
        connection = self._connected()
        blob = connection.blob(original, int(found.version))
        upload = Upload(connection, self._origin, write)
        return upload.commit(lambda pin: rewrite(connection, blob, write, pin, between))

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        real, start = self._real(bucket)
        for blob in self._listed(real, start + prefix, start + after if after else None):
            key = blob.name.removeprefix(start)
            if key > after and f"/{RESERVED_SEGMENT}" not in f"/{key}":
                yield ListedObject(key, int(blob.size), str(blob.generation), blob.updated)

    # Writes in parts

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        token = uuid.uuid4().hex
        to_metadata(info, token)  # what cannot be kept is refused before a byte is sent
        try:
            self._parted(bucket, key, token).begin()
        except NotFound:
            raise missing_bucket(self._origin, self._real(bucket)[0]) from None
        return token

    def upload_part(self, bucket: str, key: str, token: str, number: int, data: PartData) -> Part:
        return self._parted(bucket, key, token).put(number, data)

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        return self._parted(bucket, key, token).parts()

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        write = self._write(bucket, key, info, token, condition)
        return self._parted(bucket, key, token).complete(parts, write)

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        self._parted(bucket, key, token).remove()

    # Buckets

    def create_bucket(self, bucket: str) -> bool:
        if not self._prefixed:
            return self._make_real_bucket(bucket)
        existed = self.bucket_exists(bucket)
        with self._errors(bucket):  # also beside objects, so that the bucket outlives the last of them
            try:
                send_bytes(self._connected(), self._place(bucket, MARKER), b"", {}, 0)
            except SDK_ERRORS as error:
                if status_of(error) not in REFUSED:
                    raise
        return not existed

    def delete_bucket(self, bucket: str) -> bool:
        real, start = self._real(bucket)
        marker = self._place(bucket, MARKER)
        names = self._first_names(real, start)
        if names and names - {marker.name}:
            raise BucketNotEmpty(f"{self._name}: bucket {bucket!r} still holds objects, or parts of unfinished ones")
        if not self._prefixed:
            with self._errors(bucket):
                return buckets.delete(self._connected().client, self._origin, bucket)
        if names:
            with self._errors(bucket):
                found = look(self._connected(), marker)
                return found is not None and delete(self._connected(), marker, found.generation)
        return False

    def bucket_exists(self, bucket: str) -> bool:
        names = self._first_names(*self._real(bucket))
        return bool(names) if self._prefixed else names is not None

    # The store

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        """Yield the writes in parts that were not completed.

        Cloud Storage lists no resumable upload that was begun: those are invisible, cost nothing and end after a week.
        """
        for real in self._real_buckets():
            try:
                with self._errors(real):
                    yield from iter_stale_uploads(self._connected(), real)
            except NotFound as error:
                if self._prefixed:
                    raise missing_bucket(self._origin, real) from error

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        real, token, what = stale.token
        return MultipartWrite(self._connected(), self._origin, real, token, what).remove()

    def check(self) -> None:
        if self._prefixed:  # a listing: to ask for the bucket itself takes a right that nothing else here needs
            self._first_names(str(self._config.bucket), "")
        else:
            self._real_buckets()

    def advice(self) -> list[str]:
        return []

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    # Where things are

    def _real(self, bucket: str) -> tuple[str, str]:
        """Return the real bucket, and what stands before every key in it."""
        return (str(self._config.bucket), f"{bucket}/") if self._prefixed else (bucket, "")

    def _place(self, bucket: str, key: str) -> Place:
        real, start = self._real(bucket)
        return Place(real, start + key)

    def _write(self, bucket: str, key: str, info: WriteInfo, writer: str, condition: Condition) -> Write:
        assert info.size is not None
        storage_class = info.storage_class or self._config.storage_class
        place, metadata = self._place(bucket, key), to_metadata(info, writer)
        return Write(bucket, key, place, info.size, metadata, condition, storage_class)

    def _part_limits(self) -> PartLimits:
        return PartLimits(self._part_size, MAX_OBJECT, MAX_PARTS, above=int(self._config.compose_above))

    def _parted(self, bucket: str, key: str, token: str) -> MultipartWrite:
        return MultipartWrite(self._connected(), self._origin, self._real(bucket)[0], token, f"{bucket}/{key}")

    def _first_names(self, real: str, prefix: str) -> set[str] | None:
        """Return the first two real names that start with `prefix`, or None where there is no such real bucket."""
        try:
            with self._errors(real):
                blobs = self._connected().client.list_blobs(
                    real, prefix=prefix, max_results=2, fields="items(name)", retry=retry(), timeout=TIMEOUT
                )
                return {blob.name for blob in blobs}
        except NotFound as error:
            if self._prefixed:
                raise missing_bucket(self._origin, real) from error
            return None

    def _listed(self, real: str, prefix: str, start: str | None) -> Iterator[Any]:
        """Yield the real objects of a listing; none of a logical bucket that does not exist."""
        try:
            with self._errors(real):
                yield from iter_blobs(self._connected(), real, prefix, start)
        except NotFound as error:
            if self._prefixed:
                raise missing_bucket(self._origin, real) from error

    def _real_buckets(self) -> list[str]:
        if self._prefixed:
            return [str(self._config.bucket)]
        with self._errors("its buckets"):
            return [bucket.name for bucket in self._connected().client.list_buckets(retry=retry(), timeout=TIMEOUT)]

    def _make_real_bucket(self, real: str) -> bool:
        with self._errors(real):
            if buckets.make(self._connected().client, real):
                return True
        try:
            self._first_names(real, "")
        except StorageError as error:
            raise AlreadyExists(f"{self._name}: bucket {real!r} is taken, perhaps by another project") from error
        return False

    # Requests

    def _connected(self) -> Connection:
        """Return this process's connection, made when it is first needed."""
        with self._lock:
            if self._connection is None:
                with self._errors("the SDK"):
                    self._connection = connect(self._name, self._config)
            return self._connection

    def _look(self, bucket: str, key: str) -> Any:
        with self._errors(f"{bucket}/{key}"):
            found = look(self._connected(), self._place(bucket, key))
        if found is None:
            raise self._missing(bucket, key)
        return found

    def _download(self, bucket: str, key: str, generation: int, part: tuple[int, int] | None) -> Any | None:
        """Ask for the bytes of one generation, as they are stored; None where it has been replaced meanwhile."""
        # To whoever does not say that gzip is welcome, the store hands out decompressed bytes.
        headers = {"Accept-Encoding": "gzip"} | ({"Range": f"bytes={part[0]}-{part[1]}"} if part else {})

        def get() -> requests.Response:
            reply = self._connected().session.request(
                "GET",
                self._connected().download_url(self._place(bucket, key)),
                params={"alt": "media", "generation": str(generation)},
                headers=headers,
                timeout=TIMEOUT,
                stream=True,
            )
            check_answer(reply)
            return reply

        with self._errors(f"{bucket}/{key}"):
            try:
                reply = retry()(get)()
            except SDK_ERRORS as error:
                if status_of(error) == requests.codes.not_found:
                    return None
                raise
        if part and reply.status_code != requests.codes.partial_content:
            reply.close()
            raise PermanentError(f"{self._name}: {bucket}/{key}: the store ignores that a range was asked for")
        return reply

    def _missing(self, bucket: str, key: str) -> StorageError:
        """Return what is missing: the answer does not tell an object from its bucket."""
        real, _ = self._real(bucket)
        if self._first_names(real, "") is None:
            return missing_bucket(self._origin, real)
        return NotFound(f"{self._name}: {bucket}/{key} does not exist")

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return translated(self._origin, what)
