"""Verify an object, or a range of it, chunk by chunk against its manifest."""

import ctypes
import hashlib
import mmap
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Full, Queue

from worker.storage.driver import BUFFER_SIZE, Driver, ObjectReader, ObjectStat
from worker.storage.errors import DigestMismatch
from worker.storage.integrity.manifest import BadChunks, Chunk, Manifest
from worker.storage.integrity.verifying_reader import OnBytes
from worker.storage.transfer.resumable_read import ResumableReader, open_range

THREADS = 4
"""Chunks that are read at once. With only two threads, the server or disk is idle while both of them hash."""
MIN_PARALLEL_CHUNKS = 4
"""Objects with fewer chunks are read by one thread: a pool costs more than it saves."""
WINDOW = 64 * 1024 * 1024
"""Most bytes of one request, so that its cost is negligible; a thread reads these chunks one after the other."""
_TOLD = 4 * BUFFER_SIZE
"""A thread reports its bytes to the caller after so many, or after `_POLL`: a report costs the caller about the time of
hashing a twentieth of 1 MiB."""
_HUGE_PAGE = 2 * 1024 * 1024
_POLL = 0.1
"""Seconds after which a waiting thread checks whether it has to end."""

Write = Callable[[memoryview, int], object]
"""Takes bytes of an object and their offset in it, from several threads; they are not verified yet."""


def first_bad_chunk(
    driver: Driver,
    stat: ObjectStat,
    manifest: Manifest,
    on_bytes: OnBytes | None = None,
    *,
    write: Write | None = None,
) -> Chunk | None:
    """Read bytes until a chunk does not match; return the first such chunk, or None after all bytes were right.

    See `bad_chunks`.
    """
    found = bad_chunks(driver, stat, manifest, on_bytes, write=write, first_only=True)
    return found[0] if found else None


def bad_chunks(
    driver: Driver,
    stat: ObjectStat,
    manifest: Manifest,
    on_bytes: OnBytes | None = None,
    *,
    write: Write | None = None,
    uncached: bool = False,
    first_only: bool = False,
) -> BadChunks:
    """Read all bytes in several threads; return the chunks that do not match, in their order.

    The caller guarantees that the object has the manifest's size.

    Args:
        driver: the store.
        stat: the version to read.
        manifest: the recorded digests of its chunks.
        on_bytes: called in this thread with the number of bytes; what it raises ends the read.
        write: called with all bytes; what it raises is raised.
        uncached: see `Driver.open`.
        first_only: return only the first bad chunk, and stop reading once it is known.
    """
    reading = _Reading(driver, stat, manifest, write, uncached=uncached, first_only=first_only)
    with ThreadPoolExecutor(reading.threads, thread_name_prefix="verify") as pool:
        try:
            for _ in range(reading.threads):
                pool.submit(reading.run)
            for count in reading.counts():
                if on_bytes:
                    on_bytes(count)
        finally:
            reading.stop()
    return reading.bad


class _Reading:
    """One read of all chunks, by `threads` threads that each call `run`.

    Windows are begun in their order. With `first_only`, none is begun after a bad chunk was found, and those under way
    are read to their first bad chunk, so that `bad` has the first bad chunk of the object.
    """

    def __init__(
        self,
        driver: Driver,
        stat: ObjectStat,
        manifest: Manifest,
        write: Write | None,
        *,
        uncached: bool,
        first_only: bool,
    ) -> None:
        self.bad = BadChunks(manifest)
        self.threads, per_window = THREADS, max(1, WINDOW // manifest.chunk_size)
        if driver.capabilities.local:
            turns = max(1, -(-len(manifest) // (self.threads * per_window)))
            per_window = max(1, -(-len(manifest) // (self.threads * turns)))  # as many windows for each thread
        self._driver = driver
        self._stat = stat
        self._manifest = manifest
        self._write = write
        self._uncached = uncached
        self._first_only = first_only
        self._per_window = per_window
        self._starts = iter(range(0, len(manifest), self._per_window))  # each is given to one thread
        self._buffers = iter(_buffers(self.threads))
        self._told: Queue[int | BaseException | None] = Queue(self.threads)
        self._stopped = False

    def run(self) -> None:
        """Read one window after the other. The last report of this thread is None at the end, or its error."""
        buffer = next(self._buffers)
        try:
            while not self._stopped and not self._knows_first() and (start := next(self._starts, None)) is not None:
                self._read(start, buffer)
        except BaseException as error:  # noqa: BLE001  raised in the thread that waits
            self._tell(error)
        else:
            self._tell(None)

    def counts(self) -> Iterator[int]:
        """Yield numbers of bytes that were read, until all threads have ended; raise the first error of one."""
        running = self.threads
        while running:
            told = self._told.get()
            if isinstance(told, BaseException):
                raise told
            if told is None:
                running -= 1
            else:
                yield told

    def stop(self) -> None:
        """Have all threads end after their current piece."""
        self._stopped = True

    def _knows_first(self) -> bool:
        return self._first_only and bool(self.bad)

    def _tell(self, told: int | BaseException | None) -> None:
        """Report to the caller; wait for room in the queue, so that threads read no faster than the caller counts."""
        while not self._stopped:
            with suppress(Full):
                self._told.put(told, timeout=_POLL)
                return

    def _read(self, start: int, buffer: memoryview) -> None:
        chunks = [
            self._manifest.chunk(number) for number in range(start, min(start + self._per_window, len(self._manifest)))
        ]
        size = sum(chunk.size for chunk in chunks)
        with open_range(self._driver, self._stat, chunks[0].offset, size, uncached=self._uncached) as reader:
            for chunk in chunks:
                found = self._digest_of(chunk, reader, buffer)
                if self._stopped:
                    return
                if found != chunk.sha256:
                    self.bad.mark(chunk.number)
                    if self._first_only:
                        return

    def _digest_of(self, chunk: Chunk, reader: ResumableReader, buffer: memoryview) -> str:
        digest, done, told, told_at = hashlib.sha256(), 0, 0, time.monotonic()
        while done < chunk.size and not self._stopped:
            count = reader.readinto(buffer[: chunk.size - done])
            if not count:
                raise reader.too_short(chunk.size - done)
            digest.update(buffer[:count])
            if self._write:
                self._write(buffer[:count], chunk.offset + done)
            done += count
            if done == chunk.size or done - told >= _TOLD or time.monotonic() - told_at >= _POLL:
                self._tell(done - told)
                told, told_at = done, time.monotonic()
        return digest.hexdigest()


def _buffers(count: int) -> Sequence[memoryview]:
    """Return buffers that each begin with a page, as a direct read needs.

    They are in huge pages if the system has them: pages of 4 KiB are far apart in memory, and a disk fills them one by
    one. A child that is forked meanwhile does not get them: if it shared them, the next write of this process would
    copy the page for this process, and the disk would fill the page of the child.
    """
    size = count * BUFFER_SIZE
    memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        memory.madvise(mmap.MADV_DONTFORK)
        with suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _HUGE_PAGE
    return [memoryview(memory)[start + at : start + at + BUFFER_SIZE] for at in range(0, size, BUFFER_SIZE)]


class VerifiedRange(ObjectReader):
    """A range of an object whose every byte is compared with the manifest before it is returned.

    Whole chunks are read, so up to one chunk more at either end of the range; one chunk is in memory at a time.
    """

    def __init__(self, driver: Driver, stat: ObjectStat, manifest: Manifest, offset: int, length: int) -> None:
        self._driver = driver
        self._stat = stat
        self._offset = offset
        self._end = min(offset + length, stat.size)
        self._chunks: Iterator[Chunk] = manifest.covering(offset, length)
        self._proved = memoryview(b"")

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        """Return at most `size` verified bytes.

        Raises:
            DigestMismatch: the chunk that contains them is corrupt.
        """
        if not self._proved and (chunk := next(self._chunks, None)):
            with open_range(self._driver, self._stat, chunk.offset, chunk.size) as reader:
                data = memoryview(read_chunk(reader, chunk))
            self._proved = data[max(0, self._offset - chunk.offset) : self._end - chunk.offset]
        data, self._proved = self._proved[:size], self._proved[size:]
        return bytes(data)

    def close(self) -> None:
        pass


def read_chunk(reader: ResumableReader, chunk: Chunk) -> bytearray:
    """Return the bytes of one chunk, from a reader of that range, in memory.

    Raises:
        DigestMismatch: the object has other bytes there.
        Unavailable: it has fewer bytes than the store reports.
    """
    data, done = bytearray(chunk.size), 0
    while count := reader.readinto(memoryview(data)[done:]):
        done += count
    if done != chunk.size:
        raise reader.too_short(chunk.size - done)
    found = hashlib.sha256(data).hexdigest()
    if found != chunk.sha256:
        raise DigestMismatch(
            f"{reader.where}: bytes {chunk.offset} to {chunk.offset + chunk.size} have SHA-256 {found}, not the "
            f"recorded {chunk.sha256}"
        )
    return data
