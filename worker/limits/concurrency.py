"""DistributedSemaphore that a bounded number of jobs of all workers hold at a time."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from redis import Redis

from worker.limits.shared_redis import PREFIX, SharedRedis

# The holders are members of a sorted set, each with the time until which it is believed to live. The clock is the
# server's: those of the workers differ. Answers whether there was a place, and how many are taken now.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
local taken = redis.call('ZCARD', KEYS[1])
if not known and taken >= tonumber(ARGV[2]) then
  return {0, taken}
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[3]) * 1000))
return {1, known and taken or taken + 1}
"""


class Place:
    """A place that is held, for as long as its holder shows life."""

    def __init__(self) -> None:
        self.lost = False
        """Nothing was heard of the holder for so long that others have the place now."""


class DistributedSemaphore:
    """The places, by name. A holder that was killed loses its place when its time has passed."""

    def __init__(self, shared: SharedRedis, *, seconds: float) -> None:
        """Share the places; a holder that shows no life for so many seconds has none any more."""
        self._shared = shared
        self._seconds = seconds
        self._ours: defaultdict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    @contextmanager
    def held(self, name: str, holder: str, *, limit: int, alone: int) -> Iterator[Place | None]:
        """Hold a place while the context lasts; None if all are taken.

        `limit` is for all workers; `alone` is how many this process takes while it cannot ask.
        """
        if not self._take(name, holder, limit, alone):
            yield None
            return
        place, done = Place(), threading.Event()
        beat = threading.Thread(
            target=self._beat, args=(name, holder, limit, place, done), name=f"place-{name}", daemon=True
        )
        beat.start()
        try:
            yield place
        finally:
            done.set()
            beat.join()
            self._leave(name, holder)

    def taken(self, name: str) -> int:
        """Return how many places are taken, as far as is known."""
        return self._shared.ask(
            lambda redis: self._ask(redis, name, "", 0, self._seconds)[1], lambda: len(self._ours[name])
        )

    def enrol(self, name: str, member: str, seconds: float) -> int | None:
        """Count in a member for so long, and return how many there are; None if that cannot be asked."""
        return self._shared.ask(lambda redis: self._ask(redis, name, member, 1 << 31, seconds)[1], lambda: None)

    def _take(self, name: str, holder: str, limit: int, alone: int) -> bool:
        with self._lock:
            free = len(self._ours[name]) < alone
            granted = self._shared.ask(
                lambda redis: self._ask(redis, name, holder, limit, self._seconds)[0] == 1, lambda: free
            )
            if granted:
                self._ours[name].add(holder)
            return granted

    def _leave(self, name: str, holder: str) -> None:
        with self._lock:
            self._ours[name].discard(holder)
        self._shared.ask(lambda redis: redis.zrem(_key(name), holder), lambda: 0)

    def _beat(self, name: str, holder: str, limit: int, place: Place, done: threading.Event) -> None:
        while not done.wait(self._seconds / 3):
            place.lost = not self._shared.ask(
                lambda redis: self._ask(redis, name, holder, limit, self._seconds)[0] == 1, lambda: True
            )
            if place.lost:
                return

    @staticmethod
    def _ask(redis: "Redis", name: str, holder: str, limit: int, seconds: float) -> tuple[int, int]:
        script = redis.register_script(_TAKE)
        granted, taken = cast("tuple[Any, Any]", script(keys=[_key(name)], args=[holder, limit, seconds]))
        return int(granted), int(taken)


def _key(name: str) -> str:
    return f"{PREFIX}:places:{name}"
