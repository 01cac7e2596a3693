"""Read and write the small objects of a store that speaks S3 without the SDK, where its settings allow it."""

import hashlib
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions as sdk
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError, create_parser
from requests.structures import CaseInsensitiveDict

from worker.storage.cloud.conditional_write import Write
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.metadata import SHA256
from worker.storage.cloud.plain_requests import Answer, BucketEndpoint, Headers
from worker.storage.cloud.small_reads import PlainReads, whole_object
from worker.storage.cloud.small_writes import PlainWrites, Provider
from worker.storage.config import S3Config
from worker.storage.s3.errors import SDK_ERRORS, code_of, translate
from worker.storage.s3.object_stat import version_of
from worker.storage.s3.providers import DEFAULT_REGION
from worker.storage.s3.signature import PAYLOAD, Signer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

_PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Not an access point, nor a name that needs path-style addressing at Amazon; those have dots."""
_PARSER: Any = create_parser("rest-xml")
_NO_BODY = {PAYLOAD: hashlib.sha256(b"").hexdigest()}
DIGESTS = {"x-amz-checksum-mode": "ENABLED"}
"""Asks for the store's own digest in the answer to a HEAD."""
_DIGEST = f"x-amz-meta-{SHA256}"
_FINAL = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
"""Statuses after which the SDK would not ask again either."""
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


def plain_reads(config: S3Config, client: "Callable[[], S3Client]") -> PlainReads:
    """Return the plain reads of a store."""
    return PlainReads(
        _locator(config, client),
        lambda answer: whole_object(answer, _DIGEST, version_of(answer.headers.get("etag"))),
        SDK_ERRORS,
    )


def parse_head(answer: Answer, client: "S3Client") -> "HeadObjectOutputTypeDef | None":
    """Return the answer to a HEAD as the SDK returns it; None where the SDK has to ask.

    Raises:
        ClientError: there is no such object, or the store refuses to tell.
    """
    if answer.status in _FINAL:
        raise _refusal_of(answer, "HeadObject")
    if answer.status != HTTPStatus.OK:
        return None
    shape = client.meta.service_model.operation_model("HeadObject").output_shape
    reply = {"status_code": answer.status, "headers": CaseInsensitiveDict(answer.headers), "body": b""}
    try:
        found: HeadObjectOutputTypeDef = _PARSER.parse(reply, shape)
    except (ValueError, ResponseParserError):  # a header is not what its name says
        return None
    return found


def plain_writes(config: S3Config, origin: Origin, client: "Callable[[], S3Client]") -> PlainWrites:
    """Return the small writes of a store."""
    return PlainWrites(origin, Provider(_locator(config, client), _reply, _refusal, SDK_ERRORS, translate))


def headers_of(write: Write, arguments: Mapping[str, Any]) -> Headers | None:
    """Return the headers of a write from the SDK's arguments for it; None if it has others than HEADERS."""
    if arguments.keys() - HEADERS.keys():
        return None
    named = {HEADERS[name]: value for name, value in arguments.items()}
    return named | {f"x-amz-meta-{name}": value for name, value in write.metadata.items()} | {PAYLOAD: write.sha256}


def _reply(answer: Answer) -> dict[str, Any]:
    said = {"HTTPStatusCode": answer.status, "HTTPHeaders": answer.headers}
    found = {"ETag": answer.headers.get("etag"), "ChecksumSHA256": answer.headers.get("x-amz-checksum-sha256")}
    return {**found, "ResponseMetadata": said}


def _refusal(answer: Answer) -> ClientError | None:
    error = _refusal_of(answer, "PutObject")
    return None if code_of(error) in _OTHER_REGION else error


def _locator(config: S3Config, client: "Callable[[], S3Client]") -> "Callable[[str], BucketEndpoint | None]":
    """Return a function that tells how a bucket is reached; None where only the SDK knows it."""
    return lambda real: _locate(config, real, client()) if is_reachable(config) else None


def is_reachable(config: S3Config) -> bool:
    """Return whether requests without the SDK are possible.

    They are not for stores with an expected owner, or with buckets in the host name of an unknown endpoint.
    """
    unknown = config.endpoint and (config.addressing or "path") != "path"
    return not (config.data_path == "sdk" or config.bucket_owner or unknown)


def _refusal_of(answer: Answer, operation: str) -> ClientError:
    """Return the error that the SDK raises for an answer."""
    reply = {"body": answer.body, "headers": answer.headers, "status_code": answer.status}
    return ClientError(_PARSER.parse(reply, None), operation)


def _locate(config: S3Config, real: str, client: "S3Client") -> BucketEndpoint | None:
    if config.endpoint:
        return _signed(config, f"{config.endpoint.rstrip('/')}/{real}", client.meta.region_name or DEFAULT_REGION)
    region = _region_of(client, real)
    known = {f"https://s3.{client.meta.region_name}.amazonaws.com", "https://s3.amazonaws.com"}
    if client.meta.endpoint_url not in known or not _PLAIN_BUCKET.fullmatch(real):
        return None  # another partition, FIPS, dual stack, or an endpoint from the environment
    if config.addressing != "path" and "." not in real:
        return _signed(config, f"https://{real}.s3.{region}.amazonaws.com", region)
    return _signed(config, f"https://s3.{region}.amazonaws.com/{real}", region)


def _signed(config: S3Config, bucket: str, region: str) -> BucketEndpoint:
    fetch, signer = _fetcher(config), Signer(bucket, region)

    def sign(method: str, url: str, headers: Headers) -> Headers:
        return signer.sign(method, f"/{url.split('/', 3)[3]}", {**_NO_BODY, **headers}, fetch())

    return BucketEndpoint(bucket, sign)


def _region_of(client: "S3Client", real: str) -> str:
    """Return where a bucket is: the SDK follows redirects to another region, a plain request does not."""
    headers: Mapping[str, str] = {}
    try:
        headers = client.head_bucket(Bucket=real)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:  # the answer has the region even if it is an error
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region") or client.meta.region_name


def _fetcher(config: S3Config) -> "Callable[[], Mapping[str, Any]]":
    """Return a function that returns the configured keys, or those that the SDK's chain finds and renews."""
    if config.access_key_id and config.secret_access_key:
        token = config.session_token
        keys = {
            "access_key_id": config.access_key_id.get_secret_value(),
            "secret_access_key": config.secret_access_key.get_secret_value(),
            "token": token.get_secret_value() if token else None,
        }
        return lambda: keys
    found = boto3.session.Session(profile_name=config.profile).get_credentials()

    def fetch() -> Mapping[str, Any]:
        if found is None:
            raise sdk.NoCredentialsError
        kept = found.get_frozen_credentials()
        return {"access_key_id": kept.access_key, "secret_access_key": kept.secret_key, "token": kept.token}

    return fetch
