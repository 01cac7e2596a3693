"""The gate of each store: what it bears is let through, the rest comes again later. No store is another's concern."""

import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from worker.jobs.running_job import RunningJob, Snooze
from worker.limits.bandwidth import BandwidthLimit
from worker.limits.circuit_breaker import CircuitBreaker
from worker.limits.concurrency import DistributedSemaphore, Place
from worker.limits.counters import Counters
from worker.limits.shared_redis import SharedRedis
from worker.settings import Settings
from worker.settings.sections import StoreLimits
from worker.storage.errors import PermanentError, TransientError

_ALONE = 1 / 16
"""The part of a limit that a process takes that has never been able to ask how many there are."""
_SEEN = 3600.0
"""Seconds for which a process counts that has used a limited store."""
_ENROL_EVERY = 60.0
_JUST_NOW = 1.0
"""Seconds for which a store that has let a job in is taken to be open by what is only asked to spare work."""
_BUSY = (1.0, 4.0)
"""Seconds after which a job looks for a place again."""


class Gate:
    """One job's way to one store. Tasks tell it what they move; it holds them to the store's bytes a second."""

    def __init__(
        self, store: str, job: RunningJob, place: Place | None, pay: Callable[[int, RunningJob], None]
    ) -> None:
        self.store = store
        self.faulty = False
        """The store has failed this job."""
        self._job = job
        self._place = place
        self._pay = pay

    def advance(self, count: int) -> None:
        """Say that so many bytes more are done, and wait until they may be; see `RunningJob.moved`.

        Raises:
            Snooze: nothing was heard of this process for so long that its place is another's.
        """
        self.heartbeat(count)
        self._job.advance(count)

    def heartbeat(self, count: int) -> None:
        """Be told of bytes that count for no progress, and wait like `moved`."""
        if self._place is not None and self._place.lost:
            raise Snooze(f"{self.store}: this job's place was given to another one", random.uniform(*_BUSY))  # noqa: S311
        self._pay(count, self._job)
        self._job.advance(0)


class Admission:
    """The gates of all stores, for one process."""

    def __init__(
        self,
        settings: Settings,
        probe: Callable[[str], object],
        shared: SharedRedis | None = None,
        *,
        paused: Callable[[str], Snooze | None] = lambda _: None,
    ) -> None:
        """Make the gates.

        Args:
            settings: the limits, the breakers, and for how long a silent holder keeps its place.
            probe: tries out a store by name; raises a TransientError if it cannot be used.
            shared: the Redis that all workers share; by default that of Celery's result backend.
            paused: returns what a job is to be told that needs a store which somebody has paused.
        """
        self.paused = paused
        self._shared = shared or SharedRedis()
        self._limits = settings.store_limits
        self._probe = probe
        self._places = DistributedSemaphore(self._shared, seconds=settings.jobs.lease.total_seconds())
        self._pace = BandwidthLimit(self._shared)
        self._marks = Counters(self._shared)
        self._breaking = settings.breaker
        self._breakers: dict[str, CircuitBreaker] = {}
        self._inside: dict[tuple[str, str], Gate] = {}
        self._let_in: dict[str, float] = {}
        self._share: float | None = None
        self._enrolled = -_ENROL_EVERY

    @contextmanager
    def enter(self, store: str, job: RunningJob, *, transfer: bool = True) -> Iterator[Gate]:
        """Let a job use a store while the context lasts. What passes through here and may pass is the store's failure.

        A job that has entered may enter again, inside, to say whose failure it would be now.

        Args:
            store: its name.
            job: who enters.
            transfer: it will move bytes, so it needs one of the store's places.

        Raises:
            Snooze: the store is paused, or left alone for now, or has no free place.
        """
        inside = self._inside.get((store, job.id))
        if inside is not None:
            with self._watched(inside):
                yield inside
            return
        paused = self.paused(store)
        if paused is not None:
            raise paused
        breaker = self._breaker(store)
        counting = breaker.check(lambda: self._probe(store))
        self._let_in[store] = time.monotonic()
        with self._place(store, job, transfer=transfer) as place:
            gate = self._inside[store, job.id] = Gate(store, job, place, lambda n, who: self._pay(store, n, who))
            try:
                with self._watched(gate):
                    yield gate
            finally:
                del self._inside[store, job.id]
            if counting and not gate.faulty:
                breaker.worked()

    def blame(self, store: str, error: BaseException) -> None:
        """Count an error as a failure of the store, if it is one that may pass and nobody has been blamed for it."""
        if not isinstance(error, TransientError) or error.store is not None:
            return
        error.store = store
        if isinstance(error.__cause__, PermanentError):  # such as: somebody else wrote at the same time
            return
        self._failed(store)

    def failed(self, gate: Gate) -> None:
        """Count a failure of the store that was no error, such as a copy that cannot be read."""
        gate.faulty = True
        self._failed(gate.store)

    def check_any(self, stores: Iterable[str]) -> None:
        """Return if at least one of the stores would let a job in now, as far as is known without asking the stores.

        To be asked before work that would be for nothing otherwise. What may begin is decided by `enter` alone.

        Raises:
            Snooze: the soonest time at which one may.
        """
        stores = tuple(stores)
        if any(self._open_just_now(store) for store in stores):
            return
        closed: list[Snooze] = []
        for store in stores:
            paused = self.paused(store)
            left = self._breaker(store).left()
            limit = self._limits_of(store).concurrency
            if paused is not None:
                closed.append(paused)
            elif left:
                closed.append(Snooze(f"{store}: the store keeps failing and is left alone for now", left + _soon()))
            elif limit is not None and self._places.taken(store) >= limit:
                closed.append(_no_place(store, limit))
            else:
                return
        if closed:
            raise min(closed, key=lambda error: error.seconds)

    def _open_just_now(self, store: str) -> bool:
        """Return whether the store let this process in a moment ago and has not failed since, and counts no places."""
        let_in = self._let_in.get(store)
        recent = let_in is not None and time.monotonic() - let_in < _JUST_NOW
        return recent and self._limits_of(store).concurrency is None

    def _failed(self, store: str) -> None:
        self._let_in.pop(store, None)
        self._breaker(store).failed()

    @contextmanager
    def _watched(self, gate: Gate) -> Iterator[None]:
        try:
            yield
        except TransientError as error:
            gate.faulty = gate.faulty or error.store in {None, gate.store}
            self.blame(gate.store, error)
            raise

    @contextmanager
    def _place(self, store: str, job: RunningJob, *, transfer: bool) -> Iterator[Place | None]:
        limit = self._limits_of(store).concurrency
        if limit is None or not transfer:
            yield None
            return
        alone = max(1, int(limit * self._share_of(store)))
        with self._places.held(store, f"{job.id}:{job.fence}", limit=limit, alone=alone) as place:
            if place is None:
                raise _no_place(store, limit)
            yield place

    def _pay(self, store: str, count: int, job: RunningJob) -> None:
        limit = self._limits_of(store).bytes_per_second
        if limit is not None and count:
            alone = max(1024, int(limit * self._share_of(store)))
            self._pace.pay(store, count, limit=limit, alone=alone, waiting=lambda: job.advance(0))

    def _breaker(self, store: str) -> CircuitBreaker:
        return self._breakers.setdefault(store, CircuitBreaker(store, self._marks, self._breaking))

    def _limits_of(self, store: str) -> StoreLimits:
        return self._limits.get(store) or StoreLimits()

    def _share_of(self, store: str) -> float:
        """Return the part of a store's limits that is this process's while it cannot ask."""
        if time.monotonic() - self._enrolled >= _ENROL_EVERY:
            self._enrolled = time.monotonic()
            us = f"{socket.gethostname()}:{os.getpid()}"
            known = self._places.enrol("processes", us, _SEEN)
            self._share = 1 / known if known else self._share
        return self._limits_of(store).local_share or self._share or _ALONE


def _no_place(store: str, limit: int) -> Snooze:
    return Snooze(f"{store}: {limit} jobs are at work on the store, as many as may be", _soon())


def _soon() -> float:
    return random.uniform(*_BUSY)  # noqa: S311 - not all at the same moment
