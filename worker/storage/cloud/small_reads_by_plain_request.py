"""Read small objects with one plain request, at about half of obstore's processor time.

Only the simplest answer counts: status 200, an ETag, and exactly the bytes that were asked for. After any other one the
SDK asks, which knows what it means.
"""

from collections.abc import Callable
from http.client import HTTPException

from worker.storage.cloud import small_reads_by_obstore
from worker.storage.cloud.metadata import sha256_of
from worker.storage.cloud.plain_requests import BucketEndpoint, BucketEndpoints, PlainAnswer
from worker.storage.cloud.small_reads_by_obstore import RealObject, is_plain_name
from worker.storage.driver import WholeObject


class PlainReads:
    """Reads small objects of one store."""

    def __init__(
        self,
        locate: Callable[[str], BucketEndpoint | None],
        read: Callable[[PlainAnswer], WholeObject | None],
        sdk_errors: tuple[type[Exception], ...],
    ) -> None:
        """Read from the endpoints of real buckets.

        Args:
            locate: where a real bucket is; None for one that needs the SDK.
            read: returns what an answer says, None where that is not understood.
            sdk_errors: what the provider's SDK raises while it looks for credentials.
        """
        self._endpoints = BucketEndpoints(locate)
        self._read = read
        self._failures: tuple[type[Exception], ...] = (OSError, ValueError, HTTPException, *sdk_errors)

    def read(self, target: RealObject, size: int) -> WholeObject | None:
        """Return an object that has exactly `size` bytes; None where the SDK has to ask."""
        if not is_plain_name(target.name):
            return None
        try:
            endpoint = self._endpoints.get(target.real)
            if endpoint is None:
                return None
            url = endpoint.url_of(target.name)
            answer = endpoint.get(url, size, endpoint.sign(url, {}), patience=small_reads_by_obstore.PATIENCE)
            return None if answer is None else self._read(answer)
        except self._failures:
            return None

    def close(self) -> None:
        """End the connections."""
        self._endpoints.close()


def whole_object(answer: PlainAnswer, digest: str, version_of: Callable[[object], str]) -> WholeObject | None:
    """Return the object of an answer that has an ETag; `digest` is the header with the SHA-256 beside the object."""
    version = version_of(answer.headers.get("etag"))
    return WholeObject(version, answer.body, sha256_of(answer.headers.get(digest)) or "") if version else None
