"""Keep in Redis since when workers cannot use the catalogue, which cannot say so itself."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import redis

from worker import clock
from worker.limits.shared_redis import PREFIX, redis_of_results, result_backend

if TYPE_CHECKING:
    from celery import Celery

_SINCE = f"{PREFIX}:catalogue:away"
_REMEMBERED = timedelta(days=1)
"""For so long after the last worker that could not use the catalogue, where none could since."""


def note_catalogue(app: "Celery", *, away: bool) -> None:
    """Record whether a worker can use the catalogue now; while Redis does not answer, nothing is recorded."""
    with suppress(redis.RedisError, OSError):
        if (client := result_backend(app)) is None:
            return
        with client:
            if away:
                client.set(_SINCE, clock.host_time().isoformat(timespec="seconds"), nx=True)
                client.expire(_SINCE, _REMEMBERED)
            else:
                client.delete(_SINCE)


def away_since(results_url: str) -> datetime | None:
    """Return since when workers cannot use the catalogue; None if they can, or if that is not known."""
    try:
        client = redis_of_results(results_url)
        if client is None:
            return None
        with client:
            found = client.get(_SINCE)
        return datetime.fromisoformat(found.decode()) if isinstance(found, bytes) else None
    except (redis.RedisError, OSError, ValueError):  # ValueError: another program wrote it
        return None
