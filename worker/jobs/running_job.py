"""A running job: what its task works with, its progress, its lease, and whether it has to stop."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from worker import clock, shutdown_flag
from worker.catalogue import CatalogueUnavailable, FinishedCopy, JobRecord, LostLease
from worker.context import Context
from worker.jobs.heartbeats import LEASES, SIGNS
from worker.jobs.interrupt_signal import Interrupted, Interrupter
from worker.limits.limited_store import LimitedStores
from worker.storage.errors import Timeout
from zot_artifact_client.contract import Progress

logger = logging.getLogger(__name__)

_STUCK_AFTER = 2.0
"""Seconds without progress after which a job that is to stop is interrupted in its call."""
_DEAF_AFTER = 1.5
"""Seconds without a reaction to an interrupt after which the call cannot be interrupted, as on a hung disk."""
_SILENT_AFTER = 60.0
"""Seconds without progress after which a signal is sent, to find out whether one can end the call of the job."""
_HUNG_AFTER = 600.0
"""Seconds without a reaction to that signal after which the call counts as hung: an fsync may take minutes."""
REPORT_SECONDS = 1.0
"""Progress is reported at most this often."""


class Cancelled(Exception):
    """A client cancelled the job."""


class Requeue(Exception):
    """The worker shuts down; another worker resumes the job."""


class Continue(Exception):
    """A step of the job is done, and the next one is due in so many seconds.

    With None, another message for that step is on its way, and this delivery ends.
    """

    def __init__(self, seconds: float | None) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Reporter(Protocol):
    """Where a running job publishes its progress and learns that it was cancelled: Celery, in a worker."""

    def report(self, progress: Progress) -> None:
        """Publish the progress."""
        ...

    def cancelled(self) -> bool:
        """Return whether a client cancelled the job; False if Redis does not answer."""
        ...


class RunningJob:
    """A job that this process has leased, with the settings, catalogue and stores that its task works with.

    Tasks report the bytes that they move to `advance`, which raises when they have to stop. Inside the `with` block the
    lease of the job is renewed in the ledger. Methods may be called from several threads.
    """

    def __init__(
        self,
        record: JobRecord,
        context: Context,
        reporter: Reporter,
        *,
        abandon: Callable[[Exception], None] = lambda _reason: None,
    ) -> None:
        """Prepare a job; `abandon` gets the reason to stop if no signal can interrupt the call that the job is in."""
        self.id = record.id
        self.parent = record.parent
        self.created_at = record.created_at
        self.attempt = record.attempts
        self.fence = record.fence
        self.snoozed_since = record.snoozed_since
        self.finished: list[FinishedCopy] = []
        """Complete copies that are recorded together with the end of the job, or of the attempt."""
        self.after_end: list[Callable[[], object]] = []
        """Called once the end of the job is durable."""
        self.settings = context.settings
        self.catalogue = context.catalogue.fenced(record.id, record.fence)
        """Once the lease is lost, it raises LostLease."""
        # By a weak reference: each job would otherwise leave a cycle to the garbage collector.
        self.stores = LimitedStores(context.stores, context.admission, weakref.proxy(self))
        self.unlimited_stores = context.stores
        """For probes, which have to reach a store whose circuit breaker is open, and for the small objects and holds of
        the worker itself, which must not wait for a concurrency slot."""
        self.pauses = context.pauses
        self._ledger = context.catalogue.ledger
        self._lease = context.settings.jobs.lease
        self._reporter = reporter
        self._totals = Progress()
        self._bytes_done, self._step = 0, ""
        self._reported = time.monotonic()
        self._shown = False
        """Whether the progress was published, so that a client sees that the job runs."""
        self._lost = False
        self._lock = threading.Lock()
        self._done = False
        self._active = time.monotonic()
        leased_at = record.lease_until - self._lease if record.lease_until else clock.now()
        # The lease may have begun long ago: the disk was slow to confirm it, or the worker was frozen.
        self._renewed = clock.uptime() - max(0.0, (clock.now() - leased_at).total_seconds())
        self._stop: Exception | None = None
        self._interrupter = Interrupter()
        self._abandon = abandon

    def unpaused_stores(self, store: str | None, *, off: Collection[str] = ()) -> list[str]:
        """Return the names of the stores that a sweep works on, without the paused ones.

        These are the given store, or all but those of `off`.

        Raises:
            UnknownStore: naming the stores there are.
        """
        names = [name for name in self.stores if name not in off] if store is None else [self.stores[store].name]
        return [name for name in names if self.pauses.of_store(name) is None]

    def swept_stores(self, store: str | None, *, off: Collection[str] = ()) -> list[str]:
        """Return what `unpaused_stores` does, without the stores to which another copy of the catalogue writes.

        What such a store has, this copy does not know: a sweep would take it for wrong.
        """
        return [name for name in self.unpaused_stores(store, off=off) if self.is_own(name)]

    def is_own(self, store: str) -> bool:
        """Return whether this copy of the catalogue is the one that writes to a store, as far as a worker has found."""
        if not self.catalogue.writers.was_refused(store):
            return True
        logger.warning("%s: left out, because another copy of the catalogue writes to it: see `status`", store)
        return False

    def start(self, total: int | None, step: str) -> None:
        """Set the first step, and how many bytes the job moves in all."""
        self._totals, self._step = Progress(bytes_total=total), step

    @property
    def progress(self) -> Progress:
        """Return the progress as the task has reported it."""
        return self._totals.model_copy(update={"bytes_done": self._bytes_done, "step": self._step})

    def publish_progress(self, progress: Progress) -> None:
        """Replace the progress, and publish it at once."""
        self._totals, self._bytes_done, self._step = progress, progress.bytes_done, progress.step
        self._publish(progress)

    def step(self, name: str) -> None:
        """Set the step that begins now."""
        self._step = name

    def advance(self, count: int) -> None:
        """Add this many bytes to the progress, and raise if the job has to stop.

        Raises:
            Cancelled: a client cancelled the job.
            LostLease: another worker has the job's lease.
            Requeue: the worker shuts down, and the grace period of its jobs is over.
        """
        if count:
            with self._lock:
                self._bytes_done += count
        self._active = time.monotonic()
        if self._lost:
            raise LostLease(self.id)
        if shutdown_flag.grace_is_over():
            raise Requeue(f"job {self.id} is requeued: its worker shuts down")
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._publish(self.progress)
            self.check()

    def heartbeat(self, _count: int = 0) -> None:
        """Raise as `advance` does, without progress: for bytes that are read again, and while waiting."""
        self.advance(0)

    def confirm_lease(self) -> None:
        """Renew a lease that is about to end, or over: called before bytes are replaced or deleted.

        A worker that was frozen, or whose machine was suspended, may have lost the lease, and another job may have
        written the bytes since.

        Raises:
            LostLease: another job has begun to write to the artifact, or another worker has this one's lease.
        """
        least = self._lease / 2
        while self._lost or self._lease_age() > least:
            self._renew_now()
            least = self._lease  # a catalogue that takes long for each answer keeps no job from its work

    def _publish(self, progress: Progress) -> None:
        self._shown, self._reported = True, time.monotonic()
        self._reporter.report(progress)

    def check(self) -> None:
        """Raise Cancelled if a client cancelled the job."""
        if self._reporter.cancelled():
            raise Cancelled(f"job {self.id} was cancelled")

    def __enter__(self) -> Self:
        self._interrupter.install()
        every = self._lease.total_seconds() / 12
        try:
            LEASES.begin(self, self._renew, every=every)
            SIGNS.begin(self, self._beat, every=every)
        except BaseException:  # the machine has no room for a thread
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done = True
        try:
            self._end_heartbeats()
        except Interrupted:  # sent just before the end
            self._end_heartbeats()
        with suppress(Interrupted):
            self._interrupter.remove()
        if isinstance(error, Interrupted) and self._stop is not None:
            raise self._stop from None

    def _end_heartbeats(self) -> None:
        for beats in (SIGNS, LEASES):
            beats.end(self)

    def _beat(self) -> None:
        """Publish that the job runs, and interrupt it if it has to stop and does not call `advance`."""
        now = time.monotonic()
        if not self._shown:  # not at the start: most jobs end before, and this costs a round trip
            self._publish(self.progress)
        if now - self._active >= _SILENT_AFTER and self._interrupter.listen() >= _HUNG_AFTER:
            self._abandon(Timeout(f"job {self.id}: a call of its step {self._step!r} hangs; check the disks"))
        if now - self._active >= _STUCK_AFTER:
            self._stop = self._reason_to_stop()
            if self._stop is not None and not self._done and self._interrupter.interrupt() >= _DEAF_AFTER:
                self._abandon(self._stop)

    def _reason_to_stop(self) -> Exception | None:
        if shutdown_flag.grace_is_over():
            return Requeue(f"job {self.id} is requeued: its worker shuts down")
        if self._reporter.cancelled():
            return Cancelled(f"job {self.id} was cancelled")
        return None

    def _renew(self) -> None:
        if self._lost or self._lease_age() < self._lease / 3:
            return
        try:
            self._renew_now()
        except LostLease:
            self._lost = True
        except CatalogueUnavailable:
            pass  # the next heartbeat may get through; the lease lasts for three renewals

    def _renew_now(self) -> None:
        """Renew the lease from now on: from before the wait for the catalogue and the disk, which may be a long one."""
        begun = clock.uptime()
        self._ledger.renew(
            self.id, self.fence, until=clock.now() + self._lease, progress=self.progress.model_dump(mode="json")
        )
        self._renewed = begun

    def _lease_age(self) -> timedelta:
        return timedelta(seconds=clock.uptime() - self._renewed)
