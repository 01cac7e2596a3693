"""Read an object with resumption after a broken connection, and ahead in parallel.

All bytes are of one version: an object that is overwritten while it is read raises an error.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from worker.storage.driver import BUFFER_SIZE, Driver, ObjectReader, ObjectStat, VersionReader
from worker.storage.errors import Conflict, TransientError, Unavailable

TRIES = 4
"""Attempts at a read before it has advanced by `BUFFER_SIZE` bytes; then the store is Unavailable."""
WINDOW = 16 * 1024 * 1024
"""Bytes of one range of a large object: enough to make the cost of a request negligible."""
AHEAD = 2
"""Ranges that are read at once: at most this many windows, 32 MiB, are in memory."""


class ResumableReader(VersionReader):
    """Reads one version of an object, or a range of it, and resumes where the connection broke."""

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
            Conflict: the object was overwritten.
            Unavailable: the connection breaks again and again.
        """
        while True:
            try:
                data = self._reader.read(size)
            except TransientError as error:
                self._resume(error)
            else:
                self._advance(len(data))
                return data

    def readinto(self, buffer: memoryview, /) -> int:
        """Receive at most `len(buffer)` bytes into it and return how many, 0 only at the end; raises as `read`."""
        while True:
            try:
                count = self._reader.readinto(buffer)
            except TransientError as error:
                self._resume(error)
            else:
                self._advance(count)
                return count

    @property
    def where(self) -> str:
        """Return the store and the object, for messages."""
        return f"{self._driver.name}: {self._stat.bucket}/{self._stat.key}"

    def too_short(self, missing: int) -> Unavailable:
        """Return the error for a read that ended before the announced bytes."""
        return Unavailable(f"{self.where} ended {missing} bytes too early")

    def close(self) -> None:
        self._reader.close()

    def _advance(self, count: int) -> None:
        self._since += count
        self._offset += count
        if self._left is not None:
            self._left -= count

    def _resume(self, error: TransientError) -> None:
        self._broken = self._broken + 1 if self._since < BUFFER_SIZE else 1
        self._since = 0
        if self._broken >= TRIES:
            raise error
        self._reader.close()
        self._reader = self._driver.open(*self._place, offset=self._offset, length=self._left, uncached=self._uncached)
        check_same(self._stat, self._reader.stat, self._driver.name)


class Window:
    """A range that a thread reads, whose first bytes are returned while the rest is being fetched."""

    def __init__(self, length: int) -> None:
        self._left = length
        self._pieces: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._stopped = False

    def fill(self, opened: Callable[[], ResumableReader]) -> None:
        """Read what `opened` returns to its end, or until `stop` is called. `next` raises its errors."""
        try:
            with opened() as reader:
                while not self._stopped and (piece := reader.read(BUFFER_SIZE)):
                    self._left -= len(piece)
                    self._pieces.put(piece)
                if self._left and not self._stopped:
                    raise reader.too_short(self._left)
        except BaseException as error:  # noqa: BLE001  raised in the thread that waits for the bytes
            self._pieces.put(error)
        else:
            self._pieces.put(b"")

    def next(self) -> bytes:
        """Return the next piece, `b""` at the end; wait for it."""
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def stop(self) -> None:
        """Stop reading after the current piece."""
        self._stopped = True


class ParallelReader(ObjectReader):
    """Reads an object that is larger than one window in several ranges at once; `first` is the first of them."""

    def __init__(self, driver: Driver, first: ResumableReader) -> None:
        self._driver = driver
        self._stat = first.stat
        self._first = first
        self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        self._offsets: Iterator[int] = iter(range(WINDOW, self._stat.size, WINDOW))
        self._ahead: deque[Window] = deque()
        self._rest = memoryview(b"")
        self._fetch(WINDOW, lambda: first)
        while len(self._ahead) < AHEAD and self._fetch_next():
            pass

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        piece: bytes | memoryview = self._rest or self._next()
        if len(piece) <= size:
            self._rest = memoryview(b"")
            return bytes(piece)  # no copy, where these are bytes
        self._rest = memoryview(piece)[size:]
        return bytes(piece[:size])

    def close(self) -> None:
        for window in self._ahead:
            window.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._first.close()  # also when its thread never started

    def _next(self) -> bytes:
        while self._ahead:
            if piece := self._ahead[0].next():
                return piece
            self._ahead.popleft()
            self._fetch_next()
        return b""

    def _fetch_next(self) -> bool:
        offset = next(self._offsets, None)
        if offset is None:
            return False
        length = min(WINDOW, self._stat.size - offset)
        self._fetch(length, lambda: open_range(self._driver, self._stat, offset, length))
        return True

    def _fetch(self, length: int, opened: Callable[[], ResumableReader]) -> None:
        window = Window(length)
        self._ahead.append(window)
        self._pool.submit(window.fill, opened)


def open_resumable(driver: Driver, bucket: str, key: str, *, uncached: bool = False) -> ObjectReader:
    """Open a whole object: a large one in parallel where that is faster, and otherwise in one request."""
    if driver.capabilities.local:
        return ResumableReader(driver, bucket, key, uncached=uncached)
    first = ResumableReader(driver, bucket, key, length=WINDOW)  # its answer has the size of the whole object
    return first if first.stat.size <= WINDOW else ParallelReader(driver, first)


def open_range(
    driver: Driver, stat: ObjectStat, offset: int, length: int, *, uncached: bool = False
) -> ResumableReader:
    """Open `length` bytes of exactly this version.

    Raises:
        Conflict: the object was overwritten.
    """
    reader = ResumableReader(driver, stat.bucket, stat.key, offset=offset, length=length, uncached=uncached)
    try:
        check_same(stat, reader.stat, driver.name)
    except BaseException:
        reader.close()
        raise
    return reader


def check_same(known: ObjectStat, found: ObjectStat, store: str) -> None:
    """Raise Conflict if this is not the version that was being read."""
    if found.version != known.version:
        raise Conflict(f"{store}: {known.bucket}/{known.key} was overwritten while it was read")
