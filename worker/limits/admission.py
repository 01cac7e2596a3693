"""Admission control of the stores: pause, circuit breaker, concurrency and bandwidth, each store for itself."""

import os
import random
import socket
import threading
import time
from collections.abc import Callable

from worker.counted import counted
from worker.limits.bandwidth import BandwidthLimit
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.concurrency import DistributedSemaphore, Slot
from worker.limits.expiring_counters import Counters
from worker.limits.shared_redis import SharedRedis
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.settings.section_models import StoreLimits

_SHARE_IF_UNKNOWN = 1 / 16
"""The part of a limit that a process uses before it has learned how many processes there are."""
_COUNTED_FOR = 3600.0
"""Seconds for which a process counts as a user of a limited store."""
_COUNT_EVERY = 60.0
_BUSY = (1.0, 4.0)
"""Seconds after which a job asks again for a slot."""
_FRESH = 0.2
"""Seconds for which the counters that were read at the start of a job count."""
_NO_LIMITS = StoreLimits()


class Admission:
    """Pause, circuit breaker, concurrency and bandwidth of every store, for one process and all its threads."""

    def __init__(
        self,
        settings: Settings,
        probe: Callable[[str], object],
        shared: SharedRedis | None = None,
        *,
        paused: Callable[[str], Snooze | None] = lambda _: None,
    ) -> None:
        """Prepare the limits, without a request to Redis.

        Args:
            settings: the limits, the breakers, and how long a slot lasts without a renewal.
            probe: probes a store by name; raises a TransientError if it cannot be used.
            shared: the Redis that all workers share; by default that of Celery's result backend.
            paused: returns the exception for a job that needs a store which is paused.
        """
        shared = shared or SharedRedis()
        self._limits = settings.store_limits
        self._paused = paused
        self._probe = probe
        self._semaphore = DistributedSemaphore(shared, seconds=settings.jobs.lease.total_seconds())
        self._bandwidth = BandwidthLimit(shared)
        self._counters = Counters(shared)
        self._breaker_settings = settings.breaker
        self._breakers: dict[str, CircuitBreaker] = {}
        keys = [key for store in settings.stores for key in self.breaker(store).redis_keys]
        self.breaker_keys = keys if settings.breaker.enabled else []
        """The Redis keys of the counters of all breakers: while none exists, all are closed and none counts."""
        self._all_closed_at = -_FRESH
        self._share: float | None = None
        self._counted = -_COUNT_EVERY
        self._lock = threading.Lock()

    def check(self, store: str) -> bool:
        """Raise unless the store may be used now; return whether failures of it are being counted.

        Raises:
            Snooze: the store is paused or its circuit breaker is open; `store` is its name.
        """
        try:
            if paused := self._paused(store):
                raise paused
            if time.monotonic() - self._all_closed_at < _FRESH:
                return False
            return self.breaker(store).check(lambda: self._probe(store))
        except Snooze as error:
            error.store = store
            raise

    def breakers_read(self, existing: int) -> None:
        """Take how many of `breaker_keys` exist, as was read at the start of a job: its first calls need not ask."""
        self._all_closed_at = -_FRESH if existing else time.monotonic()

    def record_failure(self, store: str, reason: str = "") -> None:
        """Count a transient error of the store."""
        self._all_closed_at = -_FRESH
        self.breaker(store).record_failure(reason)

    def limits_of(self, store: str) -> StoreLimits:
        """Return the limits of a store; None for a limit that it does not have."""
        return self._limits.get(store, _NO_LIMITS)

    def acquire_slot(self, store: str, holder: str, limit: int) -> Slot:
        """Return one of the store's slots, to be released after use.

        Raises:
            Snooze: all slots are taken.
        """
        local_limit = max(1, int(limit * self._share_of(store)))
        slot = self._semaphore.acquire(store, holder, limit=limit, local_limit=local_limit)
        if slot is None:
            raise _busy(store, limit)
        return slot

    def check_slots(self, store: str, limit: int) -> None:
        """Raise Snooze if all slots of the store are taken; takes none."""
        if self._semaphore.taken(store) >= limit:
            raise _busy(store, limit)

    def take_bandwidth(self, store: str, count: int, limit: int, waiting: Callable[[], object]) -> None:
        """Wait until so many bytes may be read or written; `waiting` is called meanwhile and may raise."""
        local_limit = max(1024, int(limit * self._share_of(store)))
        self._bandwidth.take(store, count, limit=limit, local_limit=local_limit, waiting=waiting)

    def breaker(self, store: str) -> CircuitBreaker:
        """Return the circuit breaker of a store; its failures are counted by `record_failure`."""
        found = self._breakers.get(store)
        if found is None:
            found = self._breakers[store] = CircuitBreaker(store, self._counters, self._breaker_settings)
        return found

    def _share_of(self, store: str) -> float:
        """Return the part of a store's limits that this process uses while Redis does not answer."""
        with self._lock:
            if time.monotonic() - self._counted >= _COUNT_EVERY:
                self._counted = time.monotonic()
                process = f"{socket.gethostname()}:{os.getpid()}"
                known = self._semaphore.count_in("processes", process, _COUNTED_FOR)
                self._share = 1 / known if known else self._share
        return self.limits_of(store).local_share or self._share or _SHARE_IF_UNKNOWN


def _busy(store: str, limit: int) -> Snooze:
    seconds = random.uniform(*_BUSY)  # noqa: S311 - spreads the jobs in time
    told = f"{store}: {counted(limit, 'job')} in progress, which is the concurrency limit of the store"
    return Snooze(told, seconds, store)
