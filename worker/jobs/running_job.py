"""A job while it runs: how far it is, whether it is still ours, and whether somebody wants it to stop."""

import threading
import time
from types import TracebackType
from typing import Protocol, Self

from worker import clock
from worker.catalogue import CatalogueUnavailable, JobRecord, Ledger, LostLease
from worker.jobs import shutdown as draining
from worker.settings.sections import JobSettings
from zot_artifact_client.contract import Progress

REPORT_SECONDS = 1.0
"""Progress is reported at most this often."""


class Cancelled(Exception):
    """Somebody asked for the job to stop."""


class Requeue(Exception):
    """The worker is ending; somebody else goes on with the job where it stands."""


class Snooze(Exception):
    """The job has to wait for something that is no fault of its own, at least so many seconds. It costs no attempt."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason, seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return str(self.args[0])


class Continue(Exception):
    """The job has done one of its steps and wants to do the next in so many seconds.

    With None, another message for that step is on its way, and this one ends here.
    """

    def __init__(self, seconds: float | None) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Reporter(Protocol):
    """The outside of a running job: Celery, in a worker."""

    def report(self, progress: Progress) -> None:
        """Make the progress visible."""
        ...

    def cancelled(self) -> bool:
        """Return whether somebody asked for the job to stop; False if that cannot be told."""
        ...


class RunningJob:
    """A job that this process has taken. Tasks tell it what they move; it raises when they are to stop.

    While it is entered as a context manager, a thread keeps the lease in the ledger alive.
    """

    def __init__(self, record: JobRecord, ledger: Ledger, settings: JobSettings, reporter: Reporter) -> None:
        self.id = record.id
        self.attempt = record.attempts
        self.fence = record.fence
        self.was_snoozed = record.put_off_since is not None
        self._ledger = ledger
        self._lease = settings.lease
        self._grace = settings.grace
        self._reporter = reporter
        self._progress = Progress()
        self._reported = time.monotonic()
        self._lost = False
        self._done = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"lease-{record.id}", daemon=True)

    def start(self, total: int | None, step: str) -> None:
        """Say what is being done now and how many bytes the job moves in all."""
        self._progress = Progress(bytes_done=self._progress.bytes_done, bytes_total=total, step=step)

    @property
    def progress(self) -> Progress:
        """Return how far the job has said that it is."""
        return self._progress

    def publish_progress(self, progress: Progress) -> None:
        """Say how far the job is in all, and let it be seen at once."""
        self._progress = progress
        self._reporter.report(progress)

    def step(self, name: str) -> None:
        """Say what is being done now."""
        self._progress = self._progress.model_copy(update={"step": name})

    def advance(self, count: int) -> None:
        """Say that so many bytes more are done; this is where a job is stopped.

        Raises:
            Cancelled: somebody asked for the job to stop.
            LostLease: the job has gone over to another worker.
            Requeue: the worker is ending, and the job has had its time to end by itself.
        """
        done = self._progress.bytes_done + count
        self._progress = self._progress.model_copy(update={"bytes_done": done})
        if self._lost:
            raise LostLease(f"job {self.id} has gone over to another worker")
        if draining.over(self._grace):
            raise Requeue(f"job {self.id} is handed back: its worker is ending")
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            self._reporter.report(self._progress)
            self.check()

    def heartbeat(self, _count: int) -> None:
        """Be told of bytes that are read once more and count for no progress; a job can be stopped here too."""
        self.advance(0)

    def check(self) -> None:
        """Raise Cancelled if somebody asked for the job to stop."""
        if self._reporter.cancelled():
            raise Cancelled(f"job {self.id} was cancelled")

    def __enter__(self) -> Self:
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._heart.join()

    def _beat(self) -> None:
        while not self._done.wait(self._lease.total_seconds() / 3):
            try:
                self._ledger.renew(
                    self.id,
                    self.fence,
                    until=clock.now() + self._lease,
                    progress=self._progress.model_dump(mode="json"),
                )
            except LostLease:
                self._lost = True
                return
            except CatalogueUnavailable:
                continue  # the lease lasts three beats; the next one may get through
