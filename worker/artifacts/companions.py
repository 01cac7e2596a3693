"""A job on an artifact that includes its companions."""

from collections.abc import Iterator
from contextlib import contextmanager

from worker import clock
from worker.catalogue import Artifact
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze

_POLL = 5.0
"""Seconds until a job asks again whether the job on a companion has ended."""


@contextmanager
def locked_companions(
    context: JobContext, job: RunningJob, bucket: str, key: str, *, of_page: bool = False, none: bool = False
) -> Iterator[list[Artifact]]:
    """Return the companions of an artifact, to which no other job writes meanwhile; a page keeps the locks to its end.

    With `none`, return none.

    Raises:
        Snooze: another job writes to one of them.
    """
    found = [] if none else context.catalogue.companions.of(bucket, key)
    locks, paths = context.catalogue.artifact_locks, [(each.bucket, each.key) for each in found]
    if not found:
        yield []
        return
    try:
        granted = locks.acquire(job.id, job.fence, paths, now=clock.now(), lease=context.settings.jobs.lease)
        if missing := [path for path in paths if path not in granted]:
            there = f"{missing[0][0]}/{missing[0][1]}"
            raise Snooze(f"{bucket}/{key} waits for a job that writes to its companion {there}", _POLL)
        yield context.catalogue.companions.of(bucket, key)
    finally:
        if not of_page:
            locks.release(job.id)
