"""Keep in Redis since when and why workers cannot use the catalogue, which cannot say so itself."""

from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Outage:
    """Since when a worker cannot use the catalogue, when it tried last, and the error of that try."""

    since: datetime
    last: datetime
    error: str


def note_catalogue(app: "Celery", worker: str, *, error: Exception | None) -> None:
    """Record why a worker cannot use the catalogue now, or that it can; while Redis does not answer, nothing.

    Another worker may be able to use it: each one has its own record.
    """
    with suppress(redis.RedisError, OSError):
        if (client := result_backend(app)) is None:
            return
        with client:
            if error is None:
                client.hdel(_AWAY, worker)
                return
            now = clock.host_time()
            known = _outage(client.hget(_AWAY, worker))
            since = known.since if known else now
            client.hset(_AWAY, worker, f"{since.isoformat()} {now.isoformat()} {error}")
            client.expire(_AWAY, _REMEMBERED)


def outages(results_url: str) -> dict[str, Outage]:
    """Return which workers cannot use the catalogue, by their names; empty also if that is not known."""
    try:
        client = redis_of_results(results_url)
        if client is None:
            return {}
        with client:
            found: dict[Any, Any] = client.hgetall(_AWAY)
    except (redis.RedisError, OSError):
        return {}
    known = {name.decode(errors="replace"): _outage(value) for name, value in found.items()}
    oldest = clock.host_time() - _REMEMBERED
    return {name: each for name, each in sorted(known.items()) if each and each.last > oldest}


def _outage(kept: Any) -> Outage | None:
    """Return what is recorded of a worker; None if another program wrote something else."""
    try:
        since, last, *error = (kept or b"").decode(errors="replace").split(maxsplit=2)
        told = error[0] if error else "see the log there"  # a worker of an older version records none
        return Outage(datetime.fromisoformat(since), datetime.fromisoformat(last), told)
    except ValueError:
        return None
