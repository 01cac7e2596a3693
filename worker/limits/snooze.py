"""The exceptions that give a job back for later at no cost to its attempts."""

import random
from datetime import datetime, timedelta

from worker import clock

_MIN_WAIT, _MAX_WAIT = 2.0, 60.0
"""Seconds after which a job asks again whether a person has decided."""
LONGEST_PAUSE = timedelta(seconds=_MAX_WAIT * 1.5)
"""The longest time after which such a job asks again."""


class Snooze(Exception):
    """The job has to wait at least `seconds` for a reason outside of it; that costs no attempt."""

    def __init__(self, reason: str, seconds: float, store: str | None = None) -> None:
        super().__init__(reason, seconds)
        self.seconds = seconds
        self.store = store  # that the job has to wait for, or None

    def __str__(self) -> str:
        return str(self.args[0])


class StoreRefuses(Snooze):
    """A store has refused all requests of one verb, and will refuse them until an operator acts."""


class Paused(Snooze):
    """An operator has paused the job or a store that it needs. The length of a pause does not count against the job."""


def seconds_to_pause(since: datetime) -> float:
    """Return after how many seconds a job asks again that waits for a person `since` a time.

    Jobs ask seldom if the wait is long, and not all at the same moment.
    """
    lasted = (clock.now() - since).total_seconds()
    return min(max(_MIN_WAIT, lasted / 4), _MAX_WAIT) * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
