"""Write local files so that a destination has the complete bytes or is not changed."""

import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from worker.cli.arguments import STREAM, output_file
from worker.cli.errors import WAYS_OUT_OF_WRITE, Failure
from worker.settings.private_data_directory import mode_for_the_user, sync_directory
from worker.storage.errors import StorageError

_PATIENCE = 20.0
"""Seconds within which a FIFO must have a reader."""
_MAX_LINKS = 40
_DESCRIPTOR = re.compile(r"/proc/(?:self|thread-self|\d+)(?:/task/\d+)?/fd")
_COPY = 1024**2
_PARTIAL = ".partial"


@contextmanager
def complete_file(path: Path, spool_dir: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to. Its bytes appear at `path` when the block ends, and not at all when the block raises.

    A regular file is replaced atomically and keeps its permissions; a new one has those that the user's umask gives. A
    symbolic link is followed, and stays. A device, a FIFO and an open descriptor (`/dev/stdout`) are written into:
    their bytes wait in `spool_dir` until they are complete, because such a write cannot be undone.

    Raises:
        Failure: the destination, or the spool directory, cannot be written; names it, and what to do.
        BrokenPipeError: what reads standard output has ended.
    """
    try:
        with _complete_file(path, spool_dir) as file:
            yield file
    except OSError as error:
        if isinstance(error, StorageError) or (isinstance(error, BrokenPipeError) and path == output_file(STREAM)):
            raise
        unnamed = error.filename is None or str(error.filename).endswith(_PARTIAL)  # the user knows no other name
        way_out = WAYS_OUT_OF_WRITE.get(error.errno or 0, "name another file")
        if not path.parent.exists():
            way_out = f"make the directory {path.parent}, or {way_out}"
        told = f"{path if unnamed else error.filename} cannot be written: {error.strerror or error}; {way_out}"
        raise Failure(told, type_="CannotWrite") from error


@contextmanager
def _complete_file(path: Path, spool_dir: Path) -> Iterator[BinaryIO]:
    target = _followed(path)
    if target is None or _is_special(target):
        complete = False
        try:
            with tempfile.TemporaryFile(dir=spool_dir, prefix="zot-local-") as spool:
                yield spool
                spool.seek(0)
                complete = True
                with open(_opened(path), "wb") as file:
                    shutil.copyfileobj(spool, file, _COPY)
        except OSError as error:
            if not complete and error.filename is None and error.errno in WAYS_OUT_OF_WRITE:
                error.filename = str(spool_dir)  # it is full, and not the destination
            raise
        return
    temporary = target.with_name(f".zot-{secrets.token_hex(8)}{_PARTIAL}")
    try:
        with _unnamed(target.parent) or temporary.open("xb") as file:
            yield file
            file.flush()  # without a buffer, a write to a disk that gets full would write less than it was given
            os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode) if target.exists() else mode_for_the_user())
            os.fsync(file.fileno())
            if not os.fstat(file.fileno()).st_nlink:
                _give_name(file, temporary)
        temporary.replace(target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _unnamed(directory: Path) -> BinaryIO | None:
    """Return a file without a name, of which nothing is left when the process dies; None where there are none."""
    try:
        fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except (AttributeError, OSError):
        return None  # if it is not about such files, a file with a name has the same error
    return os.fdopen(fd, "wb")


def _give_name(file: BinaryIO, path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def _followed(path: Path) -> Path | None:
    """Return the file that a path refers to, which may not exist yet; None if it is an open descriptor."""
    for _ in range(_MAX_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if _DESCRIPTOR.fullmatch(str(path.parent)):
            return None
        if not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    return path  # a loop: to open it raises the error


def _is_special(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    return not stat.S_ISREG(mode)


def _opened(path: Path) -> int:
    """Return a new descriptor of a device, a FIFO or an open descriptor.

    Raises:
        OSError: as `os.open` does; ENXIO of a FIFO that no program has opened for reading within `_PATIENCE`.
    """
    place = Path(os.path.realpath(path.parent)) / path.name
    while place.is_symlink() and not _DESCRIPTOR.fullmatch(str(place.parent)):
        place = place.parent / place.readlink()
        place = Path(os.path.realpath(place.parent)) / place.name
    if _DESCRIPTOR.fullmatch(str(place.parent)) and _is_own(place):
        return os.dup(int(place.name))  # opening its name again would start at the first byte of a redirected file
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fd = os.open(place, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or not place.is_fifo() or time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            os.set_blocking(fd, True)
            return fd


def _is_own(descriptor: Path) -> bool:
    return descriptor.parts[2] in {"self", "thread-self", str(os.getpid())} and descriptor.name.isdigit()
