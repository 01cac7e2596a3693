"""Beat's scheduler: Celery's own, which also records that it ticks. `zot-artifacts doctor` reads the record."""

import logging
import time
from typing import Any

import redis
from celery.beat import PersistentScheduler

from worker.limits.shared_redis import PREFIX, result_backend

logger = logging.getLogger(__name__)

_TICKED = f"{PREFIX}:beat:ticked"
_EVERY = 10.0
"""Seconds between two records."""
_REMEMBERED = 3600
LONGEST_SLEEP = 30
"""Seconds that beat sleeps at most, so that the record of a beat that runs is never older than that."""


class Scheduler(PersistentScheduler):  # type: ignore[misc]  # Celery has no types
    """The persistent scheduler of Celery, with a record of its last tick in the result backend."""

    _recorded = float("-inf")
    _client: "redis.Redis | None" = None

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Start what is due, then record the tick."""
        seconds: float = super().tick(*args, **kwargs)
        if time.monotonic() - self._recorded >= _EVERY:
            self._recorded = time.monotonic()
            self._record()
        return seconds

    def _record(self) -> None:
        try:
            self._client = self._client or result_backend(self.app)
            if self._client is not None:
                self._client.set(_TICKED, f"{time.time():.3f}", ex=_REMEMBERED)
        except (redis.RedisError, OSError) as error:
            logger.warning("the tick of beat is not recorded: %s", type(error).__name__)


def last_tick(client: "redis.Redis") -> float | None:
    """Return the Unix time of beat's last recorded tick, or None if none was recorded in the last hour."""
    value: Any = client.get(_TICKED)
    return None if value is None else float(value)
