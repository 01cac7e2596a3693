"""Objects in Amazon S3, and in everything else that speaks S3."""

import io
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError

from worker.storage.cloud.error_mapping import Origin, missing_bucket
from worker.storage.config import S3Config
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
    BucketNotEmpty,
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
)
from worker.storage.keys import RESERVED_SEGMENT
from worker.storage.s3 import buckets
from worker.storage.s3.copy import COPY_PART, Copy
from worker.storage.s3.errors import code_of, is_missing, translated
from worker.storage.s3.objects import WRITER, S3Reader, stored_metadata, to_metadata, to_stat, written_stat
from worker.storage.s3.providers import (
    COMMIT_TIMEOUT,
    GIB,
    READ_TIMEOUT,
    endpoint_of,
    make_client,
    profile_of,
    realm_of,
)
from worker.storage.s3.upload import MAX_PART, MAX_PARTS, MIN_PART, Upload, Where, Write
from worker.storage.transfer.server_copy import Between

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, HeadObjectOutputTypeDef

MARKER = f"{RESERVED_SEGMENT}bucket"
"""The key of the empty object that keeps an empty logical bucket in existence."""
MAX_COPY = 5 * GIB


class S3Driver:
    """A store that speaks S3; see `Driver`.

    In the layout `prefixed` one real bucket holds everything under `bucket/key`; in `native` logical buckets are real.
    The digest is the metadata `sha256`. Memory: one part, whatever the size of the object.
    """

    def __init__(self, name: str, config: S3Config, *, copy_part: int = COPY_PART) -> None:
        """Remember how the store is reached; `copy_part` is how many bytes it is asked to copy at a time."""
        self._name = name
        self._copy_part = copy_part
        self._config = config
        self._prefixed = config.layout == "prefixed"
        self._profile = profile_of(config)
        self._origin = Origin(name, endpoint_of(config), config.bucket if self._prefixed else None)
        self._part_size = max(MIN_PART, int(config.part_size))
        self._clients: dict[float, S3Client] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            needs_digest_first=True,
            conditional_writes=self._profile.conditional_writes,
            implicit_buckets=self._prefixed,
            prefix_keys=True,
            user_metadata=True,
            max_object_size=self._profile.max_object_size,
            max_copy_size=MAX_COPY,
            parts=PartLimits(self._part_size, MAX_PART, MAX_PARTS),
            parallel_reads=True,
            storage_classes=True,
            realm=realm_of(self._config) if self._profile.conditional_writes else None,
        )

    # Objects

    def put(self, bucket: str, key: str, body: Body, info: WriteInfo, *, condition: Condition = None) -> ObjectStat:
        upload = self._upload(bucket, key, info, uuid.uuid4().hex, condition)
        if condition and not self._profile.conditional_writes:
            upload.check_condition()
        return upload.whole(body)

    def open(
        self, bucket: str, key: str, *, offset: int = 0, length: int | None = None, uncached: bool = False
    ) -> S3Reader:
        del uncached  # nothing of the store is cached on this machine
        if length == 0:
            return self._nothing_of(bucket, key)
        reply = self._get(bucket, key, _range(offset, length))
        if reply is None:
            return self._nothing_of(bucket, key)
        if offset and not reply.get("ContentRange"):
            reply["Body"].close()
            raise PermanentError(f"{self._name}: {bucket}/{key}: the store ignores that a range was asked for")
        held = int(reply["ContentLength"])
        return S3Reader(
            to_stat(bucket, key, reply), reply["Body"], held if length is None else min(held, length), self._origin
        )

    def stat(self, bucket: str, key: str) -> ObjectStat:
        return to_stat(bucket, key, self._head(bucket, key))

    def delete(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        try:
            found = self.stat(bucket, key)
        except NotFound:
            return False
        if condition and found.version != condition.version:
            raise PreconditionFailed(
                f"{self._name}: {bucket}/{key} was expected in version {condition.version}, {found.version} is there"
            )
        atomic: dict[str, Any] = (
            {"IfMatch": f'"{condition.version}"'} if condition and self._profile.conditional_writes else {}
        )
        with self._errors(f"{bucket}/{key}"):
            try:
                self._client().delete_object(**self._where(bucket, key), **atomic)
            except ClientError as error:
                if not is_missing(error):
                    raise
                return False  # somebody else was faster
        return True

    def copy(self, bucket: str, key: str, to_bucket: str, to_key: str) -> ObjectStat:
        source = self._head(bucket, key)
        metadata = {**stored_metadata(source), WRITER: uuid.uuid4().hex}
        place = self._where(bucket, key)
        with self._errors(f"{bucket}/{key} to {to_bucket}/{to_key}"):
            reply = self._client(committing=True).copy_object(
                **self._where(to_bucket, to_key),
                CopySource={"Bucket": place["Bucket"], "Key": place["Key"]},
                CopySourceIfMatch=source["ETag"],  # or the digest would be that of other bytes
                MetadataDirective="REPLACE",
                Metadata=metadata,
                **cast("Any", self._options()),
            )
        answer = {**reply["CopyObjectResult"], "ResponseMetadata": reply["ResponseMetadata"]}
        return written_stat(to_bucket, to_key, source["ContentLength"], metadata, answer)

    def location(self, bucket: str, key: str) -> Where:
        return self._where(bucket, key)

    def copy_from(self, original: Where, found: ObjectStat, info: WriteInfo, *, between: Between) -> ObjectStat:
        write = self._write(found.bucket, found.key, info, uuid.uuid4().hex, "create_only")
        copy = Copy(self._client(), self._client(committing=True), self._origin, write)
        return copy.run(original, found.version, self._copy_part, between)

    def iter_objects(self, bucket: str, prefix: str = "", after: str = "") -> Iterator[ListedObject]:
        real, start = self._place(bucket)
        begin = {"StartAfter": start + after} if after else {}
        for page in self._pages("list_objects_v2", bucket, Bucket=real, Prefix=start + prefix, **begin):
            for row in page.get("Contents", []):
                key = row["Key"].removeprefix(start)
                if key > after and f"/{RESERVED_SEGMENT}" not in f"/{key}":
                    yield ListedObject(key, row["Size"], row["ETag"].strip('"'), row["LastModified"])

    # Writes in parts: a token is the writer's own token and the id of the multipart upload

    def begin_upload(self, bucket: str, key: str, info: WriteInfo) -> str:
        writer = uuid.uuid4().hex
        return f"{writer}:{self._upload(bucket, key, info, writer).begin()}"

    def upload_part(self, bucket: str, key: str, token: str, number: int, data: PartData) -> Part:
        return self._upload(bucket, key, WriteInfo()).send_part(_upload_id(token), number, data)

    def list_parts(self, bucket: str, key: str, token: str) -> list[Part]:
        return self._upload(bucket, key, WriteInfo()).list_parts(_upload_id(token))

    def complete_upload(
        self, bucket: str, key: str, token: str, parts: list[Part], info: WriteInfo, *, condition: Condition = None
    ) -> ObjectStat:
        writer = token.partition(":")[0]
        upload = self._upload(bucket, key, info, writer, condition)
        if condition and not self._profile.conditional_writes:
            upload.check_condition()
        return upload.complete(_upload_id(token), parts)

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        self._upload(bucket, key, WriteInfo()).abort(_upload_id(token))

    # Buckets

    def create_bucket(self, bucket: str) -> bool:
        existed = self.bucket_exists(bucket)
        if self._prefixed:  # also beside objects, so that the bucket outlives the last of them
            with self._errors(bucket):
                self._client().put_object(**self._where(bucket, MARKER), Body=b"")
        elif not existed:
            with self._errors(bucket):
                return buckets.make(self._client(), bucket, elsewhere=self._config.endpoint is None)
        return not existed

    def delete_bucket(self, bucket: str) -> bool:
        if not self._prefixed:
            with self._errors(bucket):
                return buckets.delete(self._client(), bucket)
        marker = self._where(bucket, MARKER)
        keys = self._first_keys(bucket, f"{bucket}/")
        if keys - {marker["Key"]}:
            raise BucketNotEmpty(f"{self._name}: bucket {bucket!r} still holds objects")
        with self._errors(bucket):
            self._client().delete_object(**marker)
        return bool(keys)

    def bucket_exists(self, bucket: str) -> bool:
        if self._prefixed:
            return bool(self._first_keys(bucket, f"{bucket}/"))
        with self._errors(bucket):
            return buckets.exists(self._client(), bucket)

    # The store

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        for real in self._real_buckets():
            for page in self._pages("list_multipart_uploads", real, Bucket=real):
                for upload in page.get("Uploads", []):
                    token = (real, upload["Key"], upload["UploadId"])
                    yield StaleUpload(f"multipart upload of {real}/{upload['Key']}", upload["Initiated"], token)

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        real, key, upload_id = stale.token
        with self._errors(f"{real}/{key}"):
            try:
                self._client().abort_multipart_upload(Bucket=real, Key=key, UploadId=upload_id)
            except ClientError as error:
                if code_of(error) not in {"NoSuchUpload", "404"}:
                    raise
                return False
        return True

    def check(self) -> None:
        if (
            self._prefixed
        ):  # a listing and no HEAD: its answer has a body, which says what is wrong with the credentials
            self._first_keys(str(self._config.bucket), "")
        else:
            self._real_buckets()

    def advice(self) -> list[str]:
        return [
            f"{self._name}: bucket {real} has no lifecycle rule that aborts incomplete multipart uploads; add "
            "AbortIncompleteMultipartUpload after 7 days, for those that nobody sweeps"
            for real in self._real_buckets()
            if buckets.keeps_open_uploads(self._client(), self._origin, real)
        ]

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    # Where things are

    def _place(self, bucket: str) -> tuple[str, str]:
        """Return the real bucket, and what stands before every key in it."""
        return (str(self._config.bucket), f"{bucket}/") if self._prefixed else (bucket, "")

    def _where(self, bucket: str, key: str) -> Where:
        real, start = self._place(bucket)
        return {"Bucket": real, "Key": start + key}

    def _real_buckets(self) -> list[str]:
        if self._prefixed:
            return [str(self._config.bucket)]
        with self._errors("its buckets"):
            return [bucket["Name"] for bucket in self._client().list_buckets()["Buckets"]]

    def _first_keys(self, what: str, prefix: str) -> set[str]:
        """Return the first two real keys of the one real bucket that start with `prefix`."""
        real = str(self._config.bucket)
        try:
            with self._errors(what):
                page = self._client().list_objects_v2(Bucket=real, Prefix=prefix, MaxKeys=2)
        except NotFound as error:
            raise missing_bucket(self._origin, real) from error
        return {row["Key"] for row in page.get("Contents", [])}

    def _pages(self, operation: Any, what: str, **request: str) -> Iterator[Any]:
        """Yield the pages of a listing as they are needed; none for a logical bucket that does not exist."""
        try:
            with self._errors(what):
                yield from self._client().get_paginator(operation).paginate(**request)
        except NotFound as error:
            # Some stores say of a bucket without open uploads that there is no such upload.
            if self._prefixed and code_of(error.__cause__) != "NoSuchUpload":
                raise missing_bucket(self._origin, request["Bucket"]) from error

    # Requests

    def _upload(self, bucket: str, key: str, info: WriteInfo, writer: str = "", condition: Condition = None) -> Upload:
        write = self._write(bucket, key, info, writer, condition)
        return Upload(self._client(), self._client(committing=True), self._origin, write)

    def _write(self, bucket: str, key: str, info: WriteInfo, writer: str, condition: Condition) -> Write:
        return Write(
            bucket=bucket,
            key=key,
            where=self._where(bucket, key),
            size=info.size or 0,
            metadata=to_metadata(info, writer),
            condition=condition,
            conditional=self._profile.conditional_writes,
            checksums=self._profile.checksums == "when_supported",
            options=self._options(info.storage_class),
        )

    def _options(self, storage_class: str | None = None) -> dict[str, str]:
        """Return what is asked for with every object that is made: its class and its encryption."""
        options = {
            "StorageClass": storage_class or self._config.storage_class,
            "ServerSideEncryption": self._config.encryption,
            "SSEKMSKeyId": self._config.kms_key_id,
        }
        return {name: value for name, value in options.items() if value}

    def _client(self, *, committing: bool = False) -> "S3Client":
        """Return this process's client, or the one that waits for what takes long, made when it is first needed."""
        read_timeout = COMMIT_TIMEOUT if committing else READ_TIMEOUT
        with self._lock:
            if read_timeout not in self._clients:
                with self._errors("the SDK"):
                    self._clients[read_timeout] = make_client(self._name, self._config, read_timeout=read_timeout)
            return self._clients[read_timeout]

    def _head(self, bucket: str, key: str) -> "HeadObjectOutputTypeDef":
        try:
            with self._errors(f"{bucket}/{key}"):
                return self._client().head_object(**self._where(bucket, key))
        except NotFound:
            raise self._missing(bucket, key) from None

    def _get(self, bucket: str, key: str, wanted: str | None) -> "GetObjectOutputTypeDef | None":
        """Ask for an object, or for a range of it; return None where the range is past its end."""
        part: dict[str, Any] = {"Range": wanted} if wanted else {}
        try:
            with self._errors(f"{bucket}/{key}"):
                return self._client().get_object(**self._where(bucket, key), **part)
        except NotFound:
            raise self._missing(bucket, key) from None
        except PermanentError as error:
            if code_of(error.__cause__) not in {"InvalidRange", "416"}:
                raise
            return None

    def _nothing_of(self, bucket: str, key: str) -> S3Reader:
        return S3Reader(self.stat(bucket, key), io.BytesIO(), 0, self._origin)

    def _missing(self, bucket: str, key: str) -> StorageError:
        """Return what is missing: a HEAD does not tell an object from its bucket, and some stores' GET neither."""
        real, _ = self._place(bucket)
        with self._errors(real):
            if not buckets.exists(self._client(), real):
                return missing_bucket(self._origin, real)
        return NotFound(f"{self._name}: {bucket}/{key} does not exist")

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return translated(self._origin, what)


def _range(offset: int, length: int | None) -> str | None:
    """Return the header that asks for a range, or None for the whole."""
    if length is None:
        return f"bytes={offset}-" if offset else None
    return f"bytes={offset}-{offset + length - 1}"


def _upload_id(token: str) -> str:
    return token.partition(":")[2]
