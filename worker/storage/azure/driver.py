"""Objects in Azure Blob Storage."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from hashlib import sha256
from http import HTTPStatus
from itertools import islice
from operator import attrgetter
from typing import Any, cast

from azure.core.credentials import TokenCredential
from azure.core.exceptions import DecodeError, HttpResponseError, ResourceNotFoundError
from azure.storage.blob import (
    BlobClient,
    BlobProperties,
    BlobSasPermissions,
    BlobServiceClient,
    ContentSettings,
    generate_blob_sas,
)

from worker import clock
from worker.storage.azure.block_names import new_block, new_token
from worker.storage.azure.client import (
    TIERS,
    endpoint_of,
    is_azure,
    is_signed,
    make_service,
    realm_of,
    scope_of,
    tier_of,
)
from worker.storage.azure.copy import Copy
from worker.storage.azure.errors import code_of, translate, translated
from worker.storage.azure.object_stat import (
    METADATA,
    conditions,
    download,
    is_object,
    to_stat,
    version_of,
    writer_of,
)
from worker.storage.azure.parts import MAX_PART, MAX_PARTS, Parts, Target, limits
from worker.storage.azure.requests_without_sdk import headers_of, plain_reads, plain_writes
from worker.storage.azure.sorted_listing import ByteOrder, safe_start
from worker.storage.azure.upload import Upload
from worker.storage.cloud.conditional_write import Write, check_copied, other_version
from worker.storage.cloud.driver import MARKER, CloudDriver
from worker.storage.cloud.error_mapping import missing_bucket
from worker.storage.cloud.listing import (
    check_size,
    inside,
    is_document,
    is_reserved,
    listed_version,
    rows_of,
    without_malformed,
)
from worker.storage.cloud.metadata import UNKNOWN_TIME, set_properties
from worker.storage.cloud.object_tags import decode_tags
from worker.storage.cloud.reader import CloudReader, empty_reader
from worker.storage.cloud.response_body import HttpBody
from worker.storage.cloud.small_writes import AHEAD, AHEAD_SIZE, BegunPut, WritesAhead
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
    SignedPut,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    Conflict,
    HoldNotOffered,
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from worker.storage.exception_boundary import exception_boundary
from worker.storage.integrity.verifying_reader import VerifyingReader, drain
from worker.storage.transfer.server_copy import Between, OnUpload
from worker.storage.transfer.split_into_parts import md5_of, whole_body

IMPOSSIBLE_KEYS = re.compile(r"\\|\.(?:/|$)")
"""Azure reads a backslash as a slash, and drops a dot at the end of a segment, so that such a key would name another
blob.
"""
MAX_OBJECT = MAX_PART * MAX_PARTS
_TAGS = re.compile(r"[A-Za-z0-9 +\-./:=_]*")
_PAGE = 1_000
_READABLE = {"Content-Length": check_size, "Last-Modified": parsedate_to_datetime, "MaxResults": check_size}
_PROPERTIES = re.compile(rb"<Properties>(.*?)</Properties>", re.DOTALL)
_NEEDED = re.compile(rb"<(Content-Length|Last-Modified|Etag|CopyStatus)>[^<]*</\1>")
_TYPE = b"<BlobType>BlockBlob</BlobType>"
"""The SDK needs one; the driver treats all types alike."""
_FLAGS = re.compile(rb"<(Deleted|IsCurrentVersion|HasVersionsOnly)>[^<]*</\1>")
"""What a listing of current blobs says of each: one malformed value would make the SDK reject the whole page."""
_SKEW = timedelta(minutes=5)
"""How far the clock of Azure may be behind: a signature that begins in its future is not valid."""
_SINCE_START_FROM = "2026-02-06"


@exception_boundary
class AzureDriver(WritesAhead, CloudDriver):
    """A container of Azure Blob Storage; see `FullDriver`.

    The digest is the metadata `sha256`. Memory: one block of an upload for each thread.

    The end of a write of a key drops all blocks that other writers have staged for it (`PartLimits.exclusive`).
    """

    def __init__(self, name: str, config: AzureConfig) -> None:
        super().__init__(name, config, endpoint_of(config))
        self._config = config
        self._scope = scope_of(config)
        self._parts = Parts(self._origin, self._scope, self._write)
        # The store fetches the source by its URL. A signature in it would be kept with the copy, where all readers see
        # it. And the copy would use the container's own encryption scope.
        self._copies = not is_signed(config) and not config.encryption_scope
        self._made: BlobServiceClient | None = None
        self._lock = threading.Lock()
        self._plain_reads = plain_reads(config, self._service)
        self._plain_writes = plain_writes(config, self._origin, self._service)

    @cached_property
    def capabilities(self) -> Capabilities:
        official, without_sdk = is_azure(self._config), self._config.data_path == "auto"
        return replace(
            self._shared_capabilities(METADATA, official=official, without_sdk=without_sdk),
            max_object_size=MAX_OBJECT,
            copies=self._copies,
            parts=limits(int(self._config.part_size)),
            patches=1 if self._copies else 0,
            groups=AHEAD_SIZE if without_sdk else 0,
            writes_ahead=AHEAD,
            storage_classes=TIERS,
            realm=realm_of(self._config) if self._copies else None,
            tags=_TAGS,
            impossible_keys=IMPOSSIBLE_KEYS,
        )

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        data = bytes(whole_body(body, info.size or 0))  # the SDK takes a bytearray for a list of strings here
        drain(body)  # a wrong body raises at its end
        return self.begin_put(bucket, key, data, info, condition).end()

    def begin_put(self, bucket: str, key: str, data: bytes, info: WriteInfo, condition: Condition) -> BegunPut:
        write, md5 = self._write(bucket, key, info, new_token(), condition), md5_of(data)
        request = self._plain_writes.begin(self._real_object(bucket, key), data, headers_of(write, md5))
        upload = Upload(lambda: self._blob(bucket, key), self._origin, write)
        return BegunPut(request, lambda: upload.whole(data, md5, request))

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> CloudReader:
        del uncached  # nothing of the store is cached on this machine
        found = self._download(bucket, key, offset, length) if length != 0 else None
        if found is None:
            stat = self.stat(bucket, key)
            return empty_reader(stat, offset, length, origin=self._origin, translate=translate)
        properties, body = found
        try:
            stat = to_stat(self._name, bucket, key, properties)
        except BaseException:
            body.close()
            raise
        end = stat.size if length is None else min(offset + length, stat.size)
        return CloudReader(stat, end - offset, body, origin=self._origin, translate=translate)

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return to_stat(self._name, bucket, key, self._properties(bucket, key))

    def find_version(self, bucket: str, key: str) -> str | None:
        try:
            found = self._properties(bucket, key)
        except NotFound:
            return None
        return version_of(found.etag) or listed_version(self, bucket, key)

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        named, repeats = condition if condition and condition.version else None, list[object]()
        with translated(self._origin, f"{bucket}/{key}"):
            try:
                self._blob(bucket, key).delete_blob(retry_hook=lambda **sent: repeats.append(sent), **conditions(named))
            except HttpResponseError as error:
                code = code_of(error)
                if code not in {"BlobNotFound", "ContainerNotFound", "ConditionNotMet"}:
                    raise
            else:
                return True
        if code == "ContainerNotFound" and self._prefixed:
            raise missing_bucket(self._origin, bucket)
        if named and code == "ConditionNotMet" and (found := self.find_version(bucket, key)) is not None:
            raise other_version(f"{self._name}: {bucket}/{key}", named, found)
        return bool(repeats)

    def sign_put(self, bucket: str, key: str, size: int, seconds: int) -> SignedPut:
        del size  # Azure cannot sign it; a part of another size does not count
        service, blob = self._service(), self._blob(bucket, key)
        signing: dict[str, Any] = {"account_key": getattr(service.credential, "account_key", None)}
        until = clock.now() + timedelta(seconds=seconds)
        with translated(self._origin, f"{bucket}/{key}"):
            if signing["account_key"] is None:
                if not isinstance(service.credential, TokenCredential):
                    raise PermanentError(
                        f"{self._name}: a sas_token cannot sign URLs: give account_key, or an identity"
                    )
                signing = {"user_delegation_key": service.get_user_delegation_key(clock.now() - _SKEW, until)}
            signature = generate_blob_sas(
                str(service.account_name), blob.container_name, blob.blob_name,
                permission=BlobSasPermissions(create=True, write=True), expiry=until, start=clock.now() - _SKEW,
                **signing,
            )  # fmt: skip
        return SignedPut(f"{blob.url}?{signature}", {"x-ms-blob-type": "BlockBlob"})

    def offers_hold(self, bucket: str) -> bool:
        """Return whether the container has immutable storage for versions: only there a blob takes a legal hold."""
        container, _ = self._real(bucket)
        with translated(self._origin, f"the immutability of {container}"):
            found = self._service().get_container_client(container).get_container_properties()
        return found.immutable_storage_with_versioning_enabled is True

    def set_hold(self, bucket: str, key: str, *, held: bool) -> None:
        """Place the legal hold on the current version, or end it on all: a repair leaves the bad bytes held."""
        blob = self._blob(bucket, key)
        with translated(self._origin, f"{bucket}/{key}"):
            if held:
                said = blob.set_legal_hold(True)
                if said.get("legal_hold") is not True:
                    raise HoldNotOffered(f"{self._name}: {bucket}/{key}: the store ignores the hold")
                return
            for version in self._held_versions(bucket, key):
                blob.set_legal_hold(False, version_id=version)

    def delete_held(self, bucket: str, key: str) -> bool:
        """Delete the blob with all its versions: without an id Azure keeps the bytes as an older version."""
        blob = self._blob(bucket, key)
        with translated(self._origin, f"{bucket}/{key}"):
            try:
                with suppress(ResourceNotFoundError):
                    blob.delete_blob()
                for version in self._versions(bucket, key):
                    blob.delete_blob(version_id=version.version_id)
            except HttpResponseError as error:
                if code_of(error) != "BlobImmutableDueToPolicy":
                    raise
                return False
        return True

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
        source = self._properties(bucket, key)
        found = to_stat(self._name, bucket, key, source)
        check_copied(f"{self._name}: {bucket}/{key}", found, version)
        if not self._copies:
            return self._copy_through_us(found, to_bucket, to_key)
        copy = Copy(self._blob(to_bucket, to_key), self._origin, f"{to_bucket}/{to_key}")
        metadata = {**METADATA.stored(source.metadata), METADATA.writer: new_token()}
        settings = tier_of(self._config, storage_class) | conditions(condition)
        if source.tag_count:  # the copy has none of them by itself
            with suppress(StorageError):  # credentials that may not read tags: the bytes are copied all the same
                settings |= {"tags": self.tags(bucket, key)}
        made = copy.make(self._blob(bucket, key), str(source.etag), metadata, settings)
        stat = to_stat(self._name, to_bucket, to_key, made)
        if (stat.size, stat.sha256) != (found.size, found.sha256):
            raise Unavailable(f"{self._name}: {to_bucket}/{to_key}: the store says that the copy is another object")
        return stat

    def location(self, bucket: str, key: str) -> BlobClient:
        return self._blob(bucket, key)

    def copy_from(
        self, original: BlobClient, found: ObjectStat, info: WriteInfo, *, between: Between, begun: OnUpload
    ) -> ObjectStat:
        del begun  # no multipart upload is made
        bucket, key, token = found.bucket, found.key, new_token()
        copy = Copy(self._blob(bucket, key), self._origin, f"{bucket}/{key}", between)
        settings = tier_of(self._config, info.storage_class) | conditions("create_only")
        if info.properties.tags:
            settings |= {"tags": decode_tags(info.properties.tags)}
        metadata = METADATA.encode(info, token, f"{self._name}: {bucket}/{key}")
        made = copy.make(original, f'"{found.version}"', metadata, settings)
        wanted = replace(info.properties, tags=None)
        if to_stat(self._name, bucket, key, made).properties == wanted:
            return to_stat(self._name, bucket, key, made)
        # A copy has the headers of its source: the request that makes it takes no others.
        headers = ContentSettings(
            content_md5=made.content_settings.content_md5, **cast("Any", set_properties(info.properties))
        )
        # The SDK repeats a request whose answer got lost, and the store refuses the second one because of the first.
        with suppress(PreconditionFailed), translated(self._origin, f"{bucket}/{key}"):
            self._blob(bucket, key).set_http_headers(headers, **conditions(Match(version_of(made.etag))))
        there = self._properties(bucket, key)
        stat = to_stat(self._name, bucket, key, there)
        if writer_of(there) != token or stat.properties != wanted:
            raise Conflict(f"{self._name}: {bucket}/{key}: another write was under way at the same time")
        return stat

    def patch(
        self,
        found: ObjectStat,
        bucket: str,
        key: str,
        info: WriteInfo,
        replaced: Sequence[range],
        *,
        read: Callable[[range], bytes | bytearray],
        unit: int,
        between: Between,
    ) -> ObjectStat:
        """Copy the whole object, whose copy has the same blocks, and replace those of the ranges.

        Raises:
            PermanentError: also if no blocks begin and end where the ranges do; nothing was copied.
        """
        del unit
        source, target, token = self._target(found.bucket, found.key), self._target(bucket, key), new_token()
        if (there := self.stat(found.bucket, found.key)).version != found.version:
            raise other_version(f"{self._name}: {source.what}", Match(found.version), there.version)
        blocks = self._parts.blocks_of(source, replaced)
        metadata = METADATA.encode(info, token, f"{self._name}: {target.what}")
        tier = tier_of(self._config, info.storage_class)
        copy = Copy(target.blob, self._origin, target.what, between)
        version = version_of(copy.make(source.blob, f'"{found.version}"', metadata, tier).etag)
        try:
            return self._parts.patch(target, token, version, info, replaced, blocks=blocks, read=read, between=between)
        except BaseException:
            with suppress(StorageError):  # cleanup removes what is left
                self.delete(bucket, key, condition=Match(version))
            raise

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        with translated(self._origin, f"the tags of {bucket}/{key}"):
            return dict(self._blob(bucket, key).get_blob_tags())

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        if after > prefix and not after.startswith(prefix):
            return
        start = safe_start(after) if after.startswith(prefix) else ""

        def rows(prefix: str, start: str) -> Iterator[ListedObject]:
            return (row for row in self._rows(bucket, prefix, start) if row.key > after)

        try:
            yield from ByteOrder(rows).sort(rows(prefix, start))
        except UnicodeError:
            raise
        except ValueError as error:
            raise Unavailable(f"{self._name}: {bucket}: {error}, which is no known order") from error

    # Multipart uploads

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        return self._parts.begin(self._target(bucket, key), info)

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
        return self._parts.put(self._target(bucket, key), token, number, data, sha256=sha256, md5=md5)

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        return self._parts.listed(self._target(bucket, key), token)

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        return self._parts.complete(self._target(bucket, key), token, parts, info, condition=condition)

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        self._parts.abort(self._target(bucket, key), token)

    # Stale uploads

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        for container in self._real_buckets():
            for row in self._blobs(container, container, include=["uncommittedblobs", "metadata", "copy"]):
                yield from self._parts.stale(self._real_target(container, str(row.name)), row)

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        container, name, token = stale.token
        return self._parts.remove_stale(self._real_target(container, name), token)

    # The store

    def refuses_damage(self, bucket: str, key: str) -> bool:
        target = self._target(bucket, key)
        wrong = bytearray(md5_of(b"other bytes"))
        info = WriteInfo(size=1, sha256=sha256(b"x").hexdigest())
        token = self._parts.begin(target, info)
        try:
            part = self._refused(
                lambda: target.blob.stage_block(new_block(token, 1, b"x").id, b"x", transactional_content_md5=wrong),
                target.what,
            )
        finally:
            self._parts.abort(target, token)
        try:
            return part and self._refused(
                lambda: target.blob.upload_blob(b"x", length=1, overwrite=True, transactional_content_md5=wrong),
                target.what,
            )
        finally:
            self.delete(bucket, key)

    def _refused(self, send: Callable[[], object], what: str) -> bool:
        try:
            with translated(self._origin, what):
                send()
        except StorageError as error:
            if error.code in {"Md5Mismatch", "InvalidMd5", "InvalidOperation", "400"}:
                return True
            raise
        return False

    def close(self) -> None:
        self._plain_reads.close()
        self._plain_writes.close()
        with self._lock:
            if self._made:
                self._made.close()
            self._made = None

    def _write(self, bucket: str, key: str, info: WriteInfo, token: str, condition: Condition) -> Write:
        """Return the write of a whole object, with the SDK's arguments for its tier, encryption and properties."""
        found: dict[str, Any] = dict(set_properties(info.properties))
        headers: dict[str, Any] = {"content_settings": ContentSettings(**found)} if found else {}
        tags = {"tags": decode_tags(info.properties.tags)} if info.properties.tags else {}
        return Write(
            bucket=bucket,
            key=key,
            size=info.size or 0,
            sha256=str(info.sha256),
            writer=token,
            metadata=METADATA.encode(info, token, f"{self._name}: {bucket}/{key}"),
            condition=condition,
            options=self._scope | tier_of(self._config, info.storage_class) | headers | tags,
            properties=info.properties,
        )

    # Where things are

    def _blob(self, bucket: str, key: str) -> BlobClient:
        container, start = self._real(bucket)
        return self._service().get_blob_client(container, start + key)

    def _target(self, bucket: str, key: str) -> Target:
        return Target(self._blob(bucket, key), bucket, key)

    def _real_target(self, container: str, name: str) -> Target:
        return Target(self._service().get_blob_client(container, name), *self._logical(container, name))

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
                raise self._missing_object(bucket, key, code_of(error)) from None
        if not is_object(found):
            raise self._missing_object(bucket, key, "BlobNotFound")
        return found

    def _download(
        self, bucket: str, key: str, offset: int, length: int | None
    ) -> tuple[BlobProperties, HttpBody] | None:
        """Ask for a range; return None where it is past the end."""
        with translated(self._origin, f"{bucket}/{key}"):
            try:
                found = download(self._blob(bucket, key), offset, length)
            except HttpResponseError as error:
                if code_of(error) in {"InvalidRange", "416"}:
                    return None
                if error.status_code != HTTPStatus.NOT_FOUND:
                    raise
                raise self._missing_object(bucket, key, code_of(error)) from None
        if not is_object(found[0]):
            found[1].close()
            raise self._missing_object(bucket, key, "BlobNotFound")
        return found

    def _missing_object(self, bucket: str, key: str, code: str) -> StorageError:
        """Return the error for a missing object: only Azure's own code for a blob tells it from its container."""
        if code == "BlobNotFound":
            return NotFound(f"{self._name}: {bucket}/{key} does not exist")
        return self._missing(bucket, key)

    def _held_versions(self, bucket: str, key: str) -> list[str]:
        return [str(each.version_id) for each in self._versions(bucket, key) if each.has_legal_hold]

    def _versions(self, bucket: str, key: str) -> list[BlobProperties]:
        """Return all versions of a blob, with their legal holds."""
        container, start = self._real(bucket)
        pages = self._service().get_container_client(container).list_blobs(
            name_starts_with=start + key, include=["versions", "legalhold"], results_per_page=_PAGE,
            response_format="xml",
        ).by_page()  # fmt: skip
        found = rows_of(pages, lambda page: page, self._origin, f"{bucket}/{key}")
        return [each for each in found if each.name == start + key and each.version_id]

    def _rows(self, bucket: str, prefix: str, start: str) -> Iterator[ListedObject]:
        """Yield the objects of a bucket as Azure lists them, from `start` on if it is given."""
        container, begin = self._real(bucket)
        seek = {"start_from": begin + start} if start and self._config.api_version >= _SINCE_START_FROM else {}
        wanted = {"name_starts_with": begin + prefix, "include": ["metadata", "copy"], **seek}
        for blob in self._blobs(container, bucket, **wanted):
            key = str(blob.name).removeprefix(begin)
            if is_object(blob) and not is_reserved(key):
                yield ListedObject(key, blob.size, version_of(blob.etag), _modified(blob))

    def _blobs(self, container: str, what: str, **wanted: Any) -> Iterator[BlobProperties]:
        """Yield the pages of a listing as they are needed; none for a logical bucket that does not exist."""
        client = self._service().get_container_client(container)
        try:
            with translated(self._origin, what):
                pages = client.list_blobs(
                    results_per_page=_PAGE, response_format="xml", raw_response_hook=_clean_page, **wanted
                ).by_page()
                found = rows_of(pages, lambda page: page, self._origin, what)
                yield from inside(found, wanted.get("name_starts_with", ""), attrgetter("name"), self._origin)
        except NotFound:
            if self._prefixed:
                raise missing_bucket(self._origin, container) from None

    # Containers

    def _list_real_buckets(self) -> list[str]:
        with translated(self._origin, "its containers"):
            pages = self._service().list_containers().by_page()
            return [str(found.name) for found in rows_of(pages, lambda page: page, self._origin, "its containers")]

    def _real_bucket_exists(self, real: str) -> bool:
        with translated(self._origin, real):
            try:
                self._service().get_container_client(real).get_container_properties()
            except HttpResponseError as error:
                if error.status_code != HTTPStatus.NOT_FOUND:
                    raise
                return False
        return True

    def _create_real_bucket(self, real: str) -> bool:
        with translated(self._origin, real):
            try:
                self._service().create_container(real)
            except HttpResponseError as error:
                if code_of(error) != "ContainerAlreadyExists":
                    raise
                return False
        return True

    def _first_names(self, real: str, prefix: str) -> set[str] | None:
        """Return the first two names of objects: folders and blobs that are no objects are skipped."""
        wanted: dict[str, Any] = {"name_starts_with": prefix, "include": ["metadata", "copy"]}
        client = self._service().get_container_client(real)
        with translated(self._origin, real):
            try:
                pages = client.list_blobs(
                    results_per_page=_PAGE if prefix else 1,
                    response_format="xml",
                    raw_response_hook=_clean_page,
                    **wanted,
                ).by_page()
                rows = rows_of(pages, lambda page: page, self._origin, real)
                found = inside(rows, prefix, attrgetter("name"), self._origin)
                return {str(blob.name) for blob in islice(filter(is_object, found), 2)}
            except HttpResponseError as error:
                if code_of(error) not in {"ContainerNotFound", "ResourceNotFound", "404"}:
                    raise
                return None

    def _first_segments(self, real: str) -> Iterator[str]:
        client = self._service().get_container_client(real)
        with translated(self._origin, real):
            pages = client.walk_blobs(
                delimiter="/", results_per_page=_PAGE, response_format="xml", raw_response_hook=_clean_page
            ).by_page()
            names = rows_of(pages, lambda page: [str(found.name) for found in page], self._origin, real)
            yield from (name for name in names if name.endswith("/"))

    def _write_marker(self, bucket: str) -> None:
        with translated(self._origin, bucket):
            self._blob(bucket, MARKER).upload_blob(b"", length=0, overwrite=True, **self._scope)

    def _copy_through_us(self, source: ObjectStat, to_bucket: str, to_key: str) -> ObjectStat:
        """Copy an object with one request; `capabilities` allow that for empty objects only."""
        info = WriteInfo(source.size, source.sha256, source.metadata, properties=source.properties)
        with self.open(source.bucket, source.key) as reader:
            return self.put(to_bucket, to_key, VerifyingReader(reader, size=source.size), info)


def _clean_page(reply: Any) -> None:
    """Remove what the SDK cannot read, or the driver does not need, from a page, before the SDK reads it.

    Raises:
        DecodeError: it is no listing.
    """
    answer = reply.http_response
    page = answer.body()
    if answer.status_code == HTTPStatus.OK:
        if not is_document(page, "EnumerationResults"):
            raise DecodeError("the answer is no listing")
        page = _PROPERTIES.sub(_only_needed, _FLAGS.sub(b"", without_malformed(page, _READABLE)))
    answer._content = page  # noqa: SLF001  the SDK offers no other place


def _only_needed(properties: re.Match[bytes]) -> bytes:
    return b"<Properties>%b</Properties>" % b"".join([_TYPE, *(found[0] for found in _NEEDED.finditer(properties[1]))])


def _modified(blob: BlobProperties) -> datetime:
    found: datetime | None = blob.last_modified  # a gateway may leave it out
    return found or UNKNOWN_TIME
