"""Tell the jobs in the children of the pool that the worker shuts down.

Celery tells only its own main process. That process and its children share a few bytes of memory, which is made
before the first of them is forked.
"""

import mmap
import struct
import time
from datetime import timedelta

_SINCE = struct.Struct("d")
_shared = mmap.mmap(-1, _SINCE.size)


def announce() -> None:
    """Tell this process, and those that it forked, that the worker shuts down."""
    _SINCE.pack_into(_shared, 0, time.monotonic())


def grace_is_over(grace: timedelta) -> bool:
    """Return whether the worker has been shutting down for at least this long."""
    (since,) = _SINCE.unpack_from(_shared, 0)
    return bool(since) and time.monotonic() > since + grace.total_seconds()
