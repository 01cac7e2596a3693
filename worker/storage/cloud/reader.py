"""The reader that all clouds share."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from worker.storage.cloud.error_mapping import Origin, Translate
from worker.storage.driver import ObjectStat, VersionReader
from worker.storage.errors import StorageError, Unavailable, UnexpectedAnswer

_Answer = TypeVar("_Answer", bytes, int)


class Received(Protocol):
    """The body of an answer: `read` returns `b""`, and `readinto` 0, only at its end."""

    def read(self, size: int, /) -> bytes: ...
    def readinto(self, buffer: memoryview, /) -> int: ...
    def close(self) -> None: ...


class CloudReader(VersionReader):
    """The bytes of one version of an object, or of a range of it; see `ObjectReader`."""

    def __init__(self, stat: ObjectStat, length: int, body: Received, *, origin: Origin, translate: Translate) -> None:
        """Read `length` bytes of `body`. `translate` translates the errors of its methods."""
        self._stat = stat
        self._left = length
        self._body = body
        self._origin = origin
        self._translate = translate

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, `b""` only at the end.

        Raises: Unavailable, Timeout: the answer broke off. Nothing is read again; the caller opens the rest again.
        """
        wanted = min(size, self._left)
        if wanted == 0:
            return b""
        data = self._received(lambda: self._body.read(wanted))
        self._left -= len(data)
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        """Receive at most `len(buffer)` bytes into it and return how many, 0 only at the end; see `read`."""
        wanted = min(len(buffer), self._left)
        if wanted == 0:
            return 0
        count = self._received(lambda: self._body.readinto(buffer[:wanted]))
        self._left -= count
        return count

    def _received(self, receive: Callable[[], _Answer]) -> _Answer:
        what = f"{self._stat.bucket}/{self._stat.key}"
        try:
            found = receive()
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  the reader is the boundary for whatever the SDK raises
            raise self._translate(error, self._origin, what) from None
        if not found:
            where = f"{self._origin.store}: {what}: {self._origin.endpoint}"
            raise Unavailable(f"{where}: the answer broke off {self._left} bytes before its end")
        return found

    def close(self) -> None:
        self._body.close()


class _Nothing:
    def read(self, _size: int, /) -> bytes:
        return b""

    def readinto(self, _buffer: memoryview, /) -> int:
        return 0

    def close(self) -> None:
        pass


def empty_reader(
    stat: ObjectStat, offset: int, length: int | None, *, origin: Origin, translate: Translate
) -> CloudReader:
    """Return the reader of an empty range.

    Raises:
        UnexpectedAnswer: the store says that the range is past the end of the object, and it is not.
    """
    if length != 0 and offset < stat.size:
        raise UnexpectedAnswer(
            f"{origin.store}: {stat.bucket}/{stat.key}: the store says that there are no bytes from {offset} on, and "
            f"that the object has {stat.size}"
        )
    return CloudReader(stat, 0, _Nothing(), origin=origin, translate=translate)
