"""Keep to so many bytes a second, over all workers."""

import random
import time
from collections.abc import Callable

from kombu.utils.limits import TokenBucket
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from worker.limits.shared_redis import PREFIX, SharedRedis

_NAP = 0.05
"""Seconds between two looks; a job that waits is stopped as soon as one that moves bytes."""
_SLICES = 8
"""A second's bytes are asked for in so many slices, so that many jobs share them evenly."""


class BandwidthLimit:
    """The bytes a second of the stores, by name; in Redis, or alone by a bucket of this process's share."""

    def __init__(self, shared: SharedRedis) -> None:
        self._shared = shared
        self._limiter: SlidingWindowCounterRateLimiter | None = None
        self._buckets: dict[tuple[str, int], TokenBucket] = {}

    def pay(self, name: str, count: int, *, limit: int, alone: int, waiting: Callable[[], None]) -> None:
        """Return when so many bytes may be moved.

        Args:
            name: whose bytes they are.
            count: how many.
            limit: bytes per second of all workers.
            alone: bytes per second of this process, while it cannot ask.
            waiting: called again and again while there is nothing to do but wait; what it raises ends the waiting.
        """
        most = max(1, min(limit, alone) // _SLICES)
        while count > 0:
            cost = min(count, most)
            while not self._granted(name, cost, limit, alone):
                waiting()
                time.sleep(_NAP * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            count -= cost

    def _granted(self, name: str, cost: int, limit: int, alone: int) -> bool:
        item = RateLimitItemPerSecond(limit)
        return self._shared.ask(
            lambda redis: self._of(redis).hit(item, name, cost=cost), lambda: self._from_bucket(name, cost, alone)
        )

    def _of(self, redis: "Redis") -> SlidingWindowCounterRateLimiter:
        if self._limiter is None:
            storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=f"{PREFIX}:bytes")
            self._limiter = SlidingWindowCounterRateLimiter(storage)
        return self._limiter

    def _from_bucket(self, name: str, cost: int, alone: int) -> bool:
        bucket = self._buckets.setdefault((name, alone), TokenBucket(alone, alone))
        return bool(bucket.can_consume(cost))
