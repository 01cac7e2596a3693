"""A large object is read in several ranges at once and in order, or an error is raised."""

import io
import threading

import pytest

from tests.memory_driver import MemoryDriver
from tests.waiting import WITHIN
from worker.storage.driver import BUFFER_SIZE, Capabilities, ObjectReader, WriteInfo
from worker.storage.errors import AccessDenied, Conflict, Unavailable
from worker.storage.integrity.verifying_reader import VerifyingReader, drain
from worker.storage.transfer.resumable_read import AHEAD, TRIES, WINDOW, open_resumable

PLACE = ("releases", "app.tgz")


class RangesInMemory(MemoryDriver):
    """The memory store, read in parallel; it tells what was asked for, and answers with what a test puts in between."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.asked: list[tuple[int, int | None]] = []
        self.closed = 0
        self.wrapped = lambda reader, _offset: reader

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            needs_digest_first=False, conditional_writes=True, implicit_buckets=True, prefix_keys=True,
            user_metadata=True, max_object_size=None, copies=False,
        )  # fmt: skip

    def open(self, bucket, key, *, offset=0, length=None, uncached=False) -> ObjectReader:
        self.asked.append((offset, length))
        assert len(self.asked) < 50, "it is asked without end"
        return Counted(self.wrapped(super().open(bucket, key, offset=offset, length=length), offset), self)

    def write(self, data: bytes) -> None:
        self.put(*PLACE, VerifyingReader(io.BytesIO(data)), WriteInfo())


class Counted:
    """A reader that tells its driver when it was closed."""

    def __init__(self, reader, driver) -> None:
        self._reader, self._driver, self.stat, self.read = reader, driver, reader.stat, reader.read

    def close(self) -> None:
        self._driver.closed += 1
        self._reader.close()

    def readinto(self, buffer: memoryview, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Ending:
    """A reader that gives out so many bytes and then does what it is told."""

    def __init__(self, reader, after: int, end) -> None:
        self._reader, self._left, self._end, self.stat, self.close = reader, after, end, reader.stat, reader.close

    def read(self, size: int, /) -> bytes:
        if not self._left:
            return self._end()
        data = self._reader.read(min(size, self._left))
        self._left -= len(data)
        return data


def content(size: int) -> bytes:
    """Return bytes of which no two neighbouring MiB are alike."""
    return b"".join(bytes([number % 251]) * BUFFER_SIZE for number in range(-(-size // BUFFER_SIZE)))[:size]


@pytest.fixture
def driver():
    return RangesInMemory()


def read_all(driver, size=BUFFER_SIZE) -> bytes:
    with open_resumable(driver, *PLACE) as reader:
        return b"".join(iter(lambda: reader.read(size), b""))


@pytest.mark.parametrize("size", [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, (AHEAD + 1) * WINDOW + 5])
def test_the_bytes_come_in_their_order(driver, size):
    """Whatever its size, what is read is the object, and every range was asked for once and closed."""
    driver.write(content(size))
    assert read_all(driver) == content(size)
    assert sorted(offset for offset, _ in driver.asked) == list(range(0, max(1, size), WINDOW))
    assert driver.closed >= len(driver.asked)


@pytest.mark.parametrize("piece", [BUFFER_SIZE // 3, 3 * BUFFER_SIZE])
def test_pieces_of_any_size(driver, piece):
    """Who asks for less than a piece gets the rest of it next; who asks for more gets what is there."""
    driver.write(content(WINDOW + 5))
    assert read_all(driver, piece) == content(WINDOW + 5)


def test_no_more_than_so_many_ranges_are_held(driver):
    """Ranges that are not consumed yet are not read ahead without end: memory stays bounded."""
    driver.write(content((AHEAD + 3) * WINDOW))
    with open_resumable(driver, *PLACE) as reader:
        assert reader.read(1) == b"\0"
        reader._pool.shutdown(wait=True)
        assert len(driver.asked) <= AHEAD


def test_a_range_that_ends_early_is_unavailable(driver):
    """Bytes that the store has announced and does not give are an error that may pass, not a shorter object."""
    driver.write(content(3 * WINDOW))
    driver.wrapped = lambda reader, offset: Ending(reader, BUFFER_SIZE, bytes) if offset == WINDOW else reader
    with pytest.raises(Unavailable, match=f"releases/app.tgz ended {WINDOW - BUFFER_SIZE} bytes too early"):
        read_all(driver)


def test_an_error_in_a_range_is_raised_to_the_reader(driver):
    """What goes wrong in a thread is raised where the bytes would have come, and all that was opened is closed."""

    def denied() -> bytes:
        raise AccessDenied("memory: not any more")

    driver.write(content(3 * WINDOW))
    driver.wrapped = lambda reader, offset: Ending(reader, BUFFER_SIZE, denied) if offset == WINDOW else reader
    with pytest.raises(AccessDenied, match="not any more"):
        read_all(driver)
    assert driver.closed >= len(driver.asked)


def test_another_version_is_never_mixed_in(driver):
    """An object that is overwritten while it is read is an error, not a mixture of the two."""
    driver.write(content((AHEAD + 2) * WINDOW))
    with open_resumable(driver, *PLACE) as reader:
        reader.read(1)
        driver.write(content((AHEAD + 2) * WINDOW)[::-1])
        with pytest.raises(Conflict, match="overwritten while it was read"):
            drain(reader)


def broken() -> bytes:
    raise Unavailable("memory: the connection broke")


def test_a_read_goes_on_where_it_broke_as_long_as_it_advances(driver):
    """A line that breaks again and again delays a read and does not end it; without progress the read soon ends."""
    size = (TRIES + 2) * BUFFER_SIZE
    driver.write(content(size))
    driver.wrapped = lambda reader, _offset: Ending(reader, BUFFER_SIZE, broken)
    with open_resumable(driver, *PLACE) as reader:
        assert b"".join(reader.read(BUFFER_SIZE) for _ in range(TRIES + 2)) == content(size)
    assert driver.asked == [(at, WINDOW - at) for at in range(0, size, BUFFER_SIZE)]
    assert driver.closed == len(driver.asked)
    driver.asked.clear()
    driver.wrapped = lambda reader, offset: Ending(reader, 1 if offset else BUFFER_SIZE, broken)
    with pytest.raises(Unavailable, match="the connection broke"):
        read_all(driver)
    assert [offset for offset, _ in driver.asked] == [0, *range(BUFFER_SIZE, BUFFER_SIZE + TRIES - 1)]


@pytest.mark.parametrize("into", [False, True])
def test_no_other_version_goes_on_where_a_read_broke(driver, into):
    """The rest of a read is of the version that it began with, also where no digest of the whole is known."""

    def replaced() -> bytes:
        driver.write(content(2 * BUFFER_SIZE)[::-1])
        return broken()

    driver.write(content(2 * BUFFER_SIZE))
    driver.wrapped = lambda reader, offset: reader if offset else Ending(reader, BUFFER_SIZE, replaced)
    with open_resumable(driver, *PLACE) as reader:
        assert len(reader.read(BUFFER_SIZE)) == BUFFER_SIZE
        with pytest.raises(Conflict, match="overwritten while it was read"):
            reader.readinto(memoryview(bytearray(BUFFER_SIZE))) if into else reader.read(BUFFER_SIZE)
    assert driver.closed == len(driver.asked) == 2


def test_who_stops_early_waits_for_one_piece_only(driver):
    """A reader that is closed before its end reads none of its ranges to theirs."""
    seen: list[int] = []
    reading = threading.Event()

    class Told(Ending):
        def read(self, size: int, /) -> bytes:
            seen.append(size)
            reading.set()
            released.wait(WITHIN)
            return super().read(size)

    released = threading.Event()
    driver.write(content(AHEAD * WINDOW))
    driver.wrapped = lambda reader, offset: Told(reader, WINDOW, bytes)
    reader = open_resumable(driver, *PLACE)
    assert reading.wait(WITHIN)
    closing = threading.Thread(target=reader.close)
    closing.start()
    for window in list(reader._ahead):
        while not window._stopped:
            pass
    released.set()
    closing.join(WITHIN)
    assert not closing.is_alive()
    assert len(seen) <= AHEAD
