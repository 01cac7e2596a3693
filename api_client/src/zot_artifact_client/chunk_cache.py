"""Keep verified chunks of artifacts on a disk, so that each is fetched once, whatever reads it.

A file of the cache is one chunk and is named by its SHA-256. Its bytes are verified when they come in, and again at
every hit: a file that a killed process or a failing disk left wrong is removed and fetched again. An error of the disk
never fails a read.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from zot_artifact_client.errors import ClientError

logger = logging.getLogger(__name__)

Chunk = bytes | bytearray

_CHUNKS = "chunks"
_LOCKS = "locks"
_NEW = "new"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STRIPES = 3
"""Hexadecimal digits of a digest that name its lock: chunks that share one are fetched one after the other."""
_ROOM = 0.9
"""What an eviction leaves of `max_size`: it reads the whole directory, so it makes room for more than one chunk."""
_STALE = 3600.0
"""Seconds after which an unfinished file is that of a killed process."""


@dataclass(frozen=True, slots=True)
class CacheStat:
    """What is in a cache, and what this process has found there."""

    chunks: int
    bytes: int
    max_size: int
    hits: int
    misses: int


class ChunkCache:
    """A directory of verified chunks, shared by any number of threads and processes of one machine.

    Args:
        root: the directory; it is made. One cache has it for itself.
        max_size: bytes of all chunks together; the least recently used go first.
        min_free: bytes that stay free on the disk.

    Raises:
        ClientError: the directory cannot be made or written to.
    """

    def __init__(self, root: str | os.PathLike[str], *, max_size: int = 10 * 1024**3, min_free: int = 1024**3) -> None:
        self.root = Path(root)
        self.max_size = max_size
        self.min_free = min_free
        self._hits = self._misses = 0
        if max_size < 0 or min_free < 0:
            raise ClientError("cache: max_size and min_free are numbers of bytes, 0 at least")
        try:
            for part in (_CHUNKS, _LOCKS, _NEW):
                (self.root / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.root / _LOCKS / "size").touch(mode=0o600)
        except OSError as error:
            raise ClientError(f"cache: {self.root} cannot be used: {error.strerror}") from None

    def chunk(self, sha256: str, size: int, fetch: Callable[[], Chunk]) -> Chunk:
        """Return the chunk with this digest, from the disk, or else from `fetch`, which verifies it.

        Of all that ask for a chunk at the same moment, in any process, one fetches it. Raise what `fetch` raises.
        """
        if not _DIGEST.fullmatch(sha256):  # it would name a file outside the cache
            return fetch()
        if (found := self._read(sha256, size)) is not None:
            return found
        try:
            lock = self._lock(sha256[:_STRIPES])
        except OSError as error:
            logger.warning("cache %s is not used for now: %s", self.root, error.strerror)
            return fetch()
        try:
            if (found := self._read(sha256, size)) is not None:
                return found
            self._misses += 1
            found = fetch()
            try:
                self._admit(sha256, found)
            except OSError as error:
                logger.warning("cache %s: chunk %s is not kept: %s", self.root, sha256, error.strerror)
            return found
        finally:
            _unlock(lock)

    def stat(self) -> CacheStat:
        """Return what is in the cache."""
        sizes = [size for _, size, _ in self._files()]
        return CacheStat(len(sizes), sum(sizes), self.max_size, self._hits, self._misses)

    def verify(self, on_bytes: Callable[[int], object] = lambda _: None) -> int:
        """Read all chunks from the disk; remove those whose bytes are wrong and return how many there were.

        `on_bytes` is called with the size of each chunk that was read.
        """
        wrong = 0
        for path, size, _ in list(self._files()):
            with suppress(FileNotFoundError):  # another process made room meanwhile
                wrong += self._verified(path.name, size, from_disk=True) is None
            on_bytes(size)
        if wrong:
            self._recount()
        return wrong

    def drop(self) -> None:
        """Remove all chunks."""
        for path, _, _ in list(self._files()):
            with suppress(OSError):
                path.unlink()
        self._recount()

    def _path(self, sha256: str) -> Path:
        return self.root / _CHUNKS / sha256[:2] / sha256

    def _read(self, sha256: str, size: int) -> Chunk | None:
        """Return a chunk of the disk whose bytes are right; remove one whose bytes are not."""
        try:
            found = self._verified(sha256, size)
        except FileNotFoundError:
            return None
        if found is not None:
            self._hits += 1
            with suppress(OSError):
                os.utime(self._path(sha256))  # the least recently used chunk goes first
        return found

    def _verified(self, sha256: str, size: int, *, from_disk: bool = False) -> Chunk | None:
        """Return the bytes of a chunk; None if they are wrong, and then its file is removed.

        With `from_disk` the pages of the kernel, which hide what the disk lost, are dropped before the read.

        Raises:
            FileNotFoundError: there is no such chunk.
        """
        path = self._path(sha256)
        try:
            with open(path, "rb", buffering=0, opener=_open_chunk) as file:
                if from_disk:
                    _drop_pages(file.fileno())
                found = file.readall() if os.fstat(file.fileno()).st_size == size else b""
            if len(found) == size and hashlib.sha256(found).hexdigest() == sha256:
                return found
            logger.warning("cache %s: chunk %s is damaged: removed", self.root, sha256)
        except FileNotFoundError:
            raise
        except OSError as error:
            logger.warning("cache %s: chunk %s cannot be read: %s", self.root, sha256, error.strerror)
        with suppress(OSError):
            path.unlink()
        return None

    def _admit(self, sha256: str, found: Chunk) -> None:
        if not self._make_room(len(found)):
            return
        path, new = self._path(sha256), self.root / _NEW / uuid4().hex
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
                file.write(found)
            new.rename(path)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise

    def _make_room(self, size: int) -> bool:
        """Count a chunk as kept, and remove the least recently used until it fits. Return whether it does."""
        if size > self.max_size:
            return False
        with self._counter() as counter:
            known = self._counted(counter)
            if known is None or known + size > self.max_size or self._free() - size < self.min_free:
                known = self._evict(size)
            fits = known + size <= self.max_size and self._free() - size >= self.min_free
            self._count(counter, known + size if fits else known)
            return fits

    def _evict(self, size: int) -> int:
        """Remove chunks, the least recently used first; return the bytes of those that are left."""
        self._remove_stale()
        files = sorted(self._files(), key=lambda file: file[2])
        left = sum(each for _, each, _ in files)
        room = min(int(self.max_size * _ROOM), self.max_size - size) if left + size > self.max_size else self.max_size
        lacking = self.min_free + size - self._free()
        for path, each, _ in files:
            if left <= room and lacking <= 0:
                break
            with suppress(OSError):
                path.unlink()
                left -= each
                lacking -= each
        return left

    def _remove_stale(self) -> None:
        for path in (self.root / _NEW).iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _STALE:
                    path.unlink()

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Yield the chunks, with the size and the time of the last use of each; files of others are no chunks."""
        for directory in sorted((self.root / _CHUNKS).iterdir()):
            for path in directory.iterdir() if directory.is_dir() else ():
                if not _DIGEST.fullmatch(path.name) or path.name[:2] != directory.name:
                    continue
                with suppress(OSError):
                    found = path.stat(follow_symlinks=False)
                    yield path, found.st_size, found.st_mtime

    def _free(self) -> int:
        return shutil.disk_usage(self.root).free

    def _lock(self, name: str) -> int:
        """Take a lock that excludes other threads and processes until `_unlock`; a killed process gives it up."""
        lock = os.open(self.root / _LOCKS / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            os.close(lock)
            raise
        return lock

    @contextmanager
    def _counter(self) -> Iterator[int]:
        """Hold the file that has the bytes of all chunks."""
        counter = self._lock("size")
        try:
            yield counter
        finally:
            _unlock(counter)

    def _counted(self, counter: int) -> int | None:
        """Return the bytes of all chunks as they were last counted; None if that cannot be read."""
        text = os.pread(counter, 32, 0).strip()
        return int(text) if text.isdigit() else None

    def _count(self, counter: int, size: int) -> None:
        os.pwrite(counter, f"{size:<31}\n".encode(), 0)

    def _recount(self) -> None:
        with self._counter() as counter:
            self._count(counter, sum(size for _, size, _ in self._files()))


def _unlock(lock: int) -> None:
    """Give up a lock, also where a process that was forked meanwhile has the file open, too."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def _drop_pages(file: int) -> None:
    with suppress(OSError, AttributeError):  # macOS has no such call
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _open_chunk(path: str, _: int) -> int:
    """Open what should be a chunk: no link is followed, and no pipe waited for."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
