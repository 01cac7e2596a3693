"""An attempt to deliver an alarm: its failure, its time limit, and the delay before the next one."""

import random
import threading
from datetime import timedelta
from typing import Self

from worker.watched_connections import WatchedSockets

_LONGEST = 3600.0
_MOST_DOUBLINGS = 20


class AlarmUndelivered(Exception):
    """A channel did not accept a digest. The message holds no secret."""


class AttemptTime(WatchedSockets):
    """Shuts the connections of an attempt down once it has taken too long; a context manager.

    The timeout of a socket is for each single read: a receiver that sends a byte now and then would hold the attempt,
    and all alarms behind it, for days.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._timer = threading.Timer(seconds, self.shut_down)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.close()


def backoff(attempts: int, first: float) -> timedelta:
    """Return the time until the next attempt, between half and all of the backoff.

    `first`: the seconds of the backoff after the first attempt, which double with each of `attempts` further ones, up
    to an hour.
    """
    most = min(first * 2 ** min(attempts, _MOST_DOUBLINGS), _LONGEST)
    return timedelta(seconds=most * random.uniform(0.5, 1))  # noqa: S311 - it spreads load and protects nothing
