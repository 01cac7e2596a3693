"""Verify an object, or a range of it, chunk by chunk against its manifest."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from worker.storage.driver import Driver, ObjectStat
from worker.storage.errors import DigestMismatch
from worker.storage.integrity.manifest import Chunk, Manifest
from worker.storage.integrity.verifying_reader import BUFFER_SIZE, OnBytes
from worker.storage.transfer.resumable_read import ResumableReader, check_same, read_range

CORES = min(4, os.cpu_count() or 1)
MIN_PARALLEL_CHUNKS = 4
"""Objects with fewer chunks are read by one thread: a pool costs more than it saves."""


def first_bad_chunk(driver: Driver, stat: ObjectStat, manifest: Manifest, on_bytes: OnBytes | None) -> Chunk | None:
    """Read all bytes on several cores, bypassing caches; return the first chunk that does not match, or None.

    The caller guarantees that the object has the manifest's size.
    """
    chunks = iter(manifest)
    under_way: deque[tuple[Chunk, Future[str]]] = deque()
    with ThreadPoolExecutor(CORES, thread_name_prefix="verify") as pool:
        try:
            while True:
                while len(under_way) < 2 * CORES and (chunk := next(chunks, None)):
                    under_way.append((chunk, pool.submit(_digest_of, driver, stat, chunk)))
                if not under_way:
                    return None
                chunk, found = under_way.popleft()
                if found.result() != chunk.sha256:
                    return chunk
                if on_bytes:
                    on_bytes(chunk.size)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class VerifiedRange:
    """A range of an object whose every byte is compared with the manifest before it is returned.

    Whole chunks are read, so up to one chunk more at either end of the range; one chunk is in memory at a time.
    """

    verified = True

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
            self._proved = memoryview(self._prove(chunk))[
                max(0, self._offset - chunk.offset) : self._end - chunk.offset
            ]
        data, self._proved = self._proved[:size], self._proved[size:]
        return bytes(data)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _prove(self, chunk: Chunk) -> bytes:
        data = read_range(self._driver, self._stat, chunk.offset, chunk.size)
        found = hashlib.sha256(data).hexdigest()
        if found != chunk.sha256:
            end = chunk.offset + chunk.size
            raise DigestMismatch(
                f"{self._driver.name}: {self._stat.bucket}/{self._stat.key}: bytes {chunk.offset} to {end} have "
                f"SHA-256 {found}, recorded is {chunk.sha256}"
            )
        return data


def _digest_of(driver: Driver, stat: ObjectStat, chunk: Chunk) -> str:
    digest = hashlib.sha256()
    with ResumableReader(
        driver, stat.bucket, stat.key, offset=chunk.offset, length=chunk.size, uncached=True
    ) as reader:
        check_same(stat, reader.stat, driver.name)
        while piece := reader.read(BUFFER_SIZE):
            digest.update(piece)
    return digest.hexdigest()
