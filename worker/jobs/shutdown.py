"""Tell the jobs in the pool's children that the worker is ending.

Celery tells only its own main process. That process and its children share a few bytes of memory, which is made
before the first of them is forked.
"""

import mmap
import struct
import time
from datetime import timedelta

_SINCE = struct.Struct("d")
_shared = mmap.mmap(-1, _SINCE.size)


def begin() -> None:
    """Say that the worker is ending, to this process and to those that it forked."""
    _SINCE.pack_into(_shared, 0, time.monotonic())


def over(grace: timedelta) -> bool:
    """Return whether the worker has been ending for at least this long."""
    (since,) = _SINCE.unpack_from(_shared, 0)
    return bool(since) and time.monotonic() > since + grace.total_seconds()
