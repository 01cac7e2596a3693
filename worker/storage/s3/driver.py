"""Objects in Amazon S3, and in everything else that speaks S3."""

import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError

from worker.storage.cloud.conditional_write import check_copied, other_version
from worker.storage.cloud.driver import MARKER, CloudDriver
from worker.storage.cloud.error_mapping import missing_bucket
from worker.storage.cloud.listing import inside, is_reserved, listed_version, rows_of, size_of
from worker.storage.cloud.metadata import UNKNOWN_TIME, set_properties
from worker.storage.cloud.object_tags import encode_tags
from worker.storage.cloud.reader import CloudReader, empty_reader
from worker.storage.cloud.response_body import HttpBody
from worker.storage.cloud.small_writes import AHEAD, AHEAD_SIZE, BegunPut, WritesAhead
from worker.storage.config import S3Config
from worker.storage.driver import (
    Body,
    Capabilities,
    Condition,
    ListedObject,
    Match,
    ObjectProperties,
    ObjectStat,
    Part,
    PartData,
    PartLimits,
    SignedPut,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
    Unavailable,
    UnexpectedAnswer,
)
from worker.storage.exception_boundary import exception_boundary
from worker.storage.s3.check_free_keys_by_listing import FreeKeys
from worker.storage.s3.errors import code_of, is_missing, translate, translated, was_repeated
from worker.storage.s3.object_stat import METADATA, header_name, to_stat, version_of
from worker.storage.s3.providers import (
    COMMIT_TIMEOUT,
    GIB,
    READ_TIMEOUT,
    endpoint_of,
    make_client,
    profile_of,
    realm_of,
)
from worker.storage.s3.requests_without_sdk import DIGESTS, is_reachable, parse_head, plain_reads, plain_writes
from worker.storage.s3.upload import (
    COPY_PART,
    DAMAGED,
    MAX_PART,
    MAX_PARTS,
    MIN_PART,
    Address,
    PartTags,
    S3Write,
    Upload,
)
from worker.storage.transfer.server_copy import Between, OnUpload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

MAX_COPY = 5 * GIB
"""Bytes of the largest object that one request copies."""
_NO_LOCK = {"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "NotImplemented"}
"""How S3 and others say that a bucket has no Object Lock, or that they do not know of it."""
_TAGS = re.compile(r"[\w \-.:/=+@]*")


@exception_boundary
class S3Driver(WritesAhead, CloudDriver):
    """A store that speaks S3; see `FullDriver`.

    The digest is the metadata `sha256`. Memory: one part, whatever the size of the object.
    """

    def __init__(self, name: str, config: S3Config, *, copy_part: int = COPY_PART) -> None:
        """Prepare requests to the store; `copy_part` is how many bytes one request copies."""
        super().__init__(name, config, endpoint_of(config))
        self._config = config
        self._copy_part = copy_part
        self._profile = profile_of(config)
        self._part_size = max(MIN_PART, int(config.part_size))
        self._clients: dict[float, S3Client] = {}
        self._lock = threading.Lock()
        self._plain_reads = plain_reads(config, self._client)
        self._plain_writes = plain_writes(config, self._origin, self._client)
        self._part_tags = PartTags()
        self._free_keys = FreeKeys(self._first_page)

    @cached_property
    def capabilities(self) -> Capabilities:
        official, without_sdk = self._config.endpoint is None, is_reachable(self._config)
        return replace(
            self._shared_capabilities(METADATA, official=official, without_sdk=without_sdk),
            conditional_writes=self._profile.conditional_writes,
            max_object_size=self._profile.max_object_size,
            parts=PartLimits(
                self._part_size,
                MAX_PART,
                MAX_PARTS,
                compared_with="sha256" if self._profile.checksums == "when_supported" else "md5",
            ),
            patches=MIN_PART if self._profile.conditional_writes else 0,
            groups=AHEAD_SIZE if without_sdk else 0,
            writes_ahead=AHEAD,
            storage_classes=self._profile.storage_classes,
            realm=realm_of(self._config) if self._profile.conditional_writes else None,
            marks_uploads=False,
            tags=_TAGS,
        )

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        upload = self._conditional_upload(bucket, key, info, uuid.uuid4().hex, condition)
        return upload.whole(body, self._plain_writes)

    def begin_put(self, bucket: str, key: str, data: bytes, info: WriteInfo, condition: Condition) -> BegunPut:
        upload = self._conditional_upload(bucket, key, info, uuid.uuid4().hex, condition)
        return upload.begin_whole(data, self._plain_writes)

    def expect_writes(self, paths: Iterable[tuple[str, str]]) -> None:
        if not self._profile.conditional_writes:
            for bucket, group in groupby(sorted(paths), itemgetter(0)):
                self._free_keys.expect(bucket, [key for _, key in group])

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> CloudReader:
        del uncached  # nothing of the store is cached on this machine
        reply = self._get(bucket, key, _range(offset, length)) if length != 0 else None
        if reply is None:
            stat = self.stat(bucket, key)
            return empty_reader(stat, offset, length, origin=self._origin, translate=translate)
        stream = reply["Body"].__enter__()  # the response below; what `StreamingBody` checks, CloudReader checks
        try:
            if offset and not reply.get("ContentRange"):
                raise PermanentError(f"{self._name}: {bucket}/{key}: the store ignores that a range was asked for")
            stat = to_stat(self._name, bucket, key, reply)
            left = stat.size - offset if length is None else min(length, stat.size - offset)
            self._check_range(stat, reply, range(offset, offset + left))
            if stat.sha256 is None and offset == 0:  # a GET returns the store's digest only with a check of it
                stat = self._with_own_digest(stat)
        except BaseException:
            stream.close()
            raise
        return CloudReader(stat, left, HttpBody(stream), origin=self._origin, translate=translate)

    def _check_range(self, stat: ObjectStat, reply: Any, wanted: range) -> None:
        """Raise UnexpectedAnswer if the answer holds other bytes of the object than those that were asked for."""
        said = str(reply.get("ContentRange") or "").removeprefix("bytes ").partition("/")[0]
        told = f"{wanted.start}-{wanted.stop - 1}"
        length = reply.get("ContentLength", len(wanted))
        whole = not said and length == stat.size
        unsaid = not said and _status_of(reply) == HTTPStatus.PARTIAL_CONTENT
        if unsaid or (said and said != told) or not (whole or length == len(wanted)):
            raise UnexpectedAnswer(
                f"{self._name}: {stat.bucket}/{stat.key}: bytes {told} were asked for, the store answers with "
                f"{length} bytes of the range {said or 'none'}"
            )

    def _with_own_digest(self, stat: ObjectStat) -> ObjectStat:
        found = self.stat(stat.bucket, stat.key)
        return replace(stat, sha256=found.sha256) if found.version == stat.version else stat

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return to_stat(self._name, bucket, key, self._head(bucket, key))

    def find_version(self, bucket: str, key: str) -> str | None:
        try:
            head = self._head_in_any_bucket(bucket, key)
        except NotFound:
            return None
        return version_of(head.get("ETag")) or listed_version(self, bucket, key)

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        try:
            head = self._head(bucket, key)
        except NotFound:
            return False
        found = version_of(head.get("ETag")) or listed_version(self, bucket, key)
        if condition and found != condition.version:
            raise other_version(f"{self._name}: {bucket}/{key}", condition, found)
        # It is also sent to those that may ignore it: it does no harm there, and many decide it.
        decides = condition and condition.version and self._profile.conditional_writes
        atomic: dict[str, Any] = {"IfMatch": f'"{found}"'} if decides else {}
        try:
            with self._errors(f"{bucket}/{key}"):
                reply = self._client().delete_object(**self._address(bucket, key), **atomic)
        except (NotFound, PreconditionFailed):  # perhaps the first request, whose answer was lost, has deleted it
            left = self.find_version(bucket, key)
            if left is None:
                return True
            if condition is None or left == found:
                raise
            raise other_version(f"{self._name}: {bucket}/{key}", condition, left) from None
        if _status_of(reply) not in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}:
            raise UnexpectedAnswer(
                f"{self._name}: {bucket}/{key}: the store does not say that it has deleted the object"
            )
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
        source = self._head(bucket, key)
        found, writer = to_stat(self._name, bucket, key, source), uuid.uuid4().hex
        check_copied(f"{self._name}: {bucket}/{key}", found, version)
        tags = self._tags_for_parts(bucket, key, source) if found.size > MAX_COPY else None
        info = WriteInfo(
            found.size, found.sha256, storage_class=storage_class, properties=replace(found.properties, tags=tags)
        )
        metadata = {**METADATA.stored(source.get("Metadata")), METADATA.writer: writer}
        upload = self._upload(to_bucket, to_key, info, writer, condition, metadata=metadata)
        original = self._address(bucket, key)
        if found.size > MAX_COPY:
            made = upload.copy(original, found.version, self._copy_part, between=lambda: None)
        else:
            made = upload.copy_whole(original, found.version)
        if made.size != found.size:
            raise Unavailable(f"{self._name}: {to_bucket}/{to_key}: the store says that the copy is another object")
        return made

    def _tags_for_parts(self, bucket: str, key: str, source: "HeadObjectOutputTypeDef") -> str | None:
        """Return the tags of an object that is copied in parts: only a copy in one request has them by itself.

        A store need not tell whether there are any, and may know no tags at all.
        """
        try:
            return encode_tags(self.tags(bucket, key))
        except StorageError:
            if source.get("TagCount"):
                raise
            return None

    def location(self, bucket: str, key: str) -> Address:
        return self._address(bucket, key)

    def copy_from(
        self, original: Address, found: ObjectStat, info: WriteInfo, *, between: Between, begun: OnUpload
    ) -> ObjectStat:
        writer = uuid.uuid4().hex
        upload = self._upload(found.bucket, found.key, info, writer, "create_only")
        return upload.copy(
            original,
            found.version,
            self._copy_part,
            between=between,
            begun=lambda upload_id: begun(_token(writer, upload_id)),
        )

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
        upload, original = self._upload(bucket, key, info, uuid.uuid4().hex), self._address(found.bucket, found.key)
        return upload.patch(original, found.version, self._copy_part, replaced, read=read, unit=unit, between=between)

    def sign_put(self, bucket: str, key: str, size: int, seconds: int) -> SignedPut:
        params = {**self._address(bucket, key), "ContentLength": size}  # signed, so that no other size is accepted
        with self._errors(f"{bucket}/{key}"):
            return SignedPut(self._client().generate_presigned_url("put_object", Params=params, ExpiresIn=seconds))

    def offers_hold(self, bucket: str) -> bool:
        real, _ = self._real(bucket)
        with self._errors(f"the Object Lock of {real}"):
            try:
                found = self._client().get_object_lock_configuration(**self._owned(real))
            except ClientError as error:
                if error.response["Error"]["Code"] in _NO_LOCK:
                    return False
                raise
        return found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"

    def set_hold(self, bucket: str, key: str, *, held: bool) -> None:
        """Place the hold on the current version, or end it on all: a repair leaves the bad bytes as a held version."""
        address, client = self._address(bucket, key), self._client()
        with self._errors(f"{bucket}/{key}"):
            if held:
                client.put_object_legal_hold(**address, LegalHold={"Status": "ON"})
                return
            for version in self._versions(address):
                client.put_object_legal_hold(**address, VersionId=version, LegalHold={"Status": "OFF"})

    def delete_held(self, bucket: str, key: str) -> bool:
        """Delete the version itself: without its id the bucket hides it behind a delete marker, held or not."""
        version = self._head_in_any_bucket(bucket, key).get("VersionId")
        with self._errors(f"{bucket}/{key}"):
            if version is None:
                raise UnexpectedAnswer(f"{self._name}: {bucket}/{key}: the bucket has Object Lock and no versions")
            try:
                self._client().delete_object(**self._address(bucket, key), VersionId=version)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != HTTPStatus.FORBIDDEN:
                    raise
                return False
        return True

    def _versions(self, address: Mapping[str, Any]) -> list[str]:
        """Return the ids of all versions under a key."""
        at = {**address, "Prefix": address["Key"]}
        del at["Key"]
        pages = self._client().get_paginator("list_object_versions").paginate(**at)
        rows = (row for page in pages for row in page.get("Versions", []))
        return [row["VersionId"] for row in rows if row["Key"] == address["Key"]]

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        with self._errors(f"the tags of {bucket}/{key}"):
            found = self._client().get_object_tagging(**self._address(bucket, key))["TagSet"]
        return {tag["Key"]: tag["Value"] for tag in found if not tag["Key"].startswith("aws:")}  # Amazon's own

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        real, start = self._real(bucket)
        begin = {"StartAfter": start + after} if after else {}
        for row in self._rows("list_objects_v2", "Contents", bucket, Bucket=real, Prefix=start + prefix, **begin):
            key = row["Key"].removeprefix(start)
            if key > after and not is_reserved(key):
                modified = row.get("LastModified", UNKNOWN_TIME)
                yield ListedObject(key, size_of(row.get("Size")), version_of(row.get("ETag")), modified)

    # Multipart uploads: a token is the writer's own token and the id of the multipart upload

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        writer = uuid.uuid4().hex
        return _token(writer, self._upload(bucket, key, info, writer).begin())

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
        small = self._plain_writes if sha256 is not None else None
        return self._upload(bucket, key, WriteInfo()).send_part(
            _upload_id(token), number, data, sha256, md5=md5, small=small
        )

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        return self._upload(bucket, key, WriteInfo()).list_parts(_upload_id(token))

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        upload = self._conditional_upload(bucket, key, info, token.partition(":")[0], condition)
        return upload.complete(_upload_id(token), parts)

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        self._upload(bucket, key, WriteInfo()).abort(_upload_id(token))

    # Stale uploads

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        for real in self._real_buckets():
            for upload in self._rows("list_multipart_uploads", "Uploads", real, Bucket=real):
                key = upload["Key"]
                token = (real, key, upload["UploadId"])
                since = upload.get("Initiated", UNKNOWN_TIME)
                ours = self._is_reserved(real, key)  # S3 does not record who began an upload
                yield StaleUpload(f"multipart upload of {real}/{key}", since, token, ours=ours)

    def is_unused_upload(self, stale: StaleUpload, bucket: str, key: str) -> bool:
        address = self._address(bucket, key)
        if stale.token[:2] != (address["Bucket"], address["Key"]):
            return False
        try:
            return not self.list_parts(bucket, key, _token("", stale.token[2]))
        except NotFound:  # it has ended meanwhile
            return False

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        real, key, upload_id = stale.token
        with self._errors(f"{real}/{key}"):
            try:
                self._client().abort_multipart_upload(**self._owned(real), Key=key, UploadId=upload_id)
            except ClientError as error:
                if code_of(error) not in {"NoSuchUpload", "404"}:
                    raise
                return was_repeated(error)
        return True

    # The store

    def advice(self) -> list[str]:
        return super().advice() + [
            f"{self._name}: bucket {real} has no lifecycle rule that aborts incomplete multipart uploads; add "
            "AbortIncompleteMultipartUpload after 7 days, for uploads that no cleanup finds"
            for real in self._real_buckets()
            if self._keeps_stale_uploads(real)
        ]

    def refuses_damage(self, bucket: str, key: str) -> bool:
        upload = self._upload(bucket, key, WriteInfo(size=len(DAMAGED), sha256=sha256(DAMAGED).hexdigest()))
        with closing(make_client(self._name, self._config, damaging=True)) as client:
            return upload.refuses_damage(client)

    def close(self) -> None:
        self._plain_reads.close()
        self._plain_writes.close()
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    # Real buckets

    def _list_real_buckets(self) -> list[str]:
        with self._errors("its buckets"):
            return [bucket["Name"] for bucket in self._client().list_buckets()["Buckets"]]

    def _real_bucket_exists(self, real: str) -> bool:
        with self._errors(real):
            try:
                self._client().head_bucket(**self._owned(real))
            except ClientError as error:
                if is_missing(error):
                    return False
                if code_of(error) == "400":  # the answer to a HEAD has no body with the reason; that to a GET has one
                    self._client().list_objects_v2(**self._owned(real), MaxKeys=1)
                raise
        return True

    def _create_real_bucket(self, real: str) -> bool:
        if self._real_bucket_exists(real):
            return False
        client = self._client()
        region = client.meta.region_name
        request: dict[str, Any] = {"Bucket": real}
        if self._config.endpoint is None and region not in {"us-east-1", "aws-global"}:  # Amazon requires the region
            request["CreateBucketConfiguration"] = {"LocationConstraint": region}
        with self._errors(real):
            try:
                client.create_bucket(**request)
            except ClientError as error:
                if code_of(error) != "BucketAlreadyOwnedByYou":
                    raise
                return False
        return True

    def _first_names(self, real: str, prefix: str) -> set[str] | None:
        try:
            with self._errors(real):
                page = self._client().list_objects_v2(**self._owned(real), Prefix=prefix, MaxKeys=2)
        except NotFound:
            return None
        except StorageError as error:  # of the one bucket that holds everything
            if error.code == "NoSuchBucket":
                return None
            raise
        return {row["Key"] for row in inside(page.get("Contents", []), prefix, _name_of, self._origin)}

    def _first_page(self, bucket: str, prefix: str, after: str, rows: int) -> Mapping[str, Any]:
        """Return the first page of a listing, with the keys in the logical bucket."""
        real, start = self._real(bucket)
        begin: dict[str, Any] = {"StartAfter": start + after} if after else {}
        with self._errors(bucket):
            page = self._client().list_objects_v2(**self._owned(real), Prefix=start + prefix, MaxKeys=rows, **begin)
        found = inside(page.get("Contents", []), start + prefix, _name_of, self._origin)
        return {**page, "Contents": [{"Key": row["Key"].removeprefix(start)} for row in found]}

    def _first_segments(self, real: str) -> Iterator[str]:
        for row in self._rows("list_objects_v2", "CommonPrefixes", real, Bucket=real, Delimiter="/"):
            yield str(row["Prefix"])

    def _write_marker(self, bucket: str) -> None:
        with self._errors(bucket):
            self._client().put_object(**self._address(bucket, MARKER), Body=b"")

    def _keeps_stale_uploads(self, real: str) -> bool:
        """Return whether the bucket is known to have no rule of its own that aborts multipart uploads."""
        try:
            with self._errors(real):
                answer: Any = self._client().get_bucket_lifecycle_configuration(**self._owned(real))
        except (
            StorageError
        ) as error:  # many compatible stores have no such rules, and many credentials may not read them
            return error.code == "NoSuchLifecycleConfiguration"
        if "Rules" not in answer:  # some stores answer this request as if it were another one
            return False
        rules = answer["Rules"]
        return not any("AbortIncompleteMultipartUpload" in rule and rule["Status"] == "Enabled" for rule in rules)

    # Requests

    def _address(self, bucket: str, key: str) -> Address:
        real, start = self._real(bucket)
        return cast("Address", {**self._owned(real), "Key": start + key})

    def _owned(self, real: str) -> Any:
        """Return the arguments that name a real bucket, and its owner if that is configured."""
        owner = self._config.bucket_owner
        return {"Bucket": real} | ({"ExpectedBucketOwner": owner} if owner else {})

    def _upload(
        self,
        bucket: str,
        key: str,
        info: WriteInfo,
        writer: str = "",
        condition: Condition = None,
        *,
        metadata: Mapping[str, str] | None = None,
    ) -> Upload:
        """Return an upload; `metadata` is in place of that of `info`, as the store returned it."""
        write = S3Write(
            bucket=bucket,
            key=key,
            size=info.size or 0,
            sha256=str(info.sha256),
            writer=writer,
            metadata=metadata or METADATA.encode(info, writer, f"{self._name}: {bucket}/{key}"),
            condition=condition,
            options=self._options(info.storage_class, info.properties),
            properties=info.properties,
            address=self._address(bucket, key),
            conditional=self._profile.conditional_writes,
            checksums=self._profile.checksums == "when_supported",
        )
        return Upload(self._client(), self._client(committing=True), self._origin, write, self._part_tags)

    def _conditional_upload(self, bucket: str, key: str, info: WriteInfo, writer: str, condition: Condition) -> Upload:
        """Return an upload whose condition was checked here, if the store does not check conditions."""
        upload = self._upload(bucket, key, info, writer, condition)
        if condition and not self._profile.conditional_writes:
            only_creates = condition == "create_only"
            if not (only_creates and (self._free_keys.is_free(bucket, key) or self._is_plainly_missing(bucket, key))):
                upload.check_condition()
        return upload

    def _options(self, storage_class: str | None, properties: ObjectProperties) -> dict[str, str]:
        """Return the arguments of every write: properties, storage class and encryption."""
        options = {header_name(name): value for name, value in set_properties(properties).items()} | {
            "Tagging": properties.tags,
            "StorageClass": storage_class or self._config.storage_class,
            "ServerSideEncryption": self._config.encryption,
            "SSEKMSKeyId": self._config.kms_key_id,
        }
        return {name: value for name, value in options.items() if value}

    def _client(self, *, committing: bool = False) -> "S3Client":
        """Return this process's client, or the one for slow requests; each is made at its first use."""
        read_timeout = COMMIT_TIMEOUT if committing else READ_TIMEOUT
        with self._lock:
            if read_timeout not in self._clients:
                with self._errors("the SDK"):
                    self._clients[read_timeout] = make_client(self._name, self._config, read_timeout=read_timeout)
            return self._clients[read_timeout]

    def _head(self, bucket: str, key: str) -> "HeadObjectOutputTypeDef":
        try:
            return self._head_in_any_bucket(bucket, key)
        except NotFound:
            raise self._missing(bucket, key) from None

    def _head_in_any_bucket(self, bucket: str, key: str) -> "HeadObjectOutputTypeDef":
        """Do as `_head`, without the request that tells a missing bucket from a missing object."""
        address, answer = self._address(bucket, key), self._plain_reads.head(self._real_object(bucket, key), DIGESTS)
        try:
            with self._errors(f"{bucket}/{key}"):
                said = parse_head(answer, self._client()) if answer else None
                return said or self._client().head_object(**address, ChecksumMode="ENABLED")
        except PermanentError as error:
            if error.code == "400":  # the answer to a HEAD has no body with the reason; that to a GET has one
                found = self._get(bucket, key, "bytes=0-0")
                if found:
                    found["Body"].close()
            raise

    def _is_plainly_missing(self, bucket: str, key: str) -> bool:
        """Return whether a plain request finds that there is no such object; False if it finds anything else."""
        answer = self._plain_reads.head(self._real_object(bucket, key), {})
        return answer is not None and answer.status == HTTPStatus.NOT_FOUND

    def _get(self, bucket: str, key: str, wanted: str | None) -> "GetObjectOutputTypeDef | None":
        """Ask for an object, or for a range of it; return None where the range is past its end."""
        part: dict[str, Any] = {"Range": wanted} if wanted else {}
        try:
            with self._errors(f"{bucket}/{key}"):
                return self._client().get_object(**self._address(bucket, key), **part)
        except NotFound:
            raise self._missing(bucket, key) from None
        except PermanentError as error:
            if error.code not in {"InvalidRange", "416"}:
                raise
            return None

    def _rows(self, operation: Any, rows: str, what: str, **request: str) -> Iterator[Any]:
        """Yield the rows of a listing as they are needed; none for a logical bucket that does not exist."""
        real = request.pop("Bucket")
        pages = self._client().get_paginator(operation).paginate(**self._owned(real), **request)
        try:
            with self._errors(what):
                found = rows_of(pages, lambda page: page.get(rows) or [], self._origin, what)
                yield from inside(found, request.get("Prefix", ""), _name_of, self._origin)
        except NotFound as error:
            # Some stores answer NoSuchUpload for a bucket without open uploads.
            if self._prefixed and error.code != "NoSuchUpload":
                raise missing_bucket(self._origin, real) from None

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return translated(self._origin, what)


def _range(offset: int, length: int | None) -> str | None:
    """Return the header that asks for a range, or None for the whole."""
    if length is None:
        return f"bytes={offset}-" if offset else None
    return f"bytes={offset}-{offset + length - 1}"


def _status_of(reply: Any) -> int:
    return int(reply["ResponseMetadata"]["HTTPStatusCode"])


def _name_of(row: Mapping[str, Any]) -> object:
    return row["Key"] if "Key" in row else row["Prefix"]


def _token(writer: str, upload_id: str) -> str:
    return f"{writer}:{upload_id}"


def _upload_id(token: str) -> str:
    return token.partition(":")[2]
