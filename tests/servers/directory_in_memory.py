"""A directory in memory for the databases of a test run, whose data do not have to outlive it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM = 1 << 30
"""Free bytes that are asked for: the databases of one process take about 80 MiB, and a run has a few processes."""
_PREFIX = "zot-tests-"


@contextmanager
def directory_in_memory(memory: Path = MEMORY, room: int = ROOM) -> Iterator[Path | None]:
    """Make a directory in a file system in memory for a `with` block, and remove those that killed processes left.

    Yields:
        None where there is no such file system, or too little room in it.
    """
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < room:
        yield None
        return
    with ExitStack() as in_use:
        with _locked(memory):  # another process would take a directory that is not locked yet for one that was left
            for left in memory.glob(f"{_PREFIX}*"):
                with suppress(OSError), _locked(left, fcntl.LOCK_NB):  # raises while its process lives
                    shutil.rmtree(left)
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=memory))
            in_use.enter_context(_locked(directory))
        try:
            yield directory
        finally:
            shutil.rmtree(directory)


@contextmanager
def _locked(directory: Path, how: int = 0) -> Iterator[None]:
    """Lock a directory against other processes. The lock ends with this process, however that ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)
