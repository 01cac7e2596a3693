"""Reach directories, files and locks below a root without following a link.

Everything here raises OSError; the driver calls `translate` once for all of them. The exception is a missing root:
it raises Unavailable and never FileNotFoundError, because an unmounted disk must not look like an empty store.
"""

import errno
import fcntl
import logging
import os
import shlex
import stat
import time
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.storage.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    InvalidKey,
    NotFound,
    OutOfSpace,
    PermanentError,
    StorageError,
    Unavailable,
)
from worker.storage.filesystem.layout import LOCKS, OWN, SIDECAR, TEMP, folded

logger = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_LOCK = os.O_RDWR | os.O_NOFOLLOW

UNREADABLE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EBADMSG, errno.EUCLEAN}
"""The error numbers of a directory or a file that cannot be read although the disk works."""
_MAX_UNREADABLE = 1000
LOCK_SECONDS = 30.0
"""Longest wait for the lock of an object."""
_LOCK_POLL = 0.005

ERRORS: dict[int, type[StorageError]] = {
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyExists,
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.EROFS: AccessDenied,
    errno.ENAMETOOLONG: InvalidKey,
    errno.EILSEQ: InvalidKey,
    errno.EISDIR: InvalidKey,
    errno.ENOTDIR: InvalidKey,
    errno.EINVAL: PermanentError,
    errno.ELOOP: PermanentError,
    errno.ENOSYS: PermanentError,
    errno.EOPNOTSUPP: PermanentError,
    errno.EXDEV: PermanentError,
    errno.EDQUOT: OutOfSpace,
    errno.EFBIG: OutOfSpace,
    errno.EMLINK: OutOfSpace,
    errno.ENOSPC: OutOfSpace,
}
"""The StorageError for an errno. All others are Unavailable: the disk or the machine may recover."""

_WAYS_OUT: dict[type[StorageError], str] = {
    AccessDenied: "the worker's user must be able to read and write in {root}",
    OutOfSpace: "make room in {root}, or raise the limit",
    Unavailable: "check that the disk of {root} is mounted and healthy, and that the process may open more files",
}
_READ_ONLY = (
    "the disk of {root} is mounted read-only, as the system does after errors of the disk: make it writable, then "
    "`zot-artifacts jobs retry --all --state failed --error AccessDenied`"
)


def translate(error: OSError, what: str, root: Path) -> StorageError:
    """Return the StorageError for an OSError; `what` names the store and the object, and the store is in `root`."""
    if isinstance(error, StorageError):
        return error
    if error.errno == errno.ENOENT:
        return NotFound(f"{what} does not exist")
    kind = ERRORS.get(error.errno or 0, Unavailable)
    way_out = _READ_ONLY if error.errno == errno.EROFS else _WAYS_OUT.get(kind)
    if str(error.filename).endswith(SIDECAR) and not what.endswith(SIDECAR):  # the data beside it can be read
        what = f"{what}: its digest in {error.filename}"
    told = f"{what}: {error.strerror or error}"
    return kind(f"{told}; {way_out.format(root=root)}" if way_out else told)


def translate_write(error: OSError, what: str, root: Path) -> StorageError:
    """Return the StorageError for an OSError of a write; what is missing then has been removed meanwhile."""
    if error.errno == errno.ENOENT and not isinstance(error, StorageError):
        return Conflict(
            f"{what}: another program removed its directory or its temporary file meanwhile; try again later"
        )
    return translate(error, what, root)


class Tree:
    """The directories below one root, given as tuples of names. Only the root itself may be a link."""

    def __init__(self, store: str, root: Path, *, file_mode: int | None = None, dir_mode: int | None = None) -> None:
        """Prepare a tree. New files and directories get these modes, or those of the umask if None."""
        self.file_mode = file_mode
        self._dir_mode = dir_mode
        self._store = store
        self.root = root
        self._folds: str | None = None
        self._unreadable: dict[tuple[str, ...], StorageError] = {}

    @property
    def folds_names(self) -> str | None:
        """Return what the disk does not tell apart in names, such as "case", or None.

        It is tried once, and again where an error kept it from being tried, such as that of a full disk or of one that
        is read-only: that may end. A root without a directory of the worker is not written to, because its disk may not
        be mounted.
        """
        if self._folds is None:
            try:
                own = self.open_directory((OWN,))
            except OSError:
                return None
            try:
                self._folds = self._tried(own)
            except OSError:
                return "case" if self._seems_to_fold() else None
            finally:
                os.close(own)
        return self._folds or None

    def _tried(self, own: int) -> str:
        probe = f"{TEMP}{uuid.uuid4().hex}-a\u00e9"
        variants = {"case": probe.replace("-a", "-A"), "NFC and NFD": unicodedata.normalize("NFD", probe)}
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=own))
        try:
            return " or ".join(what for what, name in variants.items() if exists(own, name))
        finally:
            remove(own, probe)

    def other_name(self, path: tuple[str, ...], *, create: bool = False) -> str | None:
        """Return the existing name if the disk does not tell a component of this path from it.

        `create`: make our own directory for that test. Otherwise nothing is written, so that the directory of an
        unmounted disk stays empty.
        """
        if create and self._folds is None:
            os.close(self.create_directory((OWN,))[0])
        if self._folds == "" or self.folds_names is None:  # most disks
            return None
        for depth, name in enumerate(path):
            with self.directory_or_none(path[:depth]) as directory:
                if directory is None or not exists(directory, name):
                    return None
                names = os.listdir(directory)  # noqa: PTH208 - a descriptor
                if name not in names:
                    return next((other for other in names if folded(other) == folded(name)), "another name")
        return None

    def _seems_to_fold(self) -> bool:
        """Return whether the disk does not tell case apart, as far as that can be seen without writing."""
        with self.directory(()) as root:
            return exists(root, OWN) and exists(root, OWN.upper())

    @property
    def unreadable(self) -> Mapping[tuple[str, ...], StorageError]:
        """Return the directories and files that listings have passed over, each with its error."""
        return dict(self._unreadable)

    def report(self, path: tuple[str, ...], error: OSError) -> None:
        """Record and log a directory or a file that a listing skips: it cannot be read, or its name is no key."""
        shown = os.fsencode("/".join(path)).decode(errors="backslashreplace")
        problem = translate(error, f"{self._store}: {shown}", self.root)
        if path not in self._unreadable:
            logger.warning("%s; listings pass over it", problem.message)
        if len(self._unreadable) < _MAX_UNREADABLE:
            self._unreadable[path] = problem

    @contextmanager
    def directory(self, path: tuple[str, ...]) -> Iterator[int]:
        """Yield a directory that exists; raise FileNotFoundError otherwise."""
        fd = self.open_directory(path)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def directory_or_none(self, path: tuple[str, ...]) -> Iterator[int | None]:
        """Yield a directory, or None if there is none."""
        try:
            fd = self.open_directory(path)
        except FileNotFoundError:
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def open_directory(self, path: tuple[str, ...]) -> int:
        """Return a directory that exists; the caller closes it.

        Raises:
            FileNotFoundError: it is not there.
            OSError: ELOOP, a component of the path is a link.
        """
        fd = self._open_root()
        try:
            for depth in range(1, len(path) + 1):
                child = _step(fd, path[:depth], create=False)
                os.close(fd)
                fd = child
        except BaseException:
            os.close(fd)
            raise
        return fd

    def create_directory(self, path: tuple[str, ...]) -> tuple[int, bool]:
        """Return a directory, made durably where it is missing, and whether its first component is new.

        The caller closes it. Where that fails, a first component that was made is removed again.

        Raises:
            FileNotFoundError: another process prunes it meanwhile.
            NotADirectoryError: a component of the path is a file.
            OSError: ELOOP, a component of the path is a link.
        """
        fd, fresh = self._open_root(), False
        try:
            for depth in range(1, len(path) + 1):
                try:
                    child = _step(fd, path[:depth], create=True)
                except FileNotFoundError:
                    made = self._make(fd, path[depth - 1])
                    fresh = fresh or (made and depth == 1)
                    child = _step(fd, path[:depth], create=True)
                os.close(fd)
                fd = child
        except BaseException:
            os.close(fd)
            if fresh:
                self.prune(path, keep=0)
            raise
        return fd, fresh

    def make(self, path: tuple[str, ...]) -> bool:
        """Make a directory whose parents exist; return False if it was there already."""
        with self.directory(path[:-1]) as parent:
            if self._make(parent, path[-1]):
                return True
            os.close(_step(parent, path, create=True))  # raises where it is no directory
        return False

    def prune(self, path: tuple[str, ...], *, keep: int) -> None:
        """Remove a directory and its parents while they are empty, but not the first `keep` of them."""
        for depth in range(len(path), keep, -1):
            try:
                with self.directory(path[: depth - 1]) as parent:
                    os.rmdir(path[depth - 1], dir_fd=parent)
            except FileNotFoundError:
                continue  # the process that removed it may have died before it removed the parents
            except OSError:
                return

    def scan(self, path: tuple[str, ...], *, strict: bool = False) -> tuple[set[str], set[str]]:
        """Return the names of the files and of the directories in a directory, none if it does not exist.

        A directory that cannot be read is reported and taken as empty unless `strict`, so that a listing goes on.
        """
        files: set[str] = set()
        directories: set[str] = set()
        try:
            with self.directory(path) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        files.add(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        directories.add(entry.name)
        except FileNotFoundError:
            return set(), set()
        except OSError as error:
            if strict or error.errno not in UNREADABLE:
                raise
            self.report(path, error)
        return files, directories

    def walk(self, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], set[str]]]:
        """Yield a directory and all below it, each before those in it, with the names of their files."""
        pending = [path]
        while pending:
            here = pending.pop()
            files, directories = self.scan(here)
            yield here, files
            pending += [(*here, name) for name in directories]

    @contextmanager
    def locked(self, name: str, *, locks: int | None = None) -> Iterator[None]:
        """Hold a lock that excludes every other thread and process that asks for the same name.

        `locks`: the directory of the locks, where a caller that takes many of them has it open.

        Raises:
            Unavailable: another process keeps the lock; names its file.
        """
        directory = self.create_directory(LOCKS)[0] if locks is None else locks
        try:
            lock = os.open(name, _LOCK, dir_fd=directory)
        except FileNotFoundError:
            lock = self._make_lock(directory, name)
        finally:
            if locks is None:
                os.close(directory)
        try:
            until = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:  # writers hold it for a few system calls only
                        where = self.root.joinpath(*LOCKS, name)
                        raise Unavailable(
                            f"{self._store}: another process has locked {where} for {LOCK_SECONDS:.0f} s; "
                            f"`fuser {where}` names it"
                        ) from None
                    time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(lock)

    def _make_lock(self, directory: int, name: str) -> int:
        try:
            lock = os.open(name, _LOCK | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
        except FileExistsError:
            return os.open(name, _LOCK, dir_fd=directory)
        give_mode(lock, self.file_mode)
        return lock

    def _make(self, parent: int, name: str) -> bool:
        if not _make(parent, name):
            return False
        if self._dir_mode is not None:
            fd = os.open(name, _DIRECTORY, dir_fd=parent)
            try:
                os.fchmod(fd, self._dir_mode)
            finally:
                os.close(fd)
        return True

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as error:
            made = f"mkdir -p {shlex.quote(str(self.root))}"
            told = f"its root {self.root} does not exist: mount the disk, or make it with `{made}`"
            raise Unavailable(f"{self._store}: {told}") from error
        except NotADirectoryError as error:
            told = f"its root {self.root} is not a directory: move the file that is in its place, or correct the root"
            raise Unavailable(f"{self._store}: {told}") from error


def give_mode(fd: int, mode: int | None) -> None:
    """Set the mode of a new file, whatever the process's umask is; None does not change it."""
    if mode is not None:
        os.fchmod(fd, mode)


def is_link_refusal(error: OSError) -> bool:
    """Return whether the error means that a filesystem, or its policy, does not allow this hard link."""
    return error.errno in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def stat_of(directory: int, name: str) -> os.stat_result:
    """Return the stat of a name, without following a link."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def exists(directory: int, name: str) -> bool:
    """Return whether anything has this name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            return False
        raise
    return True


def regular_stat(directory: int, name: str) -> os.stat_result | None:
    """Return the stat of a file, or None if the name does not exist.

    Raises:
        IsADirectoryError: a directory has this name.
        OSError: ELOOP, the name is neither a file nor a directory.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else _checked(found, name)


def open_regular(directory: int, name: str) -> int:
    """Open a file for reading.

    Raises:
        FileNotFoundError: there is no such file, though perhaps a directory.
        OSError: ELOOP, the name is neither a file nor a directory.
    """
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise _irregular(name) from error
        raise
    try:
        _checked(os.fstat(fd), name)
    except IsADirectoryError as error:
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, f"{name!r} is a directory") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_small(directory: int, name: str, limit: int) -> bytes | None:
    """Return the content of a file of ours of at most `limit` bytes, or None if there is no such file."""
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}:
            return None
        raise
    try:
        return read_up_to(fd, limit) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def read_up_to(fd: int, limit: int) -> bytes:
    """Return the first `limit` bytes of a file, or all: a disk behind FUSE or a network may return fewer at a time."""
    content = b""
    while data := os.read(fd, limit - len(content)):
        content += data
    return content


def remove(directory: int, name: str) -> bool:
    """Remove a file; return False if it was not there."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            return False
        raise
    return True


def _make(parent: int, name: str) -> bool:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return False
    try:
        os.fsync(parent)
    except OSError:
        with suppress(OSError):
            os.rmdir(name, dir_fd=parent)
        raise
    return True


def _step(parent: int, path: tuple[str, ...], *, create: bool) -> int:
    try:
        return os.open(path[-1], _DIRECTORY, dir_fd=parent)
    except NotADirectoryError:
        where = "/".join(path)
        if not stat.S_ISREG(stat_of(parent, path[-1]).st_mode):
            raise _irregular(where) from None
        if create:
            raise NotADirectoryError(
                errno.ENOTDIR, f"{where!r} is a file there, and a filesystem cannot have both it and keys below it"
            ) from None
        raise FileNotFoundError(errno.ENOENT, f"{where!r} is a file") from None


def _checked(found: os.stat_result, name: str) -> os.stat_result:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(
            errno.EISDIR,
            f"there are keys below {name!r}, and a filesystem cannot have both them and a key of that name",
        )
    if not stat.S_ISREG(found.st_mode):
        raise _irregular(name)
    return found


def _irregular(name: str) -> OSError:
    return OSError(errno.ELOOP, f"{name!r} is a link or a special file, and these are never followed: replace it")
