"""Write small objects with one plain request, at about a fifth of the SDK's processor time.

It is sent once. Where there is no answer, or one that may pass, the SDK sends it again, under the same token of the
write, as it would after an answer of its own that got lost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from worker.storage.cloud.error_mapping import Origin, Translate
from worker.storage.cloud.plain_requests import (
    SMALL,
    Answer,
    BucketEndpoint,
    BucketEndpoints,
    Headers,
    RealObject,
    is_plain_name,
)
from worker.storage.errors import TransientError

_PATIENCE = 30
"""Seconds for which an answer may be silent; the SDK, which writes after that, is more patient."""
_PATIENCE_OF_PART = 60
"""The same for a part, as long as the SDK waits: not every store takes a part that it has already."""
_ASKED_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True, slots=True)
class Provider:
    """How the small writes of one provider are sent, and what its answers mean.

    Attributes:
        locate: where a real bucket is; None for one that needs the SDK.
        reply: returns an answer to a write as the SDK returns it.
        refusal: returns the SDK's error for an answer; None after which the SDK knows another way.
        sdk_errors: what the SDK raises, also while it looks for credentials.
        translate: the meaning of that.
    """

    locate: Callable[[str], BucketEndpoint | None]
    reply: Callable[[Answer], Mapping[str, Any]]
    refusal: Callable[[Answer], Exception | None]
    sdk_errors: tuple[type[Exception], ...]
    translate: Translate


class SmallWrites:
    """Writes small objects to one store."""

    def __init__(self, origin: Origin, provider: Provider) -> None:
        self._origin = origin
        self._provider = provider
        self._failures: tuple[type[Exception], ...] = (OSError, HTTPException, *provider.sdk_errors)
        self._endpoints = BucketEndpoints(provider.locate)

    def put(
        self, target: RealObject, data: bytes | bytearray, headers: Headers | None, *, part: str = ""
    ) -> Mapping[str, Any] | None:
        """Write an object, or the part of one that the query `part` names; return what the SDK would return.

        Returns None if the SDK has to write it: without headers, for larger objects, without an answer, after one that
        asks for another try, for names that an HTTP library changes, and where the environment names a proxy or a
        directory of certificates.

        Raises: the SDK's error, if the store refuses the write.
        """
        if headers is None or (len(data) > SMALL and not part) or not is_plain_name(target.name):
            return None
        try:
            endpoint = self._endpoints.get(target.real)
            if endpoint is None:
                return None
            url = endpoint.url_of(target.name) + (f"?{part}" if part else "")
            signed = endpoint.sign("PUT", url, {**headers, "Content-Length": str(len(data))})
            answer = endpoint.send("PUT", url, signed, data, patience=_PATIENCE_OF_PART if part else _PATIENCE)
        except self._failures:
            return None
        if answer.is_written:
            return self._provider.reply(answer)
        refused = HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
        error = self._provider.refusal(answer) if refused and answer.status not in _ASKED_AGAIN else None
        if error is None:
            return None
        if not part and isinstance(self._provider.translate(error, self._origin, target.what), TransientError):
            return None  # a part is sent again by the next attempt: not every store takes it again in this one
        raise error

    def close(self) -> None:
        """End the connections."""
        self._endpoints.close()
