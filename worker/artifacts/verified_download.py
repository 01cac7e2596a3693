"""Read one artifact version for a caller, chunk by chunk, from the first copy whose bytes are right."""

import logging
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import copy_context
from functools import partial
from shlex import quote
from typing import IO
from uuid import uuid4

from worker.artifacts.reading_order import AvoidedStores, reading_order
from worker.catalogue import Artifact
from worker.context import Context
from worker.limits.limited_store import LimitedStore, NoJob
from worker.limits.snooze import Snooze
from worker.storage.errors import AccessDenied, NotFound, PermanentError, StorageError, TransientError, Unavailable
from worker.storage.integrity.manifest import Chunk

logger = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds for a chunk after which the next store is asked for it too: a silent one costs a minute, a slow one more."""
_PIECE = 4 * 1024 * 1024


class NoGoodCopy(PermanentError):
    """Every copy was tried, and none gave the right bytes."""


class CopyUnreadable(Unavailable):
    """No copy gave the right bytes, and at least one may do so later."""


class VerifiedDownload:
    """The bytes of one version. All that `pieces` yields are verified; a copy that fails is replaced by the next one.

    Args:
        context: the catalogue and the stores.
        artifact: the version.
        on_bad: called with the store and the error of each copy that was not right, or could not be read; by another
            thread, and after the bytes of the next store were given out, where that store was slow.
        avoided: the stores that failed a moment ago, for all downloads of this process.
    """

    def __init__(
        self,
        context: Context,
        artifact: Artifact,
        *,
        on_bad: Callable[[str, StorageError], None] = lambda _store, _error: None,
        avoided: AvoidedStores | None = None,
    ) -> None:
        self.artifact = artifact
        self._context = context
        self._id = f"download-{uuid4().hex}"
        self._on_bad = on_bad
        self._avoided = avoided or AvoidedStores()
        self._limited: dict[str, LimitedStore] = {}
        self._manifest = context.catalogue.artifacts.manifest(artifact)
        self._stores = deque(self._order())

    def pieces(self, offset: int, length: int) -> Generator[memoryview]:
        """Yield `length` bytes from `offset`; one chunk of 16 MiB is in memory, and one for each store that is slow.

        Raises:
            NoGoodCopy, CopyUnreadable: no copy has the right bytes; what was yielded before is right.
        """
        end = min(offset + length, self.artifact.digest.size)
        if offset >= end:
            return
        if self._manifest is None:
            yield from self._spooled(offset, end)
            return
        for chunk in self._manifest.covering(offset, end - offset):
            data = memoryview(self._chunk(chunk))
            yield data[max(0, offset - chunk.offset) : end - chunk.offset]

    def _order(self) -> list[str]:
        """Return the stores with a copy, the one to read from first; paused ones are not read."""
        copies = self._context.catalogue.artifacts.copies(self.artifact).values()
        usable = [
            copy
            for copy in copies
            if copy.state.present
            and copy.store in self._context.settings.stores
            and self._context.pauses.of_store(copy.store) is None
        ]
        return [copy.store for copy in reading_order(usable, self._context.settings.stores, self._avoided)]

    def _chunk(self, chunk: Chunk) -> bytes | bytearray:
        """Return a chunk from the first store that has it right; the next one is asked too where one is slow."""
        errors, waiting = list[StorageError](), deque(self._stores)
        reading: dict[Future[bytes | bytearray], str] = {}
        slow: set[str] = set()
        while waiting or reading:
            if waiting:
                name = waiting.popleft()
                reading[self._begin(name, chunk)] = name
            limited = any(self._store(name).limits.bytes_per_second for name in reading.values())  # slow on purpose
            done, _ = wait(reading, _PATIENCE if waiting and not limited else None, FIRST_COMPLETED)
            if not done:
                for name in set(reading.values()) - slow:
                    self._too_slow(name)
                slow.update(reading.values())
            for future in done:
                name = reading.pop(future)
                try:
                    found = future.result()
                except (Snooze, StorageError) as error:
                    errors.append(self._failed(name, error))
                else:
                    for other, store in reading.items():  # it may be bad, and nothing else waits for it
                        other.add_done_callback(partial(self._ended_unused, store))
                    return found
        raise self._no_copy(errors)

    def _ended_unused(self, name: str, reading: Future[bytes | bytearray]) -> None:
        if isinstance(error := reading.exception(), StorageError):
            self._on_bad(name, error)

    def _begin(self, name: str, chunk: Chunk) -> Future[bytes | bytearray]:
        """Begin to read a chunk in a thread, which ends by itself when it is not waited for any more."""
        store, found = self._store(name), Future[bytes | bytearray]()

        def read() -> None:
            try:
                found.set_result(store.read_chunk(self.artifact.bucket, self.artifact.key, chunk))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
                found.set_exception(error)

        threading.Thread(target=copy_context().run, args=(read,), name=f"read-{name}", daemon=True).start()
        return found

    def _spooled(self, offset: int, end: int) -> Generator[memoryview]:
        """Yield bytes of an object without recorded chunks: they are spooled until the digest of the whole is known."""
        with tempfile.TemporaryFile(dir=self._context.settings.spool_dir, prefix="zot-download-") as file:
            self._spool(file)
            file.seek(offset)
            while piece := file.read(min(_PIECE, end - offset)):
                offset += len(piece)
                yield memoryview(piece)

    def _spool(self, file: IO[bytes]) -> None:
        artifact, errors = self.artifact, list[StorageError]()
        for name in list(self._stores):
            try:
                file.truncate(0)
                self._store(name).download_object(artifact.bucket, artifact.key, file.fileno(), artifact.digest)
            except (Snooze, StorageError) as error:
                errors.append(self._failed(name, error))
            else:
                return
        raise self._no_copy(errors)

    def _store(self, name: str) -> LimitedStore:
        """Return a store with its limits: a download takes bandwidth and a slot, and obeys its breaker."""
        if name not in self._limited:
            self._limited[name] = LimitedStore(self._context.stores[name], self._context.admission, NoJob(self._id))
        return self._limited[name]

    def _failed(self, name: str, error: Snooze | StorageError) -> StorageError:
        """Ask this store last from now on, and return its error. One that takes no job now may have the right bytes."""
        self._ask_last(name)
        if isinstance(error, Snooze):
            return Unavailable(f"{name}: {error}")
        if isinstance(error, TransientError | AccessDenied):
            self._avoided.add(name)
        self._on_bad(name, error)
        return error

    def _too_slow(self, name: str) -> None:
        self._ask_last(name)
        self._avoided.add(name)
        logger.warning(
            "%s: a chunk of %s takes longer than %.0f s; the next store is asked too",
            name, self.artifact.path, _PATIENCE,
        )  # fmt: skip

    def _ask_last(self, name: str) -> None:
        """Put a store behind the others; it stays among them, because its other chunks may be right."""
        self._stores.remove(name)
        self._stores.append(name)

    def _no_copy(self, errors: list[StorageError]) -> StorageError:
        path = self.artifact.path
        if not errors:
            return NotFound(f"{path} has no copy in a store that is configured and not paused")
        reason = "; ".join(error.message for error in errors)
        if any(isinstance(error, TransientError | AccessDenied) for error in errors):
            return CopyUnreadable(f"{path}: no copy could be read and verified, try again later: {reason}")
        return NoGoodCopy(f"{path}: no copy is right; see `zot-artifacts verify {quote(path)}`: {reason}")
