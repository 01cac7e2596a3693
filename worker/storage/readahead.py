"""Read an object whatever happens on the way: go on after a break, and read ahead of the hash in parallel.

Every piece is of one version: an object that is overwritten while it is read is an error, never a mixture.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from worker.storage.driver import Driver, ObjectReader, ObjectStat
from worker.storage.errors import TransientError, Unavailable
from worker.storage.verifying import BUFFER_SIZE

TRIES = 4
"""How often a read may break before `BUFFER_SIZE` further bytes have come; then the store is Unavailable."""
WINDOW = 4 * 1024 * 1024
AHEAD = 4
"""Ranges in flight: at most `AHEAD + 1` windows are in memory, 20 MiB."""


class SteadyReader:
    """Reads one version of an object, or a range of it, and takes it up again where the connection broke."""

    def __init__(
        self,
        driver: Driver,
        bucket: str,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        uncached: bool = False,
    ) -> None:
        self._driver = driver
        self._place = (bucket, key)
        self._offset = offset
        self._left = length
        self._uncached = uncached
        self._reader = driver.open(bucket, key, offset=offset, length=length, uncached=uncached)
        self._stat = self._reader.stat
        self._broken = 0
        self._since = 0

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes.

        Raises:
            Unavailable: the object was overwritten, or the connection breaks again and again.
        """
        while True:
            try:
                data = self._reader.read(size)
            except TransientError:
                self._broken = self._broken + 1 if self._since < BUFFER_SIZE else 1
                self._since = 0
                if self._broken >= TRIES:
                    raise
                self._reopen()
                continue
            self._since += len(data)
            self._offset += len(data)
            if self._left is not None:
                self._left -= len(data)
            return data

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _reopen(self) -> None:
        self._reader.close()
        self._reader = self._driver.open(*self._place, offset=self._offset, length=self._left, uncached=self._uncached)
        check_same(self._stat, self._reader.stat, self._driver.name)


class ParallelReader:
    """Reads on behind what `first` reads, in parallel ranges, and gives all bytes out in their order."""

    def __init__(self, driver: Driver, first: SteadyReader, begin: int) -> None:
        self._driver = driver
        self._first: SteadyReader | None = first
        self._stat = first.stat
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        self._offsets: Iterator[int] = iter(range(begin, self._stat.size, WINDOW))
        self._ahead: deque[Future[bytes]] = deque()
        self._window = memoryview(b"")
        for _ in range(AHEAD):
            self._fetch_next()

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        if self._first is not None:
            if piece := self._first.read(size):
                return piece
            self._first.close()
            self._first = None
        if not self._window and self._ahead:
            self._window = memoryview(self._ahead.popleft().result())
            self._fetch_next()
        data, self._window = self._window[:size], self._window[size:]
        return bytes(data)

    def close(self) -> None:
        if self._first is not None:
            self._first.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _fetch_next(self) -> None:
        offset = next(self._offsets, None)
        if offset is not None:
            self._ahead.append(self._pool.submit(self._fetch, offset))

    def _fetch(self, offset: int) -> bytes:
        return read_range(self._driver, self._stat, offset, min(WINDOW, self._stat.size - offset))


def open_steadily(driver: Driver, bucket: str, key: str, *, uncached: bool = False) -> ObjectReader:
    """Open a whole object: a large one in parallel where that is faster, and otherwise in one request."""
    if not driver.capabilities.parallel_reads:
        return SteadyReader(driver, bucket, key, uncached=uncached)
    first = SteadyReader(driver, bucket, key, length=2 * WINDOW)  # its answer tells how large the whole is
    return first if first.stat.size <= 2 * WINDOW else ParallelReader(driver, first, 2 * WINDOW)


def read_range(driver: Driver, stat: ObjectStat, offset: int, length: int, *, uncached: bool = False) -> bytes:
    """Return `length` bytes of exactly this version, held in memory.

    Raises:
        Unavailable: the object was overwritten, or has fewer bytes than its store says.
    """
    data = bytearray()
    with SteadyReader(driver, stat.bucket, stat.key, offset=offset, length=length, uncached=uncached) as reader:
        check_same(stat, reader.stat, driver.name)
        while piece := reader.read(BUFFER_SIZE):
            data += piece
    if len(data) != length:
        raise Unavailable(f"{driver.name}: {stat.bucket}/{stat.key} ended {length - len(data)} bytes too early")
    return bytes(data)


def check_same(known: ObjectStat, found: ObjectStat, store: str) -> None:
    """Raise Unavailable if this is not the version that was being read."""
    if found.version != known.version:
        raise Unavailable(f"{store}: {known.bucket}/{known.key} was overwritten while it was read")
