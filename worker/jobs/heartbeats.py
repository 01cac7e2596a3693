"""Call functions of each running job about every second, in two threads for all jobs of the process.

A thread for each job would cost as much as the SQL of the job.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LONGEST = 1.0
"""Most seconds between two heartbeats of a job."""
_POLL = 0.001


class Heartbeats:
    """Calls a function of each running job again and again, in one thread for all jobs of the process."""

    def __init__(self, name: str) -> None:
        """Prepare the calls, from a thread with this name."""
        self._name = name
        self._beats: dict[object, Callable[[], None]] = {}
        self._under_way: object = None
        self._every = LONGEST
        self._process: int | None = None
        self._starting = threading.Lock()

    def begin(self, job: object, beat: Callable[[], None], *, every: float) -> None:
        """Call `beat` every so many seconds, or more often, until `end`. What it raises is logged."""
        with self._starting:
            self._every = min(LONGEST, every)
            if self._process != os.getpid():  # no thread survives a fork
                self._beats.clear()
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._process = os.getpid()  # after that: the machine may have no room for a thread
            self._beats[job] = beat

    def end(self, job: object) -> None:
        """Return when no heartbeat of the job is under way; none follows.

        It takes no lock: a heartbeat may interrupt the thread that waits here, and a lock that is never released would
        stop all heartbeats.
        """
        self._beats.pop(job, None)
        while self._under_way is job:
            time.sleep(_POLL)

    def _run(self) -> None:
        while True:
            time.sleep(self._every)
            for job in list(self._beats):
                self._under_way = job
                try:
                    if beat := self._beats.get(job):
                        beat()
                except Exception:
                    logger.exception("a heartbeat failed")
                finally:
                    self._under_way = None


LEASES = Heartbeats("leases")
"""Renews the leases: it asks the catalogue alone, so that no silent Redis makes a job lose its lease."""
SIGNS = Heartbeats("heartbeats")
"""Publishes that the jobs run, and interrupts those that are to stop."""
