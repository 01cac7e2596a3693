"""Read an open file, whose bytes stay the same when its name is replaced or deleted."""

import errno
import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

from worker.storage.driver import ObjectStat, VersionReader
from worker.storage.errors import StorageError
from worker.storage.filesystem.atomic_write import OpenObject
from worker.storage.filesystem.layout import ObjectPath, object_stat
from worker.storage.filesystem.open_without_symlinks import translate

_BLOCK = 4096
"""Address, offset and length of a direct read are multiples of the block size of the disk, which is at most this."""

_O_DIRECT = os.O_DIRECT if sys.platform == "linux" else 0


_CANNOT = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOMEM, errno.EAGAIN, errno.EINTR}
"""Errors of a direct read that say nothing about the disk."""


class FilesystemReader(VersionReader):
    """The bytes of an object, or of a range of it. Closes the file of the object that was found.

    With `uncached`, the page cache is emptied of the file before and after, and `readinto` reads past it (`O_DIRECT`),
    which takes less processor time than to fill it and copy from it. `read` does not, and neither does `readinto` where
    the disk cannot, or into a buffer that does not begin with a page. Some file systems accept `O_DIRECT` and read
    through the cache, such as ext4 with `data=journal`: so the cache is emptied in each case. What the disk has failed
    to give is an error, also where the cache has it because another program has mapped the file.
    """

    def __init__(
        self,
        store: str,
        path: ObjectPath,
        found: OpenObject,
        *,
        root: Path,
        offset: int = 0,
        length: int | None = None,
        uncached: bool = False,
    ) -> None:
        self.found = found
        self._stat = object_stat(path, found.stat, found.sha256)
        self._what, self._root = f"{store}: {path}", root
        self._offset = offset
        self._left = length
        self._uncached = uncached
        self._closed = False
        self._damaged_before = -1
        """The end of what the disk has failed to give; -1 where it has given all."""
        self._span = (offset, length or 0)  # of the advice; 0 is up to the end
        if uncached:
            self._advise("POSIX_FADV_DONTNEED")
        self._direct = uncached and self._set_direct(on=True)
        if not self._direct:
            self._advise("POSIX_FADV_SEQUENTIAL")

    @property
    def stat(self) -> ObjectStat:
        return self._stat

    def read(self, size: int, /) -> bytes:
        size = size if self._left is None else min(size, self._left)
        if self._direct:
            self._use_cache()
        try:
            data = os.pread(self.found.fd, size, self._offset)
            self._check_damage(self._offset + len(data))
        except OSError as error:
            raise self._error(error) from error
        self._advance(len(data))
        return data

    def readinto(self, buffer: memoryview, /) -> int:
        size = len(buffer) if self._left is None else min(len(buffer), self._left)
        try:
            count = self._read_blocks(buffer[:size]) if self._direct else 0
            if not count:
                count = os.preadv(self.found.fd, [buffer[:size]], self._offset)
                self._check_damage(self._offset + count)
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

    def _read_blocks(self, buffer: memoryview) -> int:
        """Read whole blocks past the page cache; where that fails, return 0 and use the cache from now on."""
        whole = len(buffer) - len(buffer) % _BLOCK
        if whole and self._offset % _BLOCK == 0:
            # A disk may not do it (EINVAL), and has an error number for each kind of damage: a bad sector is ENODATA,
            # and a checksum that differs EILSEQ. Through the cache it is EIO, after the bytes before the damage.
            try:
                if count := os.preadv(self.found.fd, [buffer[:whole]], self._offset):
                    return count
            except OSError as error:
                if error.errno not in _CANNOT:
                    self._damaged_before = self._offset + whole
        self._use_cache()
        return 0

    def _check_damage(self, end: int) -> None:
        """Raise OSError where the cache gave all that the disk has failed to give: another program has it in memory."""
        if 0 <= self._damaged_before <= end:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _use_cache(self) -> None:
        self._direct = False
        self._set_direct(on=False)
        self._advise("POSIX_FADV_SEQUENTIAL")

    def _set_direct(self, *, on: bool) -> bool:
        """Have the file read past the cache, or through it; return False where the file system cannot do that."""
        try:
            flags = fcntl.fcntl(self.found.fd, fcntl.F_GETFL) & ~_O_DIRECT
            fcntl.fcntl(self.found.fd, fcntl.F_SETFL, flags | _O_DIRECT if on else flags)
        except OSError:
            return False
        return _O_DIRECT != 0

    def _advance(self, count: int) -> None:
        self._offset += count
        if self._left is not None:
            self._left -= count

    def _advise(self, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):  # not on every system; it is only advice
            with suppress(OSError):
                os.posix_fadvise(self.found.fd, *self._span, getattr(os, advice))

    def _error(self, error: OSError) -> StorageError:
        return translate(error, self._what, self._root)
