"""Name the directory of temporary files in the error of a full disk of this machine."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.storage.errors import OutOfSpace, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def spooling_in(directory: Path | None) -> Iterator[None]:
    """Raise OutOfSpace, which names the directory, if a file in it does not fit: the system's error names none.

    By default it is the system's directory for temporary files. Other errors of the system pass: most are transient,
    such as too many open files.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _FULL:
            raise
        where = directory or tempfile.gettempdir()
        raise OutOfSpace(f"no room to spool to in {where}: {error.strerror}; make room there") from error
