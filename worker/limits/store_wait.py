"""How a command waits for a store that takes no job, in place of a snooze."""

import threading
import time
from collections.abc import Callable

from worker.limits.snooze import Paused, Snooze
from worker.storage.errors import Unavailable

_PATIENCE = 600.0
"""Seconds of waiting for an open circuit breaker or a slot, after which the store counts as unavailable."""
_ASK_AGAIN = 5.0
"""The longest time in seconds after which a command asks whether a pause has ended."""


class StoreWait:
    """The wait of all threads of a command: without limit for the end of a pause, up to ten minutes for all else."""

    def __init__(self, store: str, tell: Callable[[str], object]) -> None:
        """Wait for the store of this name; `tell` gets one line at the beginning of each wait, from any thread."""
        self._store = store
        self._tell = tell
        self._lock = threading.Lock()
        self._since: float | None = None

    def snoozed(self, error: Snooze) -> None:
        """Wait a while.

        Raises:
            Unavailable: all threads together have waited too long.
        """
        with self._lock:
            now, since = time.monotonic(), self._since  # a thread that gets its answer resets it without the lock
            if since is None:
                self._tell(f"{error}: waiting")
            if since is None or isinstance(error, Paused):
                since = self._since = now  # the time of a pause does not count
            waited = now - since
        if waited > _PATIENCE:
            raise Unavailable(f"{self._store}: it took no job for {waited:.0f} s: {error}") from error
        time.sleep(min(error.seconds, _ASK_AGAIN))

    def ended(self) -> None:
        """Note that the store has answered a request."""
        self._since = None
