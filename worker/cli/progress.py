"""Wait for a job and show its progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from worker import clock
from worker.catalogue import Catalogue, JobRecord, Scope
from worker.cli.output import err, note
from worker.counted import counted
from worker.readable import moment, size
from worker.settings import Settings
from zot_artifact_client.contract import BATCH, JobState
from zot_artifact_client.contract import Progress as JobProgress
from zot_artifact_client.errors import BrokerUnavailable, JobNotDone, UnknownJob, WaitTimeout

if TYPE_CHECKING:
    from zot_artifact_client import Job

_POLL = 0.5
"""Seconds between two reads of the ledger, which knows states that the result backend does not have."""
_PATIENCE = 5.0
"""Seconds after which the command tells that no worker has taken the job, and between two queries about a batch."""


class Bar:
    """A progress bar on stderr; shows nothing where stderr is no terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, seen: JobProgress) -> None:
        """Show the progress of the job: in bytes where they are known, else in objects."""
        done, total, in_objects = seen.bytes_done, seen.bytes_total, False
        if not total and seen.objects_total:
            done, total, in_objects = seen.objects_done or 0, seen.objects_total, True
        self._progress.update(
            self._task, completed=done, total=total, description=seen.step or None, in_objects=in_objects
        )

    def start(self, total: int | None, step: str) -> None:
        """Start a step of the command itself, of this many bytes."""
        self._progress.update(self._task, completed=0, total=total, description=step, in_objects=False)

    def advance(self, count: int) -> None:
        """Add this many bytes to the progress."""
        self._progress.advance(self._task, count)


class _Amount(DownloadColumn):
    """`3.1/8.0 MiB`, `17/400 objects` where the bytes are unknown, or nothing before a job has begun."""

    def render(self, task: Task) -> Text:
        if task.total is None and not task.completed:
            return Text("")
        if not task.fields.get("in_objects"):
            return super().render(task)
        return Text(f"{task.completed:.0f}/{task.total or 0:.0f} objects", style="progress.download")


class _Speed(ProgressColumn):
    """Bytes a second in IEC units, or objects a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        rate = counted(round(speed), "object") if task.fields.get("in_objects") else size(speed)
        return Text(f"{rate}/s", style="progress.data.speed")


@contextmanager
def bar(step: str) -> Iterator[Bar]:
    """Show a progress bar while the block runs."""
    console = err()
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), _Amount(binary_units=True), _Speed(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with progress:
        yield Bar(progress, progress.add_task(step, total=None))


def await_end(
    job: "Job[Any]", catalogue: Catalogue, settings: Settings, shown: Bar, timeout: float | None
) -> JobNotDone | None:
    """Wait until the job has ended or the time is up; return its error if the result backend has one.

    Raises:
        BrokerUnavailable: the ledger does not show the end of the job either.
        CatalogueUnavailable: the catalogue has gone away.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    watch = Watch(job.id, settings, catalogue, job.spec.queue.value if job.spec else None)
    while True:
        left = _POLL if deadline is None else min(_POLL, deadline - time.monotonic())
        try:
            job.wait(max(left, 0.0), on_progress=shown.update)
        except JobNotDone as error:
            return error
        except WaitTimeout:
            pass
        except UnknownJob:  # the result backend may have been lost
            if catalogue.ledger.get(job.id) is None:
                raise
        except BrokerUnavailable:
            if not _ended(catalogue.ledger.get(job.id)):
                raise
        else:
            return None
        record = catalogue.ledger.get(job.id)
        watch.see(record)
        if _ended(record) or (deadline is not None and time.monotonic() >= deadline):
            return None


def _ended(record: JobRecord | None) -> bool:
    # The id of a rejected message is that of a request which was corrected: the result backend tells them apart.
    return record is not None and record.state != JobState.REFUSED and JobState(record.state).terminal


class Watch:
    """Prints why a job has not ended yet, each reason once."""

    def __init__(self, job_id: str, settings: Settings, catalogue: Catalogue, queue: str | None = None) -> None:
        self._id = job_id
        self._queue = queue
        self._catalogue = catalogue
        self._most = settings.retry.max_attempts
        self._told = 0
        self._waits_for: set[str] = set()
        self._stores: set[str] = set()
        """For which stores jobs of a batch wait, as was told."""
        self._since: float | None = time.monotonic()
        self._look_at = 0.0

    def see(self, record: JobRecord | None) -> None:
        """Print what the row of the job in the ledger says that was not printed yet; None: it has none."""
        if record is None or record.state == JobState.REFUSED:
            if self._since is not None and time.monotonic() - self._since > _PATIENCE:
                self._since = None
                note(self._not_taken())
            return
        cause = record.error or {}
        if record.state == JobState.QUEUED and cause and cause["type"] not in self._waits_for:  # it was snoozed
            self._waits_for.add(cause["type"])
            note(f"job {self._id} waits: {cause.get('message')}")
        if record.state == JobState.RETRYING and record.attempts > self._told and record.error:
            self._told = record.attempts
            note(f"attempt {record.attempts} of {self._most} failed: {record.error.get('message')}; it is retried")
        if record.kind == BATCH.kind and not _ended(record) and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _PATIENCE
            self._see_stores()

    def _see_stores(self) -> None:
        """Print for which stores jobs of the batch wait, each when the first of them begins to."""
        found = self._catalogue.coverage.waiting_jobs_of([self._id])[self._id]
        for store in sorted(found.keys() - self._stores):
            jobs, until = counted(found[store].count, "job"), moment(found[store].until)
            note(f"{jobs} of {self._id} waiting for {store}, to be tried again by {until}: {found[store].reason}")
        self._stores = {*found}

    def _not_taken(self) -> str:
        """Return why no worker has taken the job: the ledger tells busy workers from none."""
        told, doctor = f"no worker has taken job {self._id} yet", "`zot-artifacts doctor` shows whether one"
        if self._queue and self._catalogue.pauses.get(Scope.QUEUE, self._queue):
            told += f"; paused: queue {self._queue}"
        leased = self._catalogue.ledger.leased(clock.now())
        if not leased:
            return f"{told}; no worker has any other job; {doctor} runs"
        jobs, queues = counted(sum(leased.values()), "other job"), ", ".join(sorted(filter(None, leased)))
        jobs = f"{jobs} of {queues}" if queues else jobs
        return f"{told}; workers have {jobs}, see `zot-artifacts jobs --state running`; {doctor} serves its queue"
