"""A reader gives exactly the bytes of its range, whatever the answer of the store holds."""

import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.reader import CloudReader
from worker.storage.driver import ObjectStat
from worker.storage.errors import StorageError, Timeout, Unavailable

STAT = ObjectStat("b", "app", 100, "1", datetime(2026, 1, 1, tzinfo=UTC), None)


class Answer(io.BytesIO):
    """The body of an answer, which may end with an error."""

    def __init__(self, content: bytes, end: Exception | None = None) -> None:
        super().__init__(content)
        self._end = end

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self._end and not data:
            raise self._end
        return data

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def translate(error: Exception, _origin: Origin, what: str) -> StorageError:
    return Timeout(f"{what}: {type(error).__name__}")


def by_read(reader: CloudReader) -> bytes:
    return reader.read(4)


def by_readinto(reader: CloudReader) -> bytes:
    buffer = bytearray(4)
    return bytes(buffer[: reader.readinto(memoryview(buffer))])


@pytest.fixture(params=[by_read, by_readinto])
def pieces(request: pytest.FixtureRequest) -> Callable[[Answer], Iterator[bytes]]:
    """Return what reads ten bytes of an answer, four at a time, up to the first piece that is empty."""

    def pieces(answer: Answer) -> Iterator[bytes]:
        reader = CloudReader(STAT, 10, answer, origin=Origin("store", "http://host", None), translate=translate)
        return iter(lambda: request.param(reader), b"")

    return pieces


def test_what_follows_the_range_is_not_given_out(pieces: Callable[[Answer], Iterator[bytes]]) -> None:
    """A store may send more than the range: its bytes are no part of it, and the end is known without a read."""
    assert list(pieces(Answer(b"0123456789more", Unavailable("it was read")))) == [b"0123", b"4567", b"89"]


@pytest.mark.parametrize(
    ("end", "error", "said"),
    [
        (None, Unavailable, "store: b/app: http://host: the answer broke off 7 bytes before its end"),
        (OSError("reset"), Timeout, "^b/app: OSError$"),
        (Unavailable("the store: it is away"), Unavailable, "^the store: it is away$"),
    ],
)
def test_a_range_that_ends_early_is_an_error_and_no_end(
    pieces: Callable[[Answer], Iterator[bytes]], end: Exception | None, error: type[StorageError], said: str
) -> None:
    """The bytes that came are given out; then the error is the translated one of the SDK, or tells what is missing."""
    found = pieces(Answer(b"012", end))
    assert next(found) == b"012"
    with pytest.raises(error, match=said):
        next(found)
