"""Name the directory of temporary files in the error of one that is full or cannot be written."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.storage.errors import OutOfSpace, PermanentError, StorageError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A file does not fit: the disk, or what the user may use of it, is full."""
_UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})


@contextmanager
def spooling_in(directory: Path | None) -> Iterator[None]:
    """Name the directory, and the way out, if a file in it does not fit or cannot be made.

    By default it is the system's directory for temporary files. Other errors of the system pass: most are transient,
    such as too many open files.

    Raises:
        OutOfSpace: a file does not fit.
        PermanentError: no file can be made there.

    Both are about this machine, and count against no store.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        where = Path(directory or tempfile.gettempdir())
        found: StorageError
        if error.errno in _UNUSABLE and error.filename is not None and where in {*Path(error.filename).parents}:
            told = f"no file can be made in {where}: {error.strerror}; let the user of this program write there"
            found = PermanentError(told)
        elif error.errno in FULL:
            found = OutOfSpace(f"no room to spool to in {where}: {error.strerror}; make room there")
        else:
            raise
        found.store = ""
        raise found from error
