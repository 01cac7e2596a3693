"""Read many small objects: without their sidecars, and with the directory of the object before still open."""

import os
import stat
from contextlib import suppress

from worker.storage.filesystem.directory_tree import Tree
from worker.storage.filesystem.layout import SIDECAR
from worker.storage.filesystem.listing import version_of

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FilesystemSmallReads:
    """The small objects of one tree. It is closed soon: a directory that is renamed meanwhile stays open."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._above: tuple[str, str] | None = None
        self._directory = -1

    def read(self, bucket: str, key: str, size: int) -> tuple[bytes, str] | None:
        """Return all bytes of an object and its version, or None; see `SmallReads`."""
        above, _, name = key.rpartition("/")
        if name.endswith(SIDECAR[1:]):  # the name on disk may be another one
            return None
        try:
            if self._above != (bucket, above):
                self._enter(bucket, above)
            fd = os.open(name, _FLAGS, dir_fd=self._directory)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            if found.st_size != size or not stat.S_ISREG(found.st_mode):
                return None
            data = os.read(fd, size + 1)
        except OSError:
            return None
        finally:
            os.close(fd)
        return (data, version_of(found)) if len(data) == size else None

    def close(self) -> None:
        """Close the directory."""
        self._above = None
        if self._directory >= 0:
            with suppress(OSError):
                os.close(self._directory)
            self._directory = -1

    def _enter(self, bucket: str, above: str) -> None:
        self.close()
        self._directory = self._tree.open_directory((bucket, *above.split("/")) if above else (bucket,))
        self._above = (bucket, above)
