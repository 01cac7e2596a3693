"""Write the small objects of a store that speaks S3 with plain requests, where its configuration allows it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.plain_requests import Answer, BucketEndpoint, Headers
from worker.storage.cloud.small_writes import Provider, SmallWrites
from worker.storage.config import S3Config
from worker.storage.s3.errors import SDK_ERRORS, code_of, translate
from worker.storage.s3.requests_without_sdk import fetcher, is_reachable, reach
from worker.storage.s3.signature import PAYLOAD, Signer

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
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "IfMatch": "If-Match",
    "IfNoneMatch": "If-None-Match",
}
"""The headers of the SDK's arguments. A write with other ones, such as tags, needs the SDK."""
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "400"}
"""Codes after which the SDK looks for the region of a bucket."""
_PARSER: Any = create_parser("rest-xml")


def small_writes(config: S3Config, origin: Origin, client: "Callable[[], S3Client]") -> SmallWrites:
    """Return the small writes of a store."""

    def locate(real: str) -> BucketEndpoint | None:
        return _locate(config, real, client()) if is_reachable(config) else None

    return SmallWrites(origin, Provider(locate, _reply, _refusal, SDK_ERRORS, translate))


def headers_of(write: Write, arguments: Mapping[str, Any]) -> Headers | None:
    """Return the headers of a write from the SDK's arguments for it; None if it has others than HEADERS."""
    if arguments.keys() - HEADERS.keys():
        return None
    named = {HEADERS[name]: value for name, value in arguments.items()}
    return named | {f"x-amz-meta-{name}": value for name, value in write.metadata.items()} | {PAYLOAD: write.sha256}


def _reply(answer: Answer) -> dict[str, Any]:
    said = {"HTTPStatusCode": answer.status, "HTTPHeaders": answer.headers}
    return {"ETag": answer.headers.get("etag"), "ResponseMetadata": said}


def _refusal(answer: Answer) -> ClientError | None:
    parsed = _PARSER.parse({"body": answer.body, "headers": answer.headers, "status_code": answer.status}, None)
    error = ClientError(parsed, "PutObject")
    return None if code_of(error) in _OTHER_REGION else error


def _locate(config: S3Config, real: str, client: "S3Client") -> BucketEndpoint | None:
    reached = reach(config, real, client)
    if reached is None:
        return None
    fetch, signer = fetcher(config), Signer(reached.url, reached.region)
    return BucketEndpoint(reached.url, lambda url, headers: signer.sign(urlsplit(url).path, headers, fetch()))
