"""A store as a command uses it: with the limits of a job, and a wait in place of a snooze."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from worker.limits.limited_store import LimitedReader, LimitedStore
from worker.limits.snooze import Paused, Snooze
from worker.storage import Digest, ListedObject, ObjectStat, Verification
from worker.storage.driver import BUFFER_SIZE, ObjectReader
from worker.storage.errors import StorageError, Unavailable
from worker.storage.identity import Purpose

AnswerT = TypeVar("AnswerT")

_PATIENCE = 600.0
"""Seconds of waiting for an open circuit breaker or a slot, after which the store counts as unavailable."""
_ASK_AGAIN = 5.0
"""The longest time in seconds after which a command asks whether a pause has ended."""


class WaitingStore:
    """One store for all threads of a command. It is only read.

    Each method is that of `LimitedStore` with the same name, and waits while the store takes no job: without limit for
    the end of a pause, up to ten minutes for a circuit breaker or a concurrency slot.

    Raises:
        Unavailable: from any method: the store took no job for all that time.
    """

    def __init__(self, store: LimitedStore, tell: Callable[[str], object]) -> None:
        """Wait for this store; `tell` gets one line at the beginning of each wait, from any thread."""
        self.name, self.capabilities = store.name, store.capabilities
        self._store = store
        self._tell = tell
        self._lock = threading.Lock()
        self._waits_since: float | None = None

    def check_identity(self, purpose: Purpose) -> None:
        self._admitted(lambda: self._store.check_identity(purpose))

    def list_buckets(self) -> list[str]:
        return self._admitted(self._store.list_buckets)

    def list_objects(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]:
        def begin() -> tuple[Iterator[ListedObject], ListedObject | None]:
            rows = self._store.list_objects(bucket, prefix, after=after)
            return rows, next(rows, None)  # no request is sent before the first row is taken

        rows, first = self._admitted(begin)
        if first is not None:
            yield first
            yield from rows

    def stat_object(self, bucket: str, key: str) -> ObjectStat:
        return self._admitted(lambda: self._store.stat_object(bucket, key))

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        return self._admitted(lambda: self._store.tags(bucket, key))

    def read_object(self, bucket: str, key: str) -> "WaitingReader":
        return WaitingReader(self.name, self._admitted(lambda: self._store.read_object(bucket, key)))

    def verify_object(self, bucket: str, key: str, expected: Digest | None = None) -> Verification:
        return self._admitted(lambda: self._store.verify_object(bucket, key, expected))

    def _admitted(self, ask: Callable[[], AnswerT]) -> AnswerT:
        """Return what `ask` returns once the store takes a job."""
        while True:
            try:
                answer = ask()
            except Snooze as error:
                self._wait(error)
            else:
                self._waits_since = None
                return answer

    def _wait(self, error: Snooze) -> None:
        """Wait a while; after all threads together waited too long, the store counts as unavailable at once."""
        with self._lock:
            now, since = time.monotonic(), self._waits_since  # a thread that got its answer resets it without the lock
            if since is None:
                self._tell(f"{error}: waiting")
            if since is None or isinstance(error, Paused):
                since = self._waits_since = now  # the time of a pause does not count
            waited = now - since
        if waited > _PATIENCE:
            raise Unavailable(f"{self.name}: it took no job for {waited:.0f} s: {error}") from error
        time.sleep(min(error.seconds, _ASK_AGAIN))


class WaitingReader(ObjectReader):
    """An object's bytes; see `LimitedReader`. A slot that is lost while they are read is a StorageError."""

    def __init__(self, store: str, reader: LimitedReader) -> None:
        self._name = store
        self._reader = reader

    @property
    def stat(self) -> ObjectStat:
        """Return the stat of the version that is being read."""
        return self._reader.stat

    def read(self, size: int = BUFFER_SIZE, /) -> bytes:
        """Return at most `size` bytes, `b""` only at an end that was right; raise IntegrityError otherwise."""
        try:
            return self._reader.read(size)
        except Snooze as error:
            failure: StorageError = Unavailable(str(error))
            failure.store = self._name
            raise failure from error

    def close(self) -> None:
        self._reader.close()
