"""Objects in Azure Blob Storage."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobClient, BlobProperties, BlobServiceClient

from worker.storage.azure.blocks import new_token
from worker.storage.azure.client import endpoint_of, is_signed, make_service, realm_of, scope_of, tier_of
from worker.storage.azure.copy import Copy
from worker.storage.azure.errors import code_of, missing_container, translated
from worker.storage.azure.listing import ByteOrder, safe_start
from worker.storage.azure.objects import (
    WRITER,
    AzureReader,
    conditions,
    download,
    is_object,
    stored_metadata,
    to_metadata,
    to_stat,
    version_of,
)
from worker.storage.azure.parts import MAX_PART, MAX_PARTS, Parts, Place, limits
from worker.storage.azure.upload import Upload, Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.config import AzureConfig
from worker.storage.driver import (
    Body,
    Capabilities,
    Condition,
    ListedObject,
    Match,
    ObjectStat,
    Part,
    PartData,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    BucketNotEmpty,
    NotFound,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.keys import RESERVED_SEGMENT
from worker.storage.transfer.server_copy import Between

MARKER = f"{RESERVED_SEGMENT}bucket"
"""The key of the empty blob that keeps an empty logical bucket in existence."""
MAX_OBJECT = MAX_PART * MAX_PARTS
_PAGE = 1_000
_SINCE_START_FROM = "2026-02-06"


class AzureDriver:
    """A container of Azure Blob Storage; see `Driver` and `MultipartDriver`.

    In the layout `prefixed` one container holds everything under `bucket/key`; in `native` logical buckets are
    containers. The digest is the metadata `sha256`. Memory: one block or one chunk of a download for each thread.

    Azure has no way to keep two things apart. Completing a write of a key drops all blocks that others have staged for
    it (`PartLimits.exclusive`). And deleting a container deletes what is in it: something that others write between
    our look and the deletion is lost, unless the account keeps deleted containers for a while.
    """

    def __init__(self, name: str, config: AzureConfig) -> None:
        self._name = name
        self._config = config
        self._prefixed = config.layout == "prefixed"
        self._origin = Origin(name, endpoint_of(config), config.container if self._prefixed else None)
        self._scope = scope_of(config)
        self._parts = Parts(self._origin, self._scope, self._settings)
        # The store fetches the source by its URL: a signature would be kept with the copy, for all its readers to see.
        # And the copy would be under the container's own encryption scope.
        self._copies = not is_signed(config) and not config.encryption_scope
        self._made: BlobServiceClient | None = None
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
            max_copy_size=MAX_OBJECT if self._copies else 0,
            parts=limits(int(self._config.part_size)),
            parallel_reads=True,
            storage_classes=True,
            realm=realm_of(self._config) if self._copies else None,
        )

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        assert info.size is not None
        write = Write(bucket, key, info.size, to_metadata(info, new_token()), condition, self._settings(info))
        return Upload(self._blob(bucket, key), self._origin, write).whole(body)

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> AzureReader:
        del uncached  # nothing of the store is cached on this machine
        found = self._download(bucket, key, offset, length) if length != 0 else None
        blob = self._blob(bucket, key)
        if found is None:
            return AzureReader(blob, self._origin, self.stat(bucket, key), b"", range(0))
        properties, first = found
        end = properties.size if length is None else min(offset + length, properties.size)
        rest = range(offset + len(first), end)
        return AzureReader(blob, self._origin, to_stat(bucket, key, properties), first, rest)

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return to_stat(bucket, key, self._properties(bucket, key))

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        with translated(self._origin, f"{bucket}/{key}"):
            try:
                self._blob(bucket, key).delete_blob(**conditions(condition))
            except HttpResponseError as error:
                code = code_of(error)
                if code not in {"BlobNotFound", "ContainerNotFound", "ConditionNotMet"}:
                    raise
            else:
                return True
        if code == "ContainerNotFound" and self._prefixed:
            raise missing_container(self._origin, bucket)
        return code == "ConditionNotMet" and self._refuse_delete(bucket, key, condition)

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> ObjectStat:
        source = self._properties(bucket, key)
        if not self._copies:
            return self._copy_through_us(to_stat(bucket, key, source), to_bucket, to_key)
        copy = Copy(self._blob(to_bucket, to_key), self._origin, f"{to_bucket}/{to_key}")
        metadata = {**stored_metadata(source), WRITER: new_token()}
        found = copy.make(self._blob(bucket, key), str(source.etag), metadata, tier_of(self._config))
        return to_stat(to_bucket, to_key, found)

    def location(self, bucket: str, key: str) -> BlobClient:
        return self._blob(bucket, key)

    def copy_from(self, original: BlobClient, found: ObjectStat, info: WriteInfo, *, between: Between) -> ObjectStat:
        bucket, key = found.bucket, found.key
        copy = Copy(self._blob(bucket, key), self._origin, f"{bucket}/{key}", between)
        settings = tier_of(self._config, info.storage_class) | conditions("create_only")
        made = copy.make(original, f'"{found.version}"', to_metadata(info, new_token()), settings)
        return to_stat(bucket, key, made)

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        if after > prefix and not after.startswith(prefix):
            return
        start = safe_start(after) if after.startswith(prefix) else ""

        def rows(prefix: str, start: str) -> Iterator[ListedObject]:
            return (row for row in self._rows(bucket, prefix, start) if row.key > after)

        try:
            yield from ByteOrder(rows).sort(rows(prefix, start))
        except ValueError as error:
            raise Unavailable(f"{self._name}: {bucket}: {error}, which is no order we know") from error

    # Writes in parts

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        return self._parts.begin(self._place(bucket, key), info)

    def upload_part(self, bucket: str, key: str, token: str, number: int, data: PartData) -> Part:
        return self._parts.put(self._place(bucket, key), token, number, data)

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        return self._parts.listed(self._place(bucket, key), token)

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        return self._parts.complete(self._place(bucket, key), token, parts, info, condition=condition)

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        self._parts.abort(self._place(bucket, key), token)

    # Buckets

    def create_bucket(self, bucket: str) -> bool:
        if not self._prefixed:
            return self._make_container(bucket)
        existed = self.bucket_exists(bucket)
        with translated(self._origin, bucket):  # also beside objects, so that the bucket outlives the last of them
            self._blob(bucket, MARKER).upload_blob(b"", length=0, overwrite=True, **self._scope)
        return not existed

    def delete_bucket(self, bucket: str) -> bool:
        if not self.bucket_exists(bucket):
            return False
        if any(row.key != MARKER for row in self._all_rows(bucket, "", "")):
            raise BucketNotEmpty(f"{self._name}: bucket {bucket!r} still holds objects")
        with suppress(NotFound), translated(self._origin, bucket):
            if self._prefixed:
                self._blob(bucket, MARKER).delete_blob()
            else:
                self._service().delete_container(bucket)
        return True

    def bucket_exists(self, bucket: str) -> bool:
        if self._prefixed:
            return next(self._all_rows(bucket, "", ""), None) is not None
        return self._container_exists(bucket)

    # The store

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        for container in self._containers():
            for row in self._blobs(container, container, include=["uncommittedblobs", "metadata", "copy"]):
                yield from self._parts.stale(self._real_place(container, str(row.name)), row)

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        container, name, token = stale.token
        return self._parts.discard(self._real_place(container, name), token)

    def check(self) -> None:
        if not self._prefixed:
            self._containers()
            return
        container = str(self._config.container)
        with translated(self._origin, container):
            try:
                next(iter(self._service().get_container_client(container).list_blobs(results_per_page=1)), None)
            except HttpResponseError as error:
                if code_of(error) not in {"ContainerNotFound", "ResourceNotFound", "404"}:
                    raise
                raise missing_container(self._origin, container) from None

    def advice(self) -> list[str]:
        return []

    def close(self) -> None:
        with self._lock:
            if self._made:
                self._made.close()
            self._made = None

    def _settings(self, info: WriteInfo) -> dict[str, Any]:
        """Return the SDK's arguments for what is asked for with a whole object: its tier and its encryption."""
        return self._scope | tier_of(self._config, info.storage_class)

    # Where things are

    def _real(self, bucket: str) -> tuple[str, str]:
        """Return the container, and what stands before every key in it."""
        return (str(self._config.container), f"{bucket}/") if self._prefixed else (bucket, "")

    def _blob(self, bucket: str, key: str) -> BlobClient:
        container, start = self._real(bucket)
        return self._service().get_blob_client(container, start + key)

    def _place(self, bucket: str, key: str) -> Place:
        return Place(self._blob(bucket, key), bucket, key)

    def _real_place(self, container: str, name: str) -> Place:
        bucket, _, key = name.partition("/") if self._prefixed else (container, "", name)
        return Place(self._service().get_blob_client(container, name), bucket, key)

    def _service(self) -> BlobServiceClient:
        with self._lock:
            if self._made is None:
                self._made = make_service(self._config, self._origin)
            return self._made

    # Requests

    def _properties(self, bucket: str, key: str) -> BlobProperties:
        with translated(self._origin, f"{bucket}/{key}"):
            try:
                found = self._blob(bucket, key).get_blob_properties()
            except HttpResponseError as error:
                if error.status_code != HTTPStatus.NOT_FOUND:
                    raise
                raise self._missing(bucket, key, code_of(error)) from None
        if not is_object(found):
            raise self._missing(bucket, key, "BlobNotFound")
        return found

    def _download(self, bucket: str, key: str, offset: int, length: int | None) -> tuple[BlobProperties, bytes] | None:
        """Ask for the first chunk of a range; return None where the range is past the end."""
        with translated(self._origin, f"{bucket}/{key}"):
            try:
                found = download(self._blob(bucket, key), offset, length)
            except HttpResponseError as error:
                if code_of(error) in {"InvalidRange", "416"}:
                    return None
                if error.status_code != HTTPStatus.NOT_FOUND:
                    raise
                raise self._missing(bucket, key, code_of(error)) from None
        if not is_object(found[0]):
            raise self._missing(bucket, key, "BlobNotFound")
        return found

    def _missing(self, bucket: str, key: str, code: str) -> StorageError:
        """Return what is missing: only Azure's own code for a blob says that it is the blob."""
        container, _ = self._real(bucket)
        if code == "BlobNotFound" or (code != "ContainerNotFound" and self._container_exists(container)):
            return NotFound(f"{self._name}: {bucket}/{key} does not exist")
        return missing_container(self._origin, container)

    def _refuse_delete(self, bucket: str, key: str, condition: Match | None) -> bool:
        """Say why a conditional delete was refused; return False where nothing is there to be deleted."""
        try:
            found = self.stat(bucket, key).version
        except NotFound:
            return False
        wanted = condition.version if condition else None
        raise PreconditionFailed(f"{self._name}: {bucket}/{key} was expected in version {wanted}, {found} is there")

    def _rows(self, bucket: str, prefix: str, start: str) -> Iterator[ListedObject]:
        return (row for row in self._all_rows(bucket, prefix, start) if f"/{RESERVED_SEGMENT}" not in f"/{row.key}")

    def _all_rows(self, bucket: str, prefix: str, start: str) -> Iterator[ListedObject]:
        """Yield the objects of a bucket as Azure lists them, our own included, from `start` on if it is given."""
        container, begin = self._real(bucket)
        seek = {"start_from": begin + start} if start and self._config.api_version >= _SINCE_START_FROM else {}
        wanted = {"name_starts_with": begin + prefix, "include": ["metadata", "copy"], **seek}
        for blob in self._blobs(container, bucket, **wanted):
            if is_object(blob):
                key = str(blob.name).removeprefix(begin)
                yield ListedObject(key, blob.size, version_of(str(blob.etag)), blob.last_modified)

    def _blobs(self, container: str, what: str, **wanted: Any) -> Iterator[BlobProperties]:
        """Yield the pages of a listing as they are needed; none for a logical bucket that does not exist."""
        client = self._service().get_container_client(container)
        try:
            with translated(self._origin, what):
                yield from client.list_blobs(results_per_page=_PAGE, response_format="xml", **wanted)
        except NotFound:
            if self._prefixed:
                raise missing_container(self._origin, container) from None

    # Containers

    def _containers(self) -> list[str]:
        if self._prefixed:
            return [str(self._config.container)]
        with translated(self._origin, "its containers"):
            return [str(found.name) for found in self._service().list_containers()]

    def _container_exists(self, container: str) -> bool:
        with translated(self._origin, container):
            try:
                self._service().get_container_client(container).get_container_properties()
            except HttpResponseError as error:
                if error.status_code != HTTPStatus.NOT_FOUND:
                    raise
                return False
        return True

    def _make_container(self, container: str) -> bool:
        with translated(self._origin, container):
            try:
                self._service().create_container(container)
            except HttpResponseError as error:
                if code_of(error) != "ContainerAlreadyExists":
                    raise
                return False
        return True

    def _copy_through_us(self, source: ObjectStat, to_bucket: str, to_key: str) -> ObjectStat:
        """Copy what is small enough for one request, which `capabilities` say is nothing but empty objects."""
        info = WriteInfo(source.size, source.sha256, source.metadata)
        with self.open(source.bucket, source.key) as reader:
            return self.put(to_bucket, to_key, VerifyingReader(reader, size=source.size), info)
