"""Wait for a job and show how far it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from worker.catalogue import Catalogue, JobRecord
from worker.cli.errors import Failure, Status
from worker.cli.output import err, note
from worker.settings import Settings
from zot_artifact_client import BrokerUnavailable, Job, JobNotDone, JobState, WaitTimeout
from zot_artifact_client.contract import Progress as JobProgress

_LOOK = 0.5
"""Seconds between looks into the ledger, which knows what the result backend does not tell."""
_PATIENCE = 5.0
"""Seconds after which a job that nobody has taken is worth a word."""


class Bar:
    """A progress bar on stderr; shows nothing where stderr is no terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, seen: JobProgress) -> None:
        """Show how far the job is."""
        self._progress.update(
            self._task, completed=seen.bytes_done, total=seen.bytes_total, description=seen.step or None
        )

    def expect(self, total: int, step: str) -> None:
        """Begin a step of our own, of this many bytes."""
        self._progress.update(self._task, completed=0, total=total, description=step)

    def moved(self, count: int) -> None:
        """Show that so many bytes more are done."""
        self._progress.advance(self._task, count)


@contextmanager
def bar(step: str) -> Iterator[Bar]:
    """Show a progress bar while something goes on."""
    console = err()
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with progress:
        yield Bar(progress, progress.add_task(step, total=None))


def await_end(
    job: Job[Any], catalogue: Catalogue, settings: Settings, shown: Bar, timeout: float | None
) -> JobNotDone | None:
    """Return when the job has ended, or when the time is up; return its error if the result backend told one.

    Raises:
        Failure: the broker has gone away and nobody can tell how the job ended.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    watch = _Watch(job.id, settings)
    while True:
        left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
        try:
            job.wait(max(left, 0.0), on_progress=shown.update)
        except JobNotDone as error:
            return error
        except WaitTimeout:
            pass
        except BrokerUnavailable as error:
            if not _ended(catalogue.ledger.get(job.id)):
                raise Failure(
                    f"{error}; job {job.id} may go on: `zot-artifacts jobs {job.id}` tells", Status.UNKNOWN,
                    type_="BrokerUnavailable",
                ) from error  # fmt: skip
        else:
            return None
        record = catalogue.ledger.get(job.id)
        watch.see(record)
        if _ended(record) or (deadline is not None and time.monotonic() >= deadline):
            return None


def _ended(record: JobRecord | None) -> bool:
    return record is not None and JobState(record.state).terminal


class _Watch:
    """Tells a person, once each, what keeps a job from ending."""

    def __init__(self, job_id: str, settings: Settings) -> None:
        self._id = job_id
        self._most = settings.retry.max_attempts
        self._told = 0
        self._since: float | None = time.monotonic()

    def see(self, record: JobRecord | None) -> None:
        if record is None:
            if self._since is not None and time.monotonic() - self._since > _PATIENCE:
                self._since = None
                note(f"no worker has taken job {self._id} yet; is one running? `zot-artifacts doctor` tells")
            return
        if record.state == JobState.RETRYING and record.attempts > self._told and record.error:
            self._told = record.attempts
            note(f"attempt {record.attempts} of {self._most} met: {record.error.get('message')}; trying again")
