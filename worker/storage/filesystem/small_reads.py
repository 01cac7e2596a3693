"""Read many small objects from the disk, several files ahead of the one that is read."""

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator

from worker.storage.driver import SmallRead, WholeObject
from worker.storage.filesystem.digest_attribute import has_digest, read_digest
from worker.storage.filesystem.layout import SIDECAR, SIDECAR_SIZES, parse_sidecar, version_of
from worker.storage.filesystem.open_without_symlinks import Tree, read_up_to
from worker.storage.keys import is_plain

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_AHEAD = 16
"""Files that are open at a time: while one is read, the disk reads the others."""
_SMALL = 1 << 20
"""Bytes of an object that is read in one piece."""
_ADVICE = hasattr(os, "posix_fadvise")
_Opened = tuple[int, os.stat_result, str]
"""An open file, what `fstat` says of it, and the digest beside it."""


class FilesystemSmallReads:
    """The small objects of one tree. Close it soon, because a directory that is renamed meanwhile stays open."""

    def __init__(self, tree: Tree, *, cached: bool) -> None:
        """Read from the disk, or with `cached` also from the page cache, which may still have what has rotted."""
        self._tree = tree
        self._from_disk = _ADVICE and not cached
        self._above: tuple[str, str] | None = None
        self._directory = -1
        self._attributes = True
        """Whether the file before had its digest in an attribute, so that the next one probably has, too."""
        self._ahead: deque[tuple[SmallRead, _Opened | None]] = deque()

    def read(self, wanted: Iterable[SmallRead]) -> Iterator[tuple[SmallRead, WholeObject | None]]:
        """Yield each object with what is read of it, or None; see `SmallReads`."""
        ahead = self._ahead
        for each in wanted:
            ahead.append((each, self._open(each)))
            if len(ahead) == _AHEAD:
                first, opened = ahead.popleft()
                yield first, self._finish(opened) if opened else None
        while ahead:
            first, opened = ahead.popleft()
            yield first, self._finish(opened) if opened else None

    def close(self) -> None:
        """Close the directory, and what was opened and not read."""
        while self._ahead:
            _, opened = self._ahead.popleft()
            if opened:
                _close(opened[0])
        self._leave()

    def _open(self, wanted: SmallRead) -> _Opened | None:
        bucket, key, expected = wanted
        size = expected.size
        above, _, name = key.rpartition("/")
        if size > _SMALL or name.endswith(SIDECAR[1:]) or not is_plain(bucket, key):  # the name on disk may differ
            return None
        try:
            if self._above != (bucket, above):
                self._enter(bucket, above)
            fd = os.open(name, _FLAGS, dir_fd=self._directory)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            if found.st_size == size and stat.S_ISREG(found.st_mode):
                if self._from_disk:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if _ADVICE:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                return fd, found, self._stored_digest(name, fd, found)
        except OSError:
            pass
        _close(fd)
        return None

    def _stored_digest(self, name: str, fd: int, found: os.stat_result) -> str:
        """Return the digest in the attribute of a file, or in its sidecar; empty if neither simply has one.

        A writer may replace the object meanwhile, so that another digest than the right one proves nothing.
        """
        if self._attributes or has_digest(fd):
            digest = read_digest(fd, found)
            self._attributes = digest is not None
            if digest:
                return digest
        try:
            sidecar = os.open(name + SIDECAR, _FLAGS, dir_fd=self._directory)
        except FileNotFoundError:
            return ""
        try:
            content = os.read(sidecar, SIDECAR_SIZES.stop)
            if len(content) < SIDECAR_SIZES.start:  # as FUSE may return it
                content += read_up_to(sidecar, SIDECAR_SIZES.stop - len(content))
            return parse_sidecar(content) or ""
        finally:
            os.close(sidecar)

    def _finish(self, opened: _Opened) -> WholeObject | None:
        fd, found, stored = opened
        size = found.st_size
        try:
            data = os.read(fd, size + 1)
            if self._from_disk:  # a sweep over the whole store must not empty the page cache
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            return None
        finally:
            _close(fd)
        return WholeObject(data, version_of(found), stored) if len(data) == size else None

    def _enter(self, bucket: str, above: str) -> None:
        self._leave()
        self._directory = self._tree.open_directory((bucket, *above.split("/")) if above else (bucket,))
        self._above = (bucket, above)

    def _leave(self) -> None:
        self._above = None
        if self._directory >= 0:
            _close(self._directory)
            self._directory = -1


def _close(fd: int) -> None:
    try:  # noqa: SIM105 - `suppress` takes as long as the call
        os.close(fd)
    except OSError:  # it is closed, and nothing was written
        pass
