"""Read the small objects of a store in Cloud Storage with plain requests to its XML interface."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.auth.transport.requests import Request

from worker.storage.cloud.metadata import SHA256
from worker.storage.cloud.plain_requests import BucketEndpoint, Headers
from worker.storage.cloud.small_reads import PlainReads, whole_object
from worker.storage.config import GcsConfig
from worker.storage.gcs.errors import SDK_ERRORS

if TYPE_CHECKING:
    from worker.storage.gcs.client import Connection

_STORED = {"Accept-Encoding": "gzip"}
"""Unless gzip is an accepted encoding, the store returns decompressed bytes."""
_DIGEST, _GENERATION = f"x-goog-meta-{SHA256}", "x-goog-generation"


def plain_reads(config: GcsConfig, connected: "Callable[[], Connection]") -> PlainReads:
    """Return the plain reads of a store."""

    def locate(real: str) -> BucketEndpoint | None:
        return None if config.data_path == "sdk" else _locate(real, connected())

    return PlainReads(locate, lambda answer: whole_object(answer, _DIGEST, answer.headers.get(_GENERATION)), SDK_ERRORS)


def _locate(real: str, connection: "Connection") -> BucketEndpoint:
    credentials: Any = connection.session.credentials  # type: ignore[attr-defined]
    renewal = Request()

    def sign(method: str, url: str, headers: Headers) -> Headers:
        signed = {**headers, **_STORED}
        credentials.before_request(renewal, method, url, signed)  # renews a token before it expires
        return signed

    return BucketEndpoint(f"{connection.endpoint}/{real}", sign)
