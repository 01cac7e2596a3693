"""Read an open file, whose bytes stay the same when its name is replaced or deleted."""

import os
from contextlib import suppress
from typing import Self

from worker.storage.driver import ObjectStat
from worker.storage.errors import StorageError
from worker.storage.filesystem.atomic_write import OpenObject
from worker.storage.filesystem.layout import ObjectPath, object_stat
from worker.storage.filesystem.open_without_symlinks import translate


class FilesystemReader:
    """The bytes of an object, or of a range of it. Closes the file of the object that was found."""

    def __init__(
        self,
        store: str,
        path: ObjectPath,
        found: OpenObject,
        *,
        offset: int = 0,
        length: int | None = None,
        uncached: bool = False,
    ) -> None:
        self.found = found
        self._stat = object_stat(path, found.stat, found.sha256)
        self._what = f"{store}: {path}"
        self._offset = offset
        self._left = length
        self._uncached = uncached
        self._closed = False
        self._span = (offset, length or 0)  # of the advice; 0 is up to the end
        if uncached:
            self._advise("POSIX_FADV_DONTNEED")
        self._advise("POSIX_FADV_SEQUENTIAL")

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        size = size if self._left is None else min(size, self._left)
        try:
            data = os.pread(self.found.fd, size, self._offset)
        except OSError as error:
            raise self._error(error) from error
        self._advance(len(data))
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        size = len(buffer) if self._left is None else min(len(buffer), self._left)
        try:
            count = os.preadv(self.found.fd, [buffer[:size]], self._offset)
        except OSError as error:
            raise self._error(error) from error
        self._advance(count)
        return count

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._uncached:  # a sweep over the whole store must not empty the page cache
            self._advise("POSIX_FADV_DONTNEED")
        with suppress(OSError):  # the file is closed, and what was read is read
            os.close(self.found.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _advance(self, count: int) -> None:
        self._offset += count
        if self._left is not None:
            self._left -= count

    def _advise(self, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):  # not on every system; it is only advice
            with suppress(OSError):
                os.posix_fadvise(self.found.fd, *self._span, getattr(os, advice))

    def _error(self, error: OSError) -> StorageError:
        return translate(error, self._what)
