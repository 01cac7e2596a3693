"""The differences between S3 providers, and the SDK's clients for one of them."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial, partialmethod
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import boto3
import botocore.exceptions as sdk
import botocore.loaders
import botocore.session
from botocore.awsrequest import AWSHTTPConnectionPool, AWSHTTPSConnectionPool, AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp
from pydantic import SecretStr
from urllib3.exceptions import HTTPError, ReadTimeoutError

from worker.storage.cloud.error_mapping import check_environment, shown_url
from worker.storage.cloud.listing import check_size, is_document, without_malformed
from worker.storage.cloud.metadata import UNKNOWN_TIME
from worker.storage.cloud.proxies import proxies_for
from worker.storage.cloud.response_body import TOO_LONG, received_whole
from worker.storage.config import S3Config
from worker.storage.errors import PermanentError
from worker.storage.s3.errors import TRUST
from worker.storage.transfer.send_in_slices import as_sliced_body
from worker.storage.transfer.upload_intents import request_begins

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

GIB = 1024**3
TIB = 1024**4
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 60.0
COMMIT_TIMEOUT = 900.0
"""Seconds. Amazon documents that completing and copying can take minutes before the first byte of an answer."""
ATTEMPTS = 4
"""Of one request, by the SDK; the job's own retries are Celery's."""
CONNECTIONS = 16
DEFAULT_REGION = "us-east-1"

_LISTINGS = {
    "ListObjectsV2": "ListBucketResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "ListParts": "ListPartsResult",
}

Checksums = Literal["when_supported", "when_required"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The differences of one provider.

    Attributes:
        checksums: with `when_supported` every write has its SHA-256 in a header, with which Amazon compares the bytes
            that arrive. Stores that do not know the header refuse the request or ignore the checksum. For them the
            body's SHA-256 is signed instead, so that every store that checks signatures refuses a damaged body.
        conditional_writes: whether If-None-Match and If-Match on writes are honoured. No profile says so of If-Match on
            deletes: MinIO and others ignore it there, so that the driver compares the version before each delete.
        max_object_size: bytes.
        storage_classes: the names of its storage classes; of other providers only each installation knows them.
    """

    checksums: Checksums
    conditional_writes: bool
    max_object_size: int
    storage_classes: re.Pattern[str] = re.compile(".+")


_OF_AMAZON = re.compile(
    "STANDARD|REDUCED_REDUNDANCY|STANDARD_IA|ONEZONE_IA|INTELLIGENT_TIERING|GLACIER|DEEP_ARCHIVE|OUTPOSTS|GLACIER_IR"
    "|SNOW|EXPRESS_ONEZONE|FSX_OPENZFS|FSX_ONTAP|AWS_BACKUP_WARM|AWS_BACKUP_LOW_COST_WARM"
)

PROFILES = {
    "aws": Profile(
        "when_supported",
        conditional_writes=True,
        max_object_size=10_000 * 5 * GIB,
        storage_classes=_OF_AMAZON,
    ),
    "minio": Profile("when_required", conditional_writes=True, max_object_size=5 * TIB),
    "spaces": Profile("when_required", conditional_writes=True, max_object_size=5 * TIB),
    "wasabi": Profile("when_required", conditional_writes=True, max_object_size=5 * TIB),
    # B2 documents no conditional writes, and an ignored header would look like an honoured one.
    "b2": Profile("when_required", conditional_writes=False, max_object_size=5 * TIB),
    "ceph": Profile("when_required", conditional_writes=True, max_object_size=5 * TIB),
    "seaweedfs": Profile("when_required", conditional_writes=True, max_object_size=5 * TIB),
    "other": Profile("when_required", conditional_writes=True, max_object_size=5 * TIB),
}


def profile_of(config: S3Config) -> Profile:
    """Return the provider's profile, changed by the configuration."""
    known = PROFILES[config.provider or ("other" if config.endpoint else "aws")]
    conditional = known.conditional_writes if config.conditional_writes is None else config.conditional_writes
    return Profile(
        checksums=config.checksums or known.checksums,
        conditional_writes=conditional,
        max_object_size=known.max_object_size,
        storage_classes=known.storage_classes,
    )


def endpoint_of(config: S3Config) -> str:
    """Return the endpoint as messages may show it."""
    if config.endpoint is None:
        return f"Amazon S3 in {config.region}" if config.region else "Amazon S3"
    return shown_url(config.endpoint)


def realm_of(config: S3Config) -> Hashable:
    """Return the text that is equal for stores that can copy from each other; see `Capabilities`."""
    keys = (config.access_key_id, config.secret_access_key, config.session_token, config.profile)
    return ("s3", endpoint_of(config), config.region, *keys)


def sdk_config(config: S3Config, *, read_timeout: float = READ_TIMEOUT) -> Config:
    """Return the SDK's settings for a store; all that matter are explicit, because its defaults change."""
    checksums = profile_of(config).checksums
    return Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=read_timeout,
        tcp_keepalive=True,
        proxies=proxies_for(config.endpoint) if config.endpoint else None,
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation=checksums,
        # The SDK must not check what it reads. All bytes are compared with a SHA-256 here, and an earlier error of the
        # SDK would make a corrupt object unreadable instead of `corrupt`.
        response_checksum_validation="when_required",
        s3={
            "addressing_style": config.addressing or ("path" if config.endpoint else "auto"),
            "payload_signing_enabled": checksums == "when_required",
        },
    )


def make_client(
    name: str, config: S3Config, *, read_timeout: float = READ_TIMEOUT, damaging: bool = False
) -> "S3Client":
    """Make a client with the configured keys, or with those that the SDK's chain finds. It belongs to this process.

    With `damaging` it changes the first byte of each body after the signature, like a bad line.

    Raises:
        PermanentError: the endpoint is no URL.
        Unavailable: the certificates, or the proxy, that the environment names cannot be used.
        botocore.exceptions.BotoCoreError: the profile does not exist, or cannot be read.
    """
    check_environment(name, endpoint_of(config), [TRUST])
    core = botocore.session.Session(profile=config.profile)
    core.register_component("data_loader", _data_loader(core.get_config_variable("data_path")))
    # Otherwise one object whose time is in the year 30345 would make the whole page of a listing unreadable.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    session = boto3.session.Session(botocore_session=core)
    region = config.region or session.region_name or (DEFAULT_REGION if config.endpoint else None)
    try:
        client = session.client(
            "s3",
            region_name=region,
            endpoint_url=config.endpoint,
            aws_access_key_id=_revealed(config.access_key_id),
            aws_secret_access_key=_revealed(config.secret_access_key),
            aws_session_token=_revealed(config.session_token),
            config=sdk_config(config, read_timeout=read_timeout),
        )
    except ValueError as error:
        raise PermanentError(
            f"{name}: {endpoint_of(config)!r} is no URL of a store; correct `endpoint`, such as https://s3.example.com"
        ) from error
    for operation, root in _LISTINGS.items():
        client.meta.events.register(f"before-parse.s3.{operation}", partial(_clean_page, root))
    client.meta.events.register("needs-retry.s3.HeadBucket", _ask_no_bucket_again)
    client.meta.events.register("before-send.s3.CreateMultipartUpload", request_begins)
    client.meta.events.register("before-send.s3", _damage if damaging else _send_in_pieces)
    endpoint: Any = client._endpoint  # type: ignore[attr-defined]  # noqa: SLF001  the SDK offers no other place
    endpoint.http_session = _LimitedSession(endpoint.http_session)
    return client


def _ask_no_bucket_again(request_dict: dict[str, Any], response: tuple[Any, dict[str, Any]] | None, **_: Any) -> None:
    """Let the SDK take a redirection of a bucket that names no region as the answer.

    After any redirection without one it asks for the bucket. It would ask again after the answer to that, and so on
    until the stack of Python is full: 80 requests.
    """
    if response is not None and "x-amz-bucket-region" not in response[1]["ResponseMetadata"]["HTTPHeaders"]:
        request_dict["context"]["s3_redirect"]["redirected"] = True


class _LimitedSession:
    """Sends the SDK's requests, and receives no more of an answer that is no object than one can have."""

    def __init__(self, session: Any) -> None:
        self._session = session
        session._pool_classes_by_scheme |= {"http": _HttpPool, "https": _HttpsPool}  # noqa: SLF001  as above

    def send(self, request: AWSPreparedRequest) -> AWSResponse:
        """Return the answer to a request.

        Raises:
            ResponseParserError: the answer is longer than any that is no object.
            botocore.exceptions.HTTPClientError: there is no answer, or it broke off.
        """
        is_object, request.stream_output = request.stream_output, True
        try:
            answer: AWSResponse = self._session.send(request)
        finally:
            request.stream_output = is_object
        if is_object and answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        answer.raw.enforce_content_length = True  # the SDK takes an answer that breaks off for an empty one
        try:
            content = received_whole(answer.raw.stream())
        except ReadTimeoutError as error:
            raise sdk.ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except HTTPError as error:
            raise sdk.ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        if content is None:
            answer.raw.close()
            raise ResponseParserError(TOO_LONG)
        answer._content = content  # type: ignore[attr-defined]  # noqa: SLF001
        return answer

    def close(self) -> None:
        self._session.close()


class _HttpPool(AWSHTTPConnectionPool):
    """Returns a redirection like any other answer, and prepares no request to the place that it names.

    The SDK lets urllib3 follow none, but urllib3 prepares it all the same. After 303 it fails at the SDK's signature,
    which is bytes, and loses the answer, whose connection stays open.
    """

    urlopen = partialmethod(AWSHTTPConnectionPool.urlopen, redirect=False)


class _HttpsPool(AWSHTTPSConnectionPool):
    """As `_HttpPool`."""

    urlopen = partialmethod(AWSHTTPSConnectionPool.urlopen, redirect=False)


@cache
def _data_loader(data_path: str | None) -> botocore.loaders.Loader:
    """Return what reads the SDK's description of S3: to do so for each client takes 60 ms and 12 MB."""
    return botocore.loaders.create_loader(data_path)


def _clean_page(root: str, response_dict: dict[str, Any], **_: object) -> None:
    body, status = response_dict["body"], response_dict["status_code"]
    if status < HTTPStatus.MULTIPLE_CHOICES and not is_document(body, root):
        raise ResponseParserError(f"the answer is no {root}")
    if root == _LISTINGS["ListObjectsV2"]:
        response_dict["body"] = without_malformed(body, {"Size": check_size})


def _send_in_pieces(request: AWSPreparedRequest, **_: object) -> None:
    request.body = as_sliced_body(request.body)  # it is signed, and counted in the headers


def _damage(request: AWSPreparedRequest, **_: object) -> None:
    body: Any = request.body
    if not body:
        return
    if not isinstance(body, bytes | bytearray):
        body.seek(0)  # it was read to its end where the SDK sends it again
        body = body.read()
    request.body = bytes([body[0] ^ 1]) + bytes(body[1:])


def _time(value: Any) -> datetime:
    try:
        return parse_timestamp(value)
    except (ValueError, OverflowError, TypeError):
        return UNKNOWN_TIME


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
