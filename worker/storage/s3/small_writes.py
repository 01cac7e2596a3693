"""Write the small objects of a store that speaks S3 with plain requests, where its configuration allows it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.plain_requests import Answer, Headers
from worker.storage.cloud.small_writes import Provider, SmallWrites
from worker.storage.config import S3Config
from worker.storage.s3.errors import SDK_ERRORS, code_of, translate
from worker.storage.s3.requests_without_sdk import locator, refusal_of
from worker.storage.s3.signature import PAYLOAD

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HEADERS = {
    "ContentType": "Content-Type",
    "ContentEncoding": "Content-Encoding",
    "ContentLanguage": "Content-Language",
    "ContentDisposition": "Content-Disposition",
    "CacheControl": "Cache-Control",
    "StorageClass": "x-amz-storage-class",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ContentMD5": "Content-MD5",
    "ChecksumCRC32": "x-amz-checksum-crc32",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "IfMatch": "If-Match",
    "IfNoneMatch": "If-None-Match",
}
"""The headers of the SDK's arguments. A write with other ones, such as tags, needs the SDK."""
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "400"}
"""Codes after which the SDK looks for the region of a bucket."""


def small_writes(config: S3Config, origin: Origin, client: "Callable[[], S3Client]") -> SmallWrites:
    """Return the small writes of a store."""
    return SmallWrites(origin, Provider(locator(config, client), _reply, _refusal, SDK_ERRORS, translate))


def headers_of(write: Write, arguments: Mapping[str, Any]) -> Headers | None:
    """Return the headers of a write from the SDK's arguments for it; None if it has others than HEADERS."""
    if arguments.keys() - HEADERS.keys():
        return None
    named = {HEADERS[name]: value for name, value in arguments.items()}
    return named | {f"x-amz-meta-{name}": value for name, value in write.metadata.items()} | {PAYLOAD: write.sha256}


def _reply(answer: Answer) -> dict[str, Any]:
    said = {"HTTPStatusCode": answer.status, "HTTPHeaders": answer.headers}
    found = {"ETag": answer.headers.get("etag"), "ChecksumCRC32": answer.headers.get("x-amz-checksum-crc32")}
    return {**found, "ResponseMetadata": said}


def _refusal(answer: Answer) -> ClientError | None:
    error = refusal_of(answer, "PutObject")
    return None if code_of(error) in _OTHER_REGION else error
