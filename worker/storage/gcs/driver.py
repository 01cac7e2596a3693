"""Objects in Google Cloud Storage."""

import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from operator import attrgetter
from typing import Any

import requests
from google.cloud.storage.exceptions import DataCorruption

from worker.storage.cloud.conditional_write import check_copied, other_version
from worker.storage.cloud.driver import MARKER, CloudDriver
from worker.storage.cloud.error_mapping import missing_bucket
from worker.storage.cloud.listing import inside, is_reserved, rows_of, size_of
from worker.storage.cloud.reader import CloudReader, empty_reader
from worker.storage.cloud.response_body import HttpBody
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
    SignedPut,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    AlreadyExists,
    Conflict,
    HoldNotOffered,
    InvalidKey,
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
    UnexpectedAnswer,
)
from worker.storage.exception_boundary import exception_boundary
from worker.storage.gcs.client import (
    TIMEOUT,
    Connection,
    ObjectName,
    check_answer,
    connect,
    endpoint_of,
    list_blobs,
    retry,
)
from worker.storage.gcs.errors import SDK_ERRORS, status_of, translate, translated
from worker.storage.gcs.object_stat import METADATA, generation_of, to_stat, updated
from worker.storage.gcs.parts import MultipartWrite, iter_blobs, iter_stale_uploads
from worker.storage.gcs.requests_without_sdk import plain_reads
from worker.storage.gcs.resumable import CHUNK_UNIT, ResumableUpload
from worker.storage.gcs.upload import (
    REFUSED,
    TRIES,
    GcsWrite,
    Upload,
    checksum_of,
    delete,
    find_blob,
    rewrite,
    send_bytes,
)
from worker.storage.transfer.server_copy import Between, OnUpload

TIB = 1024**4
MAX_OBJECT = 5 * TIB
MAX_PARTS = 10_000
CLASSES = re.compile("STANDARD|NEARLINE|COLDLINE|ARCHIVE|MULTI_REGIONAL|REGIONAL|DURABLE_REDUCED_AVAILABILITY")


@exception_boundary
class GcsDriver(CloudDriver):
    """A store in Google Cloud Storage; see `FullDriver`.

    The digest is the metadata `sha256`, a version is a generation. Memory: one part, and twice that while it is passed
    to the library, whatever the size of the object.
    """

    def __init__(self, name: str, config: GcsConfig) -> None:
        super().__init__(name, config, endpoint_of(config))
        self._config = config
        self._part_size = -(-int(config.part_size) // CHUNK_UNIT) * CHUNK_UNIT
        self._composes = config.storage_class in {None, "STANDARD"} if config.compose is None else config.compose
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._plain_reads = plain_reads(config, self._connected)

    @cached_property
    def capabilities(self) -> Capabilities:
        official, without_sdk = self._config.endpoint is None, self._config.data_path == "auto"
        return replace(
            self._shared_capabilities(METADATA, official=official, without_sdk=without_sdk),
            max_object_size=MAX_OBJECT,
            parts=self._part_limits() if self._composes else None,
            storage_classes=CLASSES,
            realm=("gcs", endpoint_of(self._config), self._config.credentials_file, self._config.anonymous),
            holds_refuse_writes=True,
        )

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        """Write an object; see `Driver.put`. One that is too large for memory is sent once.

        Raises:
            Conflict: another writer was faster while the bytes of a large object without a condition were sent.
        """
        write = self._write(bucket, key, info, uuid.uuid4().hex, condition)
        upload = Upload(self._connected(), self._origin, write)
        if write.size <= self._part_size:
            return upload.whole(body)
        resumable = ResumableUpload(self._connected(), self._origin, write, self._part_size)
        return upload.commit(lambda pin: resumable.send(body, pin), again=False)

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> CloudReader:
        del uncached  # nothing of the store is cached on this machine
        for _ in range(TRIES):
            found = self._existing(bucket, key)
            stat = to_stat(self._name, bucket, key, found)
            wanted = max(0, stat.size - offset) if length is None else max(0, min(length, stat.size - offset))
            if wanted == 0:
                return empty_reader(stat, offset, length, origin=self._origin, translate=translate)
            part = None if wanted == stat.size else (offset, offset + wanted - 1)
            reply = self._download(bucket, key, found.generation, part)
            if reply is not None:
                return CloudReader(stat, wanted, HttpBody(reply.raw), origin=self._origin, translate=translate)
        raise Conflict(f"{self._name}: {bucket}/{key} is overwritten again and again while it is opened")

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return to_stat(self._name, bucket, key, self._existing(bucket, key))

    def find_version(self, bucket: str, key: str) -> str | None:
        with self._errors(f"{bucket}/{key}"):
            found = find_blob(self._connected(), self._object(bucket, key))
        return None if found is None else to_stat(self._name, bucket, key, found).version

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        was_there = False
        for _ in range(TRIES):
            try:
                found = self._existing(bucket, key)
            except NotFound:
                return was_there
            was_there = True
            if condition and found.generation != generation_of(condition):
                raise other_version(f"{self._name}: {bucket}/{key}", condition, str(found.generation))
            with self._errors(f"{bucket}/{key}"):
                if delete(self._connected(), self._object(bucket, key), found.generation):
                    return True
        raise Conflict(f"{self._name}: {bucket}/{key} is overwritten again and again while it is deleted")

    def copy(
        self,
        bucket: str,
        key: str,
        to_bucket: str,
        to_key: str,
        *,
        version: str | None = None,
        condition: Condition = None,
        storage_class: str | None = None,
    ) -> ObjectStat:
        found = self._existing(bucket, key)
        stat, writer = to_stat(self._name, bucket, key, found), uuid.uuid4().hex
        check_copied(f"{self._name}: {bucket}/{key}", stat, version)
        info = WriteInfo(stat.size, stat.sha256, storage_class=storage_class, properties=stat.properties)
        metadata = {**METADATA.stored(found.metadata), METADATA.writer: writer}
        write = self._write(to_bucket, to_key, info, writer, condition, metadata=metadata)
        connection = self._connected()
        original = connection.blob(self._object(bucket, key), found.generation)
        return Upload(connection, self._origin, write).commit(lambda pin: rewrite(connection, original, write, pin))

    def sign_put(self, bucket: str, key: str, size: int, seconds: int) -> SignedPut:
        connection, headers = self._connected(), {"x-goog-content-length-range": f"{size},{size}"}
        blob, kept = connection.blob(self._object(bucket, key)), timedelta(seconds=seconds)
        try:
            with self._errors(f"{bucket}/{key}"):
                url = blob.generate_signed_url(
                    kept, api_access_endpoint=connection.endpoint, method="PUT", headers=headers, version="v4"
                )
        except AttributeError:  # how the library says that these credentials have no private key
            raise PermanentError(
                f"{self._name}: its credentials cannot sign URLs: give the key of a service account as credentials_file"
            ) from None
        return SignedPut(url, headers)

    def offers_hold(self, bucket: str) -> bool:  # noqa: ARG002
        """Return True: Cloud Storage holds objects of every bucket; `set_hold` finds a server that does not."""
        return True

    def set_hold(self, bucket: str, key: str, *, held: bool) -> None:
        """Place a temporary hold, or end it: an event-based one would begin a retention period anew at its end."""
        blob = self._connected().blob(self._object(bucket, key))
        blob.temporary_hold = held
        with self._errors(f"{bucket}/{key}"):
            blob.patch(retry=retry(), timeout=TIMEOUT)
        if bool(blob.temporary_hold) != held:
            raise HoldNotOffered(f"{self._name}: {bucket}/{key}: the store ignores the hold")

    def delete_held(self, bucket: str, key: str) -> bool:
        name, found = self._object(bucket, key), self._existing(bucket, key)
        with self._errors(f"{bucket}/{key}"):
            try:
                delete(self._connected(), name, found.generation)
            except SDK_ERRORS as error:
                if status_of(error) != requests.codes.forbidden:
                    raise
                return False
        return True

    def location(self, bucket: str, key: str) -> ObjectName:
        return self._object(bucket, key)

    def copy_from(
        self, original: ObjectName, found: ObjectStat, info: WriteInfo, *, between: Between, begun: OnUpload
    ) -> ObjectStat:
        del begun  # no multipart upload is made
        write = self._write(found.bucket, found.key, info, uuid.uuid4().hex, "create_only")
        connection = self._connected()
        blob = connection.blob(original, int(found.version))
        upload = Upload(connection, self._origin, write)
        return upload.commit(lambda pin: rewrite(connection, blob, write, pin, between))

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        real, start = self._real(bucket)
        for blob in self._listed(real, start + prefix, start + after if after else None):
            key = blob.name.removeprefix(start)
            if key > after and not is_reserved(key):
                facts = blob._properties  # noqa: SLF001  its own attributes raise for one bad value
                yield ListedObject(key, size_of(facts.get("size")), str(facts.get("generation", "")), updated(blob))

    # Multipart uploads

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        token = uuid.uuid4().hex
        self._write(bucket, key, info, token, None)  # invalid metadata fails before a byte is sent
        try:
            self._parted(bucket, key, token).begin()
        except NotFound:
            raise missing_bucket(self._origin, self._real(bucket)[0]) from None
        return token

    def upload_part(
        self,
        bucket: str,
        key: str,
        token: str,
        number: int,
        data: PartData,
        *,
        sha256: str | None = None,
        md5: bytes | None = None,
    ) -> Part:
        del sha256, md5  # the store compares another checksum
        return self._parted(bucket, key, token).put(number, data)

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        return self._parted(bucket, key, token).parts()

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        return self._parted(bucket, key, token).complete(parts, self._write(bucket, key, info, token, condition))

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        self._parted(bucket, key, token).remove()

    # Stale uploads

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        """Yield the multipart uploads that were not completed.

        Cloud Storage does not list resumable uploads: they are invisible, cost nothing and end after a week.
        """
        for real in self._real_buckets():
            try:
                with self._errors(real):
                    yield from iter_stale_uploads(self._connected(), self._origin, real)
            except NotFound:
                if self._prefixed:
                    raise missing_bucket(self._origin, real) from None

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        real, token, what = stale.token
        return MultipartWrite(self._connected(), self._origin, real, token, what).remove()

    # The store

    def refuses_damage(self, bucket: str, key: str) -> bool:
        """Return whether the store refuses a wrong checksum.

        A store that only returns the checksum of the new bytes has replaced the object before.
        """
        connection, name = self._connected(), self._object(bucket, key)
        try:
            with self._errors(f"{bucket}/{key}"), suppress(DataCorruption):
                send_bytes(connection, name, b"x", {}, 0, crc32c=checksum_of(b"y"))
        except PreconditionFailed:  # the first request, whose answer was lost, has made the object
            return False
        except StorageError as error:
            if error.code in {"invalid", "badRequest", "400"}:
                return True
            raise
        finally:
            with self._errors(f"{bucket}/{key}"):
                found = find_blob(connection, name)
                if found is not None:
                    delete(connection, name, found.generation)
        return False

    def close(self) -> None:
        self._plain_reads.close()
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    # Real buckets

    def _real(self, bucket: str) -> tuple[str, str]:
        real, start = super()._real(bucket)
        self._check_real(real)
        return real, start

    def _is_real(self, bucket: str) -> bool:
        real = super()._is_real(bucket)
        if real:
            self._check_real(bucket)
        return real

    def _check_real(self, real: str) -> None:
        """Raise PermanentError for a name for which the library raises ValueError."""
        if not (real[0].isalnum() and real[-1].isalnum()):
            raise InvalidKey(
                f"{self._name}: bucket {real!r} is not allowed: Cloud Storage has names that start and end with a "
                "letter or a digit"
            )

    def _list_real_buckets(self) -> list[str]:
        with self._errors("its buckets"):
            listing: Any = self._connected().client.list_buckets(retry=retry(), timeout=TIMEOUT)
            return [bucket.name for bucket in rows_of(listing.pages, iter, self._origin, "its buckets")]

    def _real_bucket_exists(self, real: str) -> bool:
        return self._first_names(real, "") is not None

    def _create_real_bucket(self, real: str) -> bool:
        with self._errors(real):
            try:
                self._connected().client.create_bucket(real, retry=retry(), timeout=TIMEOUT)
            except SDK_ERRORS as error:
                if status_of(error) not in REFUSED:
                    raise
            else:
                return True
        try:
            self._first_names(real, "")
        except StorageError as error:
            raise AlreadyExists(f"{self._name}: bucket {real!r} is taken, perhaps by another project") from error
        return False

    def _first_names(self, real: str, prefix: str) -> set[str] | None:
        try:
            with self._errors(real):
                listing = list_blobs(self._connected(), real, "items(name)", prefix=prefix, max_results=2)
                rows = rows_of(listing.pages, iter, self._origin, real)
                return {blob.name for blob in inside(rows, prefix, attrgetter("name"), self._origin)}
        except NotFound:
            return None

    def _first_segments(self, real: str) -> Iterator[str]:
        with self._errors(real):
            listing = list_blobs(self._connected(), real, "prefixes,nextPageToken", delimiter="/")
            yield from rows_of(listing.pages, lambda page: page.prefixes, self._origin, real)

    def _write_marker(self, bucket: str) -> None:
        with self._errors(bucket):
            try:
                send_bytes(self._connected(), self._object(bucket, MARKER), b"", {}, 0)
            except SDK_ERRORS as error:
                if status_of(error) not in REFUSED:
                    raise

    # Requests

    def _object(self, bucket: str, key: str) -> ObjectName:
        real, start = self._real(bucket)
        return ObjectName(real, start + key)

    def _write(
        self,
        bucket: str,
        key: str,
        info: WriteInfo,
        writer: str,
        condition: Condition,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> GcsWrite:
        """Return a write; `metadata` is in place of that of `info`, as the store returned it."""
        return GcsWrite(
            bucket=bucket,
            key=key,
            size=info.size or 0,
            sha256=str(info.sha256),
            writer=writer,
            metadata=metadata or METADATA.encode(info, writer, f"{self._name}: {bucket}/{key}"),
            condition=condition,
            options={},
            properties=info.properties,
            name=self._object(bucket, key),
            storage_class=info.storage_class or self._config.storage_class,
        )

    def _part_limits(self) -> PartLimits:
        return PartLimits(self._part_size, MAX_OBJECT, MAX_PARTS, above=int(self._config.compose_above))

    def _parted(self, bucket: str, key: str, token: str) -> MultipartWrite:
        return MultipartWrite(self._connected(), self._origin, self._real(bucket)[0], token, f"{bucket}/{key}")

    def _listed(self, real: str, prefix: str, start: str | None) -> Iterator[Any]:
        """Yield the real objects of a listing; none of a logical bucket that does not exist."""
        try:
            with self._errors(real):
                yield from iter_blobs(self._connected(), self._origin, real, prefix, start)
        except NotFound:
            if self._prefixed:
                raise missing_bucket(self._origin, real) from None

    def _connected(self) -> Connection:
        """Return this process's connection, made when it is first needed."""
        with self._lock:
            if self._connection is None:
                with self._errors("the SDK"):
                    self._connection = connect(self._name, self._config)
            return self._connection

    def _existing(self, bucket: str, key: str) -> Any:
        with self._errors(f"{bucket}/{key}"):
            found = find_blob(self._connected(), self._object(bucket, key))
        if found is None:
            raise self._missing(bucket, key)
        return found

    def _download(self, bucket: str, key: str, generation: int, part: tuple[int, int] | None) -> Any | None:
        """Ask for the bytes of one generation, as they are stored; None where it has been replaced meanwhile."""
        # Unless gzip is an accepted encoding, the store returns decompressed bytes.
        headers = {"Accept-Encoding": "gzip"} | ({"Range": f"bytes={part[0]}-{part[1]}"} if part else {})

        def get() -> requests.Response:
            reply = self._connected().session.request(
                "GET",
                self._connected().download_url(self._object(bucket, key)),
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
        said = reply.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")[0]
        if part and said and said != f"{part[0]}-{part[1]}":
            reply.close()
            raise UnexpectedAnswer(
                f"{self._name}: {bucket}/{key}: bytes {part[0]}-{part[1]} were asked for, the store answers with {said}"
            )
        return reply

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return translated(self._origin, what)
