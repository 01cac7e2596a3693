"""Tell the children of the pool that the worker shuts down, and when the grace period of its jobs is over.

Celery tells only its own main process. That process and its children share a few bytes of memory, which is made
before the first of them is forked.
"""

import mmap
import struct
import time
from datetime import timedelta

_AT = struct.Struct("d")
_shared = mmap.mmap(-1, _AT.size)
RECORDING_SECONDS = 2.0
"""Seconds after the grace period for which a writer of the catalogue still waits for its turn.

All children of the worker record then that their jobs are requeued.
"""


def announce(grace: timedelta) -> None:
    """Tell this process, and those that it forked, that the worker shuts down, with this grace period."""
    _AT.pack_into(_shared, 0, time.monotonic() + grace.total_seconds())


def grace_is_over(since: float = 0.0) -> bool:
    """Return whether the worker shuts down and the grace period has been over for so many seconds."""
    (at,) = _AT.unpack_from(_shared, 0)
    return bool(at) and time.monotonic() > at + since
