"""Distributed semaphore: how many jobs of all workers use a store at a time."""

import threading
from collections import defaultdict
from typing import Any, Self, cast

from redis import Redis

from worker.limits.shared_redis import PREFIX, SharedRedis

# The holders are members of a sorted set, each with the time at which its slot expires. The clock is the server's,
# because those of the workers differ. A slot that expires much later than this worker's is from before that clock was
# set back, or of another program, and is removed. Returns whether a slot was free, and how many are taken now.
_ACQUIRE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.3f', now + tonumber(ARGV[3]) + 300), '+inf')
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
local taken = redis.call('ZCARD', KEYS[1])
if not known and taken >= tonumber(ARGV[2]) then
  return {0, taken}
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[3]) * 1000))
return {1, known and taken or taken + 1}
"""


class DistributedSemaphore:
    """Slots by name. The slot of a killed holder expires."""

    def __init__(self, shared: SharedRedis, *, seconds: float) -> None:
        """Share the slots; a slot that is not renewed expires after so many seconds."""
        self._shared = shared
        self._seconds = seconds
        self._local: defaultdict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def acquire(self, name: str, holder: str, *, limit: int, local_limit: int) -> "Slot | None":
        """Take a slot and renew it until it is released; None if all are taken.

        `limit` is for all workers; `local_limit` is for this process while Redis does not answer.
        """
        with self._lock:
            free = len(self._local[name] - {holder}) < local_limit
            if not self.renew(name, holder, limit=limit, otherwise=free):
                return None
            self._local[name].add(holder)
        try:
            return Slot(self, name, holder, limit)
        except BaseException:  # the machine has no room for its thread
            self.release(name, holder)
            raise

    def renew(self, name: str, holder: str, *, limit: int, otherwise: bool, at_once: bool = False) -> bool:
        """Renew a slot and return whether the holder still has it; `otherwise` while Redis does not answer."""
        return self._shared.ask(
            lambda redis: self._run(redis, name, holder, limit, self._seconds)[0] == 1,
            lambda: otherwise,
            at_once=at_once,
        )

    def release(self, name: str, holder: str) -> None:
        """Give a holder's slot back."""
        with self._lock:
            self._local[name].discard(holder)
        self._shared.ask(lambda redis: redis.zrem(_key(name), holder), lambda: 0)

    def taken(self, name: str) -> int:
        """Return how many slots are taken, as far as is known."""
        return self._shared.ask(
            lambda redis: self._run(redis, name, "", 0, self._seconds)[1], lambda: len(self._local[name])
        )

    def count_in(self, name: str, member: str, seconds: float) -> int | None:
        """Add a member for a time, without limit, and return how many there are; None if Redis does not answer."""
        return self._shared.ask(lambda redis: self._run(redis, name, member, 1 << 31, seconds)[1], lambda: None)

    @property
    def seconds(self) -> float:
        """Return how long a slot lasts without a renewal."""
        return self._seconds

    @staticmethod
    def _run(redis: "Redis", name: str, holder: str, limit: int, seconds: float) -> tuple[int, int]:
        script = redis.register_script(_ACQUIRE)
        granted, taken = cast("tuple[Any, Any]", script(keys=[_key(name)], args=[holder, limit, seconds]))
        return int(granted), int(taken)


class Slot:
    """A slot that is held and renewed by a thread of its own, until it is released."""

    def __init__(self, semaphore: DistributedSemaphore, name: str, holder: str, limit: int) -> None:
        self.lost = False
        """The slot expired, so that another holder may have it now."""
        self._semaphore = semaphore
        self._name = name
        self._holder = holder
        self._limit = limit
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"slot-{name}", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the slot back."""
        self._released.set()
        self._thread.join()
        self._semaphore.release(self._name, self._holder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _keep(self) -> None:
        while not self._released.wait(self._semaphore.seconds / 3):
            # A Redis that was silent for a moment is not asked for longer than a slot lasts; others would then take it.
            self.lost = not self._semaphore.renew(
                self._name, self._holder, limit=self._limit, otherwise=True, at_once=True
            )
            if self.lost:
                return


def _key(name: str) -> str:
    return f"{PREFIX}:places:{name}"
