"""Write small objects with one plain request, at about a fifth of the SDK's processor time.

It is sent once. After no answer, or a transient error, the SDK sends it again, under the same token of the write: as it
would after an answer of its own that got lost.
"""

import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
from worker.storage.driver import Condition, ObjectStat, SmallPut, WriteInfo
from worker.storage.errors import AlreadyExists, StorageError, TransientError

AHEAD = 16
"""Objects of a group that are sent at a time, each over a connection of its own."""
AHEAD_SIZE = 64 * 1024
"""Bytes of the largest of them: the system takes so much of a connection at once, so that a slow line delays no other.
"""
_SLOW = 1.0
"""Seconds for an object after which no more are sent ahead."""
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


class PlainWrites:
    """Writes small objects to one store, as `PlainReads` reads them."""

    def __init__(self, origin: Origin, provider: Provider) -> None:
        self._origin = origin
        self._provider = provider
        self._failures: tuple[type[Exception], ...] = (OSError, HTTPException, *provider.sdk_errors)
        self._endpoints = BucketEndpoints(provider.locate)

    def put(
        self, target: RealObject, data: bytes | bytearray, headers: Headers | None, *, part: str = ""
    ) -> Mapping[str, Any] | None:
        """Write an object, or the part of one that the query `part` names; return what the SDK would return.

        Returns None if the SDK has to write it. That is so without headers, for larger objects, and for names that an
        HTTP library changes; without an answer, or after one that asks for another try; and where the environment names
        a proxy or a directory of certificates.

        Raises: the SDK's error, if the store refuses the write.
        """
        return self.begin(target, data, headers, part=part).answer()

    def begin(
        self, target: RealObject, data: bytes | bytearray, headers: Headers | None, *, part: str = ""
    ) -> "SentWrite":
        """Send what `put` sends; the `answer` of what is returned returns and raises what `put` does."""
        if headers is None or (len(data) > SMALL and not part) or not is_plain_name(target.name):
            return SentWrite(None)
        try:
            endpoint = self._endpoints.get(target.real)
            if endpoint is None:
                return SentWrite(None)
            url = endpoint.url_of(target.name) + (f"?{part}" if part else "")
            signed = endpoint.sign("PUT", url, {**headers, "Content-Length": str(len(data))})
            sent = endpoint.sent("PUT", url, signed, data, patience=_PATIENCE_OF_PART if part else _PATIENCE)
        except self._failures:
            return SentWrite(None)
        return SentWrite(partial(self._end, endpoint, sent, target, part))

    def _end(
        self, endpoint: BucketEndpoint, sent: socket.socket, target: RealObject, part: str
    ) -> Mapping[str, Any] | None:
        try:
            answer = endpoint.answer(sent, "PUT")
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


class SentWrite:
    """A plain request that was sent.

    Attributes:
        needs_sdk: the SDK has to write: nothing could be sent, as through a proxy, or the `answer` was None.
    """

    def __init__(self, wait: Callable[[], Mapping[str, Any] | None] | None) -> None:
        self._wait = wait
        self.needs_sdk = wait is None

    def answer(self) -> Mapping[str, Any] | None:
        """Wait for the answer, once."""
        found = self._wait() if self._wait else None
        self.needs_sdk = found is None
        return found


@dataclass(frozen=True, slots=True)
class BegunPut:
    """An object of a group; `end` waits for the answer to `request`, or has the SDK write, and returns the stat."""

    request: SentWrite
    end: Callable[[], ObjectStat]


class WritesAhead(ABC):
    """The part of a driver that writes groups: one thread sends several objects before it reads the first answer.

    `PlainReadsAhead` does the same for reads.
    """

    @abstractmethod
    def begin_put(self, bucket: str, key: str, data: bytes, info: WriteInfo, condition: Condition) -> BegunPut:
        """Send an object in one request."""

    def end_put(self, _bucket: str, _key: str, begun: BegunPut) -> ObjectStat:
        """Return the stat of an object; a method of the driver, so that its errors are about this bucket and key."""
        return begun.end()

    def put_many(self, puts: Iterable[SmallPut]) -> list[ObjectStat | StorageError]:
        """Write small objects; see `FullDriver`. Each is sent when it is taken.

        After an object that takes long, fails, or needs the SDK, no more are sent: those without a result have to be
        written by themselves, as several threads do. What was sent is ended in any case, also where `puts` raises.
        """
        ahead: deque[tuple[SmallPut, BegunPut | StorageError]] = deque()
        written: list[ObjectStat | StorageError] = []
        try:
            for put in puts:
                since = time.monotonic()
                ahead.append((put, self._begun(put)))
                first, last = ahead[0][1], ahead[-1][1]
                if len(ahead) == AHEAD:
                    written.append(self._ended(ahead.popleft()))
                failed = (
                    written and isinstance(written[-1], StorageError) and not isinstance(written[-1], AlreadyExists)
                )
                if failed or _needs_sdk(first) or _needs_sdk(last) or time.monotonic() - since > _SLOW:
                    break
        finally:
            with ThreadPoolExecutor(AHEAD, thread_name_prefix="ahead") as pool:  # each may have to wait for the SDK
                written += pool.map(self._ended, ahead)
        return written

    def _begun(self, put: SmallPut) -> BegunPut | StorageError:
        info = WriteInfo(put.body.digest.size, put.body.digest.sha256)
        try:
            return self.begin_put(put.bucket, put.key, put.body.data, info, put.condition)
        except StorageError as error:
            return error

    def _ended(self, each: tuple[SmallPut, BegunPut | StorageError]) -> ObjectStat | StorageError:
        put, begun = each
        try:
            return begun if isinstance(begun, StorageError) else self.end_put(put.bucket, put.key, begun)
        except StorageError as error:
            return error


def _needs_sdk(begun: BegunPut | StorageError) -> bool:
    return isinstance(begun, BegunPut) and begun.request.needs_sdk
