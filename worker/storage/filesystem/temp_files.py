"""Write temporary files in the directory of their object, and place them under its name when they are complete."""

import errno
import fcntl
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache

from worker.storage.driver import WRITE_SIZE
from worker.storage.filesystem.digest_attribute import read_digest, write_digest
from worker.storage.filesystem.layout import TEMP, version_of
from worker.storage.filesystem.open_without_symlinks import (
    give_mode,
    is_link_refusal,
    open_regular,
    remove,
    stat_of,
)

_TRIES = 10


class TempFile:
    """A hidden file, locked while its writer is alive, and removed when it is closed before it is placed."""

    digest: str | None = None
    """The SHA-256 in the file's attribute, if it has one."""

    def __init__(self, directory: int, mode: int | None = None) -> None:
        """Create an empty file in a directory that the caller keeps open; the umask decides without `mode`."""
        self._directory, self._written, self._named = directory, 0, True
        for _ in range(_TRIES):
            self._name = _temp_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._fd = os.open(self._name, flags, 0o666, dir_fd=directory)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_SH)
                give_mode(self._fd, mode)
                if self.stat.st_nlink:
                    return
            except BaseException:
                self.close()
                raise
            os.close(self._fd)  # cleanup removed it as stale before it was locked
        raise OSError(errno.EBUSY, "temporary files disappear as soon as they are made")

    @property
    def stat(self) -> os.stat_result:
        """Return the present stat of the file."""
        return os.fstat(self._fd)

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        rest = memoryview(data)
        while rest:
            count = os.write(self._fd, rest[:WRITE_SIZE])
            self._written += count
            rest = rest[count:]

    def finish(self) -> None:
        """Make the written bytes durable."""
        self.stamp()
        self.sync()

    def stamp(self) -> None:
        """Set the modification time to the nanosecond.

        The kernel's own advances in steps of some milliseconds, and with a reused inode two versions could get the same
        version tag.
        """
        now = time.time_ns()
        os.utime(self._fd, ns=(now, now))

    def keep_digest(self, sha256: str) -> bool:
        """Keep a digest in an extended attribute of the stamped file; return False if the disk has no such attributes.

        It becomes durable with the bytes.
        """
        kept = write_digest(self._fd, sha256)
        if kept:
            self.digest = sha256
        return kept

    def sync(self) -> None:
        """Make the bytes and attributes durable."""
        os.fsync(self._fd)
        self.check_size()

    def check_size(self) -> None:
        """Raise an OSError unless the file has as many bytes as were written."""
        if self.stat.st_size != self._written:
            raise OSError(errno.EIO, f"{self._written} bytes were written and {self.stat.st_size} are on the disk")

    def rename(self, name: str) -> None:
        """Place the file, over any file of this name."""
        os.rename(self._name, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._named = False

    def link(self, name: str) -> None:
        """Place the file; raise FileExistsError if the name exists."""
        try:
            os.link(self._name, name, src_dir_fd=self._directory, dst_dir_fd=self._directory, follow_symlinks=False)
        except OSError as error:
            if not is_link_refusal(error):
                raise
            self.rename(name)  # no hard links here; the lock is held, and nothing had this name

    def place(self, name: str) -> None:
        """Place the file where no file has the name, under the object's lock."""
        self.rename(name)

    def move_to(self, directory: int) -> None:
        """Do nothing: the file is in this directory already, and its name keeps the directory from removal."""

    def close(self) -> None:
        """Close the file, and remove it unless it was placed."""
        if self._named:
            with suppress(OSError):  # what cannot be removed now is found by `iter_stale_uploads` later
                remove(self._directory, self._name)
        os.close(self._fd)


class UnnamedFile(TempFile):
    """A file without a name until it is placed: the death of its writer leaves no file. Not every disk supports it."""

    def __init__(self, directory: int, mode: int | None = None) -> None:
        """Create an empty file on the disk of a directory.

        Raises:
            NoUnnamedFiles: the disk or the system has no such files.
        """
        self._directory = directory
        self._named = False
        try:
            self._fd = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o666, dir_fd=directory)
        except AttributeError as error:
            raise NoUnnamedFiles from error
        except OSError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}:
                raise NoUnnamedFiles from error
            raise
        try:
            give_mode(self._fd, mode)
        except BaseException:
            os.close(self._fd)
            raise
        self._written = 0

    def rename(self, name: str) -> None:
        """Place the file, over any file of this name."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)  # its writer is alive, while it has the name of a temporary file
        self._name = _temp_name()
        self.link(self._name)
        try:
            super().rename(name)
        except BaseException:
            with suppress(OSError):
                remove(self._directory, self._name)
            raise

    def link(self, name: str) -> None:
        """Place the file; raise FileExistsError if the name exists."""
        os.link(f"/proc/self/fd/{self._fd}", name, dst_dir_fd=self._directory, follow_symlinks=True)

    def place(self, name: str) -> None:
        """Place the file where no file has the name, under the object's lock."""
        self.link(name)

    def move_to(self, directory: int) -> None:
        """Place the file in this directory: the one that it was made in may have been removed meanwhile."""
        self._directory = directory

    def close(self) -> None:
        """Close the file, which removes it unless it was placed."""
        os.close(self._fd)


class NoUnnamedFiles(Exception):
    """The disk has no files without a name."""


class LinkedTempFile(TempFile):
    """A hidden second name of an existing file."""

    def __init__(self, directory: int, source: int, source_directory: int, source_name: str) -> None:
        """Link to the file that is open as `source`.

        Raises:
            FileNotFoundError: another file has that name by now.
        """
        self._directory = directory
        self._name, self._named = _temp_name(), True
        self._fd = os.dup(source)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            os.link(source_name, self._name, src_dir_fd=source_directory, dst_dir_fd=directory, follow_symlinks=False)
            if version_of(stat_of(directory, self._name)) != version_of(self.stat):
                raise FileNotFoundError(errno.ENOENT, "it was replaced meanwhile")
            self._written = self.stat.st_size
            self.digest = read_digest(self._fd, self.stat)
        except BaseException:
            self.close()
            raise

    def rename(self, name: str) -> None:
        """Place the file, over whatever has this name."""
        super().rename(name)
        self._named = True  # a rename to another name of the same file does nothing


def sync_at_once(one: TempFile, other: TempFile) -> None:
    """Make the bytes of two files durable: the disk serves both waits together."""
    synced = _helpers(os.getpid()).submit(other.sync)
    try:
        one.sync()
    finally:
        failed = synced.exception()  # waits: the file stays open until then
    if failed is not None:
        raise failed


@cache
def _helpers(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - no thread survives a fork
    """Return the threads of a process for `sync_at_once`: one is started where none is free."""
    return ThreadPoolExecutor(64, "sync")


def write_small(directory: int, name: str, content: bytes, mode: int | None = None) -> None:
    """Write a small file atomically, replacing what has this name. The directory is not synced."""
    temp = TempFile(directory, mode)
    try:
        temp.write(content)
        temp.finish()
        temp.rename(name)
    finally:
        temp.close()


def remove_dead(directory: int, name: str) -> bool:
    """Remove a temporary file; return False if it is gone or its writer is alive."""
    try:
        fd = open_regular(directory, name)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return remove(directory, name)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _temp_name() -> str:
    return f"{TEMP}{secrets.token_hex(16)}"
