"""Counters that expire: in Redis, where all workers see them, or in this process alone."""

import math
import time
from typing import Any

from redis import Redis

from worker.limits.shared_redis import PREFIX, SharedRedis

_WITHOUT_END, _GONE = -1, -2
"""What Redis tells of a key that does not expire, and of one that does not exist."""


class Counters:
    """Counters by name, each of which expires. Redis keeps the time, so no two clocks are compared."""

    def __init__(self, shared: SharedRedis) -> None:
        self._shared = shared
        self._local: dict[str, tuple[int, float]] = {}
        self._texts: dict[str, tuple[str, float]] = {}

    def increment(self, name: str, seconds: float, *, renew: bool = False) -> int:
        """Add one and return the count; the counter expires so many seconds after it was created, or renewed."""

        def locally() -> int:
            count, until = self._get_local(name)
            self._local[name] = (count + 1, (until if not renew else 0.0) or time.monotonic() + seconds)
            return count + 1

        def shared(redis: "Redis") -> int:
            with redis.pipeline() as pipeline:
                pipeline.incr(redis_key(name))
                pipeline.pexpire(redis_key(name), _ms(seconds), nx=not renew)
                return int(pipeline.execute()[0])

        return self._shared.ask(shared, locally)

    def set_if_absent(self, name: str, seconds: float) -> bool:
        """Create a counter of 1 that expires after so many seconds; return False if there is one already."""

        def locally() -> bool:
            if self._get_local(name)[0]:
                return False
            self._local[name] = (1, time.monotonic() + seconds)
            return True

        return self._shared.ask(lambda redis: bool(redis.set(redis_key(name), 1, px=_ms(seconds), nx=True)), locally)

    def get(self, *names: str) -> list[tuple[int, float]]:
        """Return the count of each counter and the seconds until it expires; zeros for one that does not exist.

        A value that is no number counts as 1. The seconds are infinite for a counter that never expires, which only
        another program can have set.
        """

        def shared(redis: "Redis") -> list[tuple[int, float]]:
            keys = [redis_key(name) for name in names]
            counts: Any = redis.mget(keys)
            # Most often no store has failed, and there is nothing that could expire.
            lefts = [redis.pttl(key) if n else _GONE for key, n in zip(keys, counts, strict=True)]
            return [(0, 0.0) if ms == _GONE else (_count(n), _left(ms)) for n, ms in zip(counts, lefts, strict=True)]

        def locally() -> list[tuple[int, float]]:
            now = time.monotonic()
            return [(count, max(0.0, until - now)) for count, until in map(self._get_local, names)]

        return self._shared.ask(shared, locally)

    def set_text(self, name: str, text: str, seconds: float) -> None:
        """Keep a text beside the counters for so many seconds."""

        def locally() -> None:
            self._texts[name] = (text, time.monotonic() + seconds)

        def shared(redis: "Redis") -> None:
            redis.set(redis_key(name), text.encode(errors="replace"), px=_ms(seconds))

        self._shared.ask(shared, locally)

    def get_text(self, name: str) -> str:
        """Return a text, empty if there is none."""

        def locally() -> str:
            text, until = self._texts.get(name, ("", 0.0))
            return text if until > time.monotonic() else ""

        def shared(redis: "Redis") -> str:
            found: Any = redis.get(redis_key(name))
            return found.decode(errors="replace") if found else ""

        return self._shared.ask(shared, locally)

    def delete(self, *names: str) -> None:
        """Delete counters and texts, in Redis and in this process."""
        for name in names:
            self._local.pop(name, None)
            self._texts.pop(name, None)
        self._shared.ask(lambda redis: redis.delete(*map(redis_key, names)), lambda: 0)

    def _get_local(self, name: str) -> tuple[int, float]:
        count, until = self._local.get(name, (0, 0.0))
        return (count, until) if until > time.monotonic() else (0, 0.0)


def redis_key(name: str) -> str:
    """Return the key of a counter in Redis."""
    return f"{PREFIX}:{name}"


def _count(value: bytes) -> int:
    return int(value) if value.isdigit() else 1


def _left(ms: Any) -> float:
    return math.inf if ms == _WITHOUT_END else max(1, ms) / 1000  # it is 0 in the last millisecond


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
