"""The heartbeats of all jobs that run in this process, in one thread: one for each job costs as much as its SQL."""

import logging
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LONGEST = 1.0
"""Most seconds between two heartbeats of a job."""
_POLL = 0.001

_beats: dict[object, Callable[[], None]] = {}
_under_way: object = None
_every = LONGEST
_process: int | None = None
_starting = threading.Lock()


def begin(job: object, beat: Callable[[], None], *, every: float) -> None:
    """Call `beat` every so many seconds, or more often, until `end`. What it raises is logged."""
    global _process, _every  # noqa: PLW0603 - one thread for the process
    with _starting:
        _every = min(LONGEST, every)
        if _process != os.getpid():  # no thread survives a fork
            _beats.clear()
            threading.Thread(target=_run, name="heartbeats", daemon=True).start()
            _process = os.getpid()  # after that: the machine may have no room for a thread
        _beats[job] = beat


def end(job: object) -> None:
    """Return when no heartbeat of the job is under way; none follows.

    It takes no lock: a heartbeat may interrupt the thread that waits here, and a lock that stayed would stop all.
    """
    _beats.pop(job, None)
    while _under_way is job:
        time.sleep(_POLL)


def _run() -> None:
    global _under_way  # noqa: PLW0603
    while True:
        time.sleep(_every)
        for job in list(_beats):
            _under_way = job
            try:
                if beat := _beats.get(job):
                    beat()
            except Exception:
                logger.exception("a heartbeat failed")
            finally:
                _under_way = None
