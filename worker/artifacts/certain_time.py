"""Tell the present time to a job that removes old bytes: a clock that is ahead must not remove them too early."""

from collections.abc import Callable
from datetime import datetime, timedelta

from worker import clock
from worker.jobs.running_job import RunningJob


def certain_time(job: RunningJob, kept: str, hold: timedelta, *, first: Callable[[], datetime | None]) -> datetime:
    """Return the present moment by the clock that is behind, this machine's or that of the database.

    Args:
        job: the job that removes something.
        kept: the name of what it removes, for the record of this machine's clock, see `clock.not_ahead`.
        hold: how long that is kept.
        first: returns a moment that has certainly passed. Where the database has no clock of its own, a machine that
            has kept no record, such as one with a restored catalogue, knows no later one.
    """
    database_time = job.catalogue.deletions.database_time()
    record = job.settings.run_dir / f"clock-{kept}"
    now = clock.not_ahead(record, hold, first=first() if database_time is None else None)
    return min(now, database_time or now)
