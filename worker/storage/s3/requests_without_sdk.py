"""Ask an S3 store about objects by obstore, and tell how a bucket is reached without the SDK."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions as sdk
from botocore.exceptions import ClientError
from obstore.store import S3Store

from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.small_reads_by_obstore import (
    Client,
    Dialect,
    FastPath,
    KeptCredentials,
    client_options,
    retry_config,
)
from worker.storage.config import S3Config
from worker.storage.s3.errors import CODES, SDK_ERRORS, translate
from worker.storage.s3.object_stat import version_of
from worker.storage.s3.providers import DEFAULT_REGION, profile_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3 import S3Client

_PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Not an access point, nor a name that needs path-style addressing at Amazon; those have dots."""
DIALECT = Dialect(CODES, lambda meta: version_of(meta["e_tag"]), SDK_ERRORS, translate)


def fast_path(config: S3Config, origin: Origin, client: "Callable[[], S3Client]") -> FastPath | None:
    """Return the fast path of a store; None if every request must use the SDK.

    These are stores with an expected owner, with buckets in the host name of an unknown endpoint, or with a password in
    the endpoint.
    """
    if not is_reachable(config):
        return None
    return FastPath(origin, DIALECT, lambda real: _connect(config, real, client()))


def is_reachable(config: S3Config) -> bool:
    """Return whether requests without the SDK are possible, as the configuration says."""
    endpoint = config.endpoint
    unknown = endpoint and ("@" in endpoint or not _path_style(config))
    return not (config.data_path == "sdk" or config.bucket_owner or unknown)


def _path_style(config: S3Config) -> bool:
    return (config.addressing or "path") == "path"


@dataclass(frozen=True, slots=True)
class Reached:
    """How requests to a real bucket begin: its URL, the endpoint in that, and the region that signatures name."""

    url: str
    endpoint: str
    region: str
    virtual: bool


def reach(config: S3Config, real: str, client: "S3Client") -> Reached | None:
    """Return how a bucket is reached without the SDK; None if only the SDK knows it."""
    if config.endpoint:
        endpoint = config.endpoint.rstrip("/")
        return Reached(f"{endpoint}/{real}", endpoint, client.meta.region_name or DEFAULT_REGION, virtual=False)
    region = _region_of(client, real)
    known = {f"https://s3.{client.meta.region_name}.amazonaws.com", "https://s3.amazonaws.com"}
    if client.meta.endpoint_url not in known or not _PLAIN_BUCKET.fullmatch(real):
        return None  # another partition, FIPS, dual stack, or an endpoint from the environment
    if config.addressing != "path" and "." not in real:
        endpoint = f"https://{real}.s3.{region}.amazonaws.com"
        return Reached(endpoint, endpoint, region, virtual=True)
    endpoint = f"https://s3.{region}.amazonaws.com"
    return Reached(f"{endpoint}/{real}", endpoint, region, virtual=False)


def _connect(config: S3Config, real: str, client: "S3Client") -> Client | None:
    reached = reach(config, real, client)
    if reached is None:
        return None
    credentials = KeptCredentials(fetcher(config))
    options: dict[str, Any] = {"checksum_algorithm": "SHA256"} if _sends_checksums(config) else {}
    store = S3Store(
        real,
        endpoint=reached.endpoint,
        aws_endpoint_url_s3=reached.endpoint,  # otherwise an environment variable could change it
        region=reached.region,
        virtual_hosted_style_request=reached.virtual,
        skip_signature=False,
        unsigned_payload=False,
        s3_express=False,
        credential_provider=credentials,
        client_options=client_options(reached.endpoint),
        retry_config=retry_config(),
        **options,
    )
    return Client(store, credentials)


def _sends_checksums(config: S3Config) -> bool:
    return profile_of(config).checksums == "when_supported"


def _region_of(client: "S3Client", real: str) -> str:
    """Return where a bucket is: the SDK follows redirects to another region, obstore does not."""
    headers: Mapping[str, str] = {}
    try:
        headers = client.head_bucket(Bucket=real)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:  # the answer has the region even if it is an error
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region") or client.meta.region_name


def fetcher(config: S3Config) -> "Callable[[], Mapping[str, Any]]":
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
