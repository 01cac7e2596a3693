"""The reader that all clouds share."""

from collections.abc import Callable
from typing import Self

from worker.storage.cloud.error_mapping import Origin, Translate
from worker.storage.driver import ObjectStat
from worker.storage.errors import StorageError, Unavailable


class CloudReader:
    """The bytes of one version of an object, or of a range of it; see `ObjectReader`."""

    def __init__(
        self,
        stat: ObjectStat,
        length: int,
        read: Callable[[int], bytes],
        close: Callable[[], object],
        *,
        origin: Origin,
        translate: Translate,
    ) -> None:
        """Read `length` bytes with `read`, which returns `b""` at the end.

        `translate` translates the errors of `read`.
        """
        self._stat = stat
        self._left = length
        self._read = read
        self._close = close
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
        what = f"{self._stat.bucket}/{self._stat.key}"
        try:
            data = self._read(wanted)
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001  the reader is the boundary for whatever the SDK raises
            raise self._translate(error, self._origin, what) from None
        if not data:
            where = f"{self._origin.store}: {what}: {self._origin.endpoint}"
            raise Unavailable(f"{where}: the answer broke off {self._left} bytes before its end")
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Drop the connection where bytes are left: to read them, only to reuse the connection, could take hours."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def empty_reader(stat: ObjectStat, origin: Origin, translate: Translate) -> CloudReader:
    """Return the reader of an empty range."""
    return CloudReader(stat, 0, lambda _size: b"", lambda: None, origin=origin, translate=translate)
