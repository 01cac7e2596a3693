"""Read small objects with one plain request, at a fraction of the SDKs' processor time.

A thread that reads many asks for several before it reads the first answer, each over a connection of its own. An answer
has mostly arrived when the thread reads it: the thread does not sleep, and no other one takes Python's lock from it.

Only the simplest answer counts: status 200, an ETag, and exactly the bytes that were asked for. After any other one the
SDK asks, which knows what it means.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException

from worker.storage.cloud.metadata import sha256_of
from worker.storage.cloud.plain_requests import (
    SMALL,
    Answer,
    BucketEndpoint,
    BucketEndpoints,
    Headers,
    PlainAnswer,
    RealObject,
    is_plain_name,
)
from worker.storage.driver import SmallRead, WholeObject
from worker.storage.errors import StorageError

PATIENCE = 4
"""Seconds for one request; a job that has to stop waits for its end.

On a slower line the SDK reads the object: its time limit is for each piece.
"""
AHEAD = 8
"""Objects that one thread asks for at a time. Their answers wait in the connections, not in memory of this process."""
_STALE = 1.0
"""Seconds after the last request, after which all answers are read first: a bandwidth limit may delay the next one."""
_Asked = tuple[BucketEndpoint, socket.socket]


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
            read: parses an answer; None if it is not understood.
            sdk_errors: the errors that the provider's SDK raises while it looks for credentials.
        """
        self._endpoints = BucketEndpoints(locate)
        self._read = read
        self.failures: tuple[type[Exception], ...] = (OSError, ValueError, HTTPException, StorageError, *sdk_errors)

    def read(self, target: RealObject, size: int) -> WholeObject | None:
        """Return an object that has exactly `size` bytes; None where the SDK has to ask."""
        try:
            asked = self.ask(target)
            return self.receive(asked, size) if asked else None
        except self.failures:
            return None

    def ahead(self, target: Callable[[str, str], RealObject]) -> "PlainReadsAhead":
        """Return a reader of many objects, for one thread; `target` returns the real object of a bucket and key."""
        return PlainReadsAhead(self, target)

    def ask(self, target: RealObject) -> _Asked | None:
        """Ask for an object; None where the SDK has to. Raises: one of `failures`."""
        endpoint = self._endpoints.get(target.real) if is_plain_name(target.name) else None
        if endpoint is None:
            return None
        url = endpoint.url_of(target.name)
        return endpoint, endpoint.sent("GET", url, endpoint.sign("GET", url, {}), b"", patience=PATIENCE)

    def receive(self, asked: _Asked, size: int) -> WholeObject | None:
        """Return what was asked for if it has exactly `size` bytes. Raises: one of `failures`."""
        endpoint, connection = asked
        answer = endpoint.receive(connection, size, patience=PATIENCE)
        return None if answer is None else self._read(answer)

    def head(self, target: RealObject, headers: Headers) -> Answer | None:
        """Send a HEAD with these headers and return the answer; None if the SDK has to send it."""
        try:
            endpoint = self._endpoints.get(target.real) if is_plain_name(target.name) else None
            if endpoint is None:
                return None
            url = endpoint.url_of(target.name)
            return endpoint.send("HEAD", url, endpoint.sign("HEAD", url, headers), b"", patience=PATIENCE)
        except self.failures:
            return None

    def close(self) -> None:
        """End the connections."""
        self._endpoints.close()


class PlainReadsAhead:
    """Reads many small objects; see `SmallReads`. After a failure of the store, all others are left to the SDK."""

    def __init__(self, reads: PlainReads, target: Callable[[str, str], RealObject]) -> None:
        self._reads = reads
        self._target = target
        self._ahead: deque[tuple[SmallRead, _Asked | None]] = deque()
        self._failed = False
        self._asked_at = 0.0

    def read(self, wanted: Iterable[SmallRead]) -> Iterator[tuple[SmallRead, WholeObject | None]]:
        """Yield each object with what is read of it, or None; see `SmallReads`."""
        for each in wanted:
            while self._ahead and time.monotonic() - self._asked_at > _STALE:
                yield self._next()
            self._ahead.append((each, self._ask(each)))
            self._asked_at = time.monotonic()
            if len(self._ahead) == AHEAD:
                yield self._next()
        while self._ahead:
            yield self._next()

    def close(self) -> None:
        """End the connections whose answers were not read: they would count as the next ones."""
        while self._ahead:
            _, asked = self._ahead.popleft()
            if asked:
                asked[1].close()

    def _ask(self, wanted: SmallRead) -> _Asked | None:
        bucket, key, expected = wanted
        if self._failed or not 0 < expected.size <= SMALL:
            return None
        try:
            return self._reads.ask(self._target(bucket, key))
        except self._reads.failures:
            self._failed = True  # otherwise a store that does not answer would be waited for once for each object
            return None

    def _next(self) -> tuple[SmallRead, WholeObject | None]:
        wanted, asked = self._ahead.popleft()
        if asked is None:
            return wanted, None
        if self._failed:
            asked[1].close()
            return wanted, None
        try:
            return wanted, self._reads.receive(asked, wanted[2].size)
        except self._reads.failures:
            self._failed = True
            return wanted, None


def whole_object(answer: PlainAnswer, digest: str, version: str | None) -> WholeObject | None:
    """Return the object of an answer that says its version; `digest` is the header with the SHA-256 beside it."""
    return WholeObject(answer.body, version, sha256_of(answer.headers.get(digest)) or "") if version else None
