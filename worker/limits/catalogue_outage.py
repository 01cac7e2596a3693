"""Keep in Redis since when workers cannot use the catalogue, which cannot say so itself."""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import redis

from worker import clock
from worker.limits.shared_redis import PREFIX, redis_of_results, result_backend

if TYPE_CHECKING:
    from celery import Celery

_AWAY = f"{PREFIX}:catalogue:away-by-worker"
_REMEMBERED = timedelta(hours=1)
"""For so long after it last failed, a worker counts that has tried no more: it may have ended."""


def note_catalogue(app: "Celery", worker: str, *, away: bool) -> None:
    """Record whether a worker can use the catalogue now; while Redis does not answer, nothing is recorded.

    Another worker may be able to use it: each one has its own record.
    """
    with suppress(redis.RedisError, OSError):
        if (client := result_backend(app)) is None:
            return
        with client:
            if not away:
                client.hdel(_AWAY, worker)
                return
            now = clock.host_time()
            since, _ = _times(client.hget(_AWAY, worker)) or (now, now)
            client.hset(_AWAY, worker, f"{since.isoformat()} {now.isoformat()}")
            client.expire(_AWAY, _REMEMBERED)


def away_since(results_url: str) -> dict[str, datetime]:
    """Return since when workers cannot use the catalogue, by their names; empty also if that is not known."""
    try:
        client = redis_of_results(results_url)
        if client is None:
            return {}
        with client:
            found: dict[Any, Any] = client.hgetall(_AWAY)
    except (redis.RedisError, OSError):
        return {}
    times = {name.decode(errors="replace"): _times(value) for name, value in found.items()}
    oldest = clock.host_time() - _REMEMBERED
    return {name: each[0] for name, each in sorted(times.items()) if each and each[1] > oldest}


def _times(kept: Any) -> tuple[datetime, datetime] | None:
    """Return when a worker failed first and last; None if another program wrote something else."""
    try:
        since, last = map(datetime.fromisoformat, (kept or b"").decode().split())
    except ValueError:
        return None
    return since, last
