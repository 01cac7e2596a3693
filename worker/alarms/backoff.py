"""The delay before a message is sent again."""

import random
from datetime import timedelta

_LONGEST = 3600.0
_MOST_DOUBLINGS = 20


def backoff(attempts: int, first: float) -> timedelta:
    """Return the time until the next attempt, between half and all of the backoff.

    `first`: the seconds of the backoff after the first attempt, which double with each of `attempts` further ones, up
    to an hour.
    """
    most = min(first * 2 ** min(attempts, _MOST_DOUBLINGS), _LONGEST)
    return timedelta(seconds=most * random.uniform(0.5, 1))  # noqa: S311 - it spreads load and protects nothing
