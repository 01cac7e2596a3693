"""Tell of a full disk of this machine, where bytes wait in files of our own."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.storage.errors import OutOfSpace, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def spooling_in(directory: Path | None) -> Iterator[None]:
    """Name the directory in the error of a write to a file in it that does not fit: the system names none.

    By default it is the system's directory for temporary files.

    Raises:
        OutOfSpace: a file in the directory does not fit.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _FULL:
            raise
        where = directory or tempfile.gettempdir()
        raise OutOfSpace(f"no room to spool to in {where}: {error.strerror}; make room there") from error
