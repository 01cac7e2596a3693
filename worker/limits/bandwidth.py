"""Bandwidth limit: a token bucket of bytes per second for each store, shared by all workers."""

import random
import time
from collections.abc import Callable

from kombu.utils.limits import TokenBucket
from limits import RateLimitItemPerSecond
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import Redis

from worker.limits.shared_redis import PREFIX, SharedRedis

_POLL = 0.05
"""Seconds between two requests for bytes; a waiting job stops as soon as one that moves bytes."""
_SLICES = 8
"""The bytes of a second are taken in this many slices, so that jobs share them evenly."""


class BandwidthLimit:
    """The bytes per second of each store: a token bucket in Redis, or one of this process for its share."""

    def __init__(self, shared: SharedRedis) -> None:
        self._shared = shared
        self._limiter: SlidingWindowCounterRateLimiter | None = None
        self._buckets: dict[tuple[str, int], TokenBucket] = {}

    def take(self, name: str, count: int, *, limit: int, local_limit: int, waiting: Callable[[], object]) -> None:
        """Wait until so many bytes may be moved.

        Args:
            name: the store.
            count: bytes.
            limit: bytes per second of all workers.
            local_limit: bytes per second of this process, while Redis does not answer.
            waiting: called repeatedly during the wait; what it raises ends the wait.
        """
        slice_ = max(1, min(limit, local_limit) // _SLICES)
        while count > 0:
            cost = min(count, slice_)
            while not self._granted(name, cost, limit, local_limit):
                waiting()
                time.sleep(_POLL * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            count -= cost

    def _granted(self, name: str, cost: int, limit: int, local_limit: int) -> bool:
        item = RateLimitItemPerSecond(limit)
        return self._shared.ask(
            lambda redis: self._limiter_on(redis).hit(item, name, cost=cost),
            lambda: self._take_locally(name, cost, local_limit),
        )

    def _limiter_on(self, redis: "Redis") -> SlidingWindowCounterRateLimiter:
        if self._limiter is None:
            storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=f"{PREFIX}:bytes")
            self._limiter = SlidingWindowCounterRateLimiter(storage)
        return self._limiter

    def _take_locally(self, name: str, cost: int, local_limit: int) -> bool:
        bucket = self._buckets.setdefault((name, local_limit), TokenBucket(local_limit, local_limit))
        return bool(bucket.can_consume(cost))
