"""Tell how a bucket of an S3 store is reached without the SDK, and sign the requests."""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions as sdk
from botocore.exceptions import ClientError
from botocore.parsers import create_parser

from worker.storage.cloud.plain_requests import Answer, BucketEndpoint, Headers
from worker.storage.config import S3Config
from worker.storage.s3.providers import DEFAULT_REGION
from worker.storage.s3.signature import PAYLOAD, Signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

_PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Not an access point, nor a name that needs path-style addressing at Amazon; those have dots."""
PARSER: Any = create_parser("rest-xml")
_NO_BODY = {PAYLOAD: hashlib.sha256(b"").hexdigest()}


def locator(config: S3Config, client: "Callable[[], S3Client]") -> "Callable[[str], BucketEndpoint | None]":
    """Return a function that tells how a bucket is reached; None where only the SDK knows it."""
    return lambda real: _locate(config, real, client()) if is_reachable(config) else None


def is_reachable(config: S3Config) -> bool:
    """Return whether requests without the SDK are possible.

    They are not for stores with an expected owner, or with buckets in the host name of an unknown endpoint.
    """
    unknown = config.endpoint and (config.addressing or "path") != "path"
    return not (config.data_path == "sdk" or config.bucket_owner or unknown)


def refusal_of(answer: Answer, operation: str) -> ClientError:
    """Return the error that the SDK raises for an answer."""
    reply = {"body": answer.body, "headers": answer.headers, "status_code": answer.status}
    return ClientError(PARSER.parse(reply, None), operation)


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
