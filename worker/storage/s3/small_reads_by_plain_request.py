"""Read the small objects of a store that speaks S3 with plain requests, where its configuration allows it."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker.storage.cloud import small_reads_by_obstore
from worker.storage.cloud.metadata import SHA256
from worker.storage.cloud.plain_requests import BucketEndpoint, Headers
from worker.storage.cloud.small_reads_by_plain_request import PlainReads, whole_object
from worker.storage.config import S3Config
from worker.storage.s3.errors import SDK_ERRORS
from worker.storage.s3.object_stat import version_of
from worker.storage.s3.requests_without_sdk import fetcher, is_reachable, reach
from worker.storage.s3.signature import PAYLOAD, Signer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_NOTHING = {PAYLOAD: hashlib.sha256(b"").hexdigest()}
_DIGEST = f"x-amz-meta-{SHA256}"


def plain_reads(config: S3Config, client: "Callable[[], S3Client]") -> PlainReads:
    """Return the plain reads of a store."""

    def locate(real: str) -> BucketEndpoint | None:
        return _locate(config, real, client()) if is_reachable(config) else None

    return PlainReads(
        locate, lambda answer: whole_object(answer, _DIGEST, version_of(answer.headers.get("etag"))), SDK_ERRORS
    )


def _locate(config: S3Config, real: str, client: "S3Client") -> BucketEndpoint | None:
    reached = reach(config, real, client)
    if reached is None:
        return None
    fetch, signer = fetcher(config), Signer(reached.url, reached.region)

    def sign(url: str, headers: Headers) -> Headers:
        path = f"/{url.split('/', 3)[3]}"
        return signer.sign(path, {**headers, **_NOTHING}, fetch(), method="GET")

    return BucketEndpoint(reached.url, sign, timeout=small_reads_by_obstore.PATIENCE)
