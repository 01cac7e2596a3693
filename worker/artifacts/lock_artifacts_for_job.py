"""Lock artifacts, or the companions of one, for the job that writes to them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from worker import clock
from worker.catalogue import Artifact, Tombstone
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze
from zot_artifact_client.contract import ADOPT, DELETE, REPLICATE, UPLOAD, VERIFY, is_batch_job

_POLL = 5.0
"""Seconds until a job asks again whether the job on a companion has ended."""
_OF_ONE = {spec.kind for spec in (UPLOAD, REPLICATE, VERIFY, DELETE, ADOPT)}
"""The kinds of jobs on one artifact."""
_Companion = TypeVar("_Companion", Artifact, Tombstone)


@contextmanager
def locked(job: RunningJob, paths: Sequence[tuple[str, str]], *, keep: bool = False) -> Iterator[set[tuple[str, str]]]:
    """Lock artifacts, by bucket and key, and yield those that no other job writes to; with `keep`, release no lock."""
    locks = job.catalogue.artifact_locks
    try:
        yield locks.acquire(job.id, job.fence, paths, now=clock.now(), lease=job.settings.jobs.lease)
    finally:
        if not keep:
            locks.release(job.id, job.fence)


def names_companions_itself(job: RunningJob) -> bool:
    """Return whether a batch or sweep sent the job: it sends jobs for the companions, too.

    Celery also gives a parent to what a service sends from a task of its own, and to the next job of a chain.
    """
    if job.parent is None or is_batch_job(job.id, job.parent):
        return job.parent is not None
    parent = job.catalogue.ledger.get(job.parent)
    return parent is not None and parent.kind not in _OF_ONE


@contextmanager
def locked_companions(
    find: Callable[[], Sequence[_Companion]], job: RunningJob, path: str, *, of_page: bool = False
) -> Iterator[Sequence[_Companion]]:
    """Return the companions of an artifact that `find` returns, to which no other job writes meanwhile.

    A page keeps the locks to its end.

    Raises:
        Snooze: another job writes to one of them.
    """
    paths = [(each.bucket, each.key) for each in find()]
    if not paths:
        yield []
        return
    with locked(job, paths, keep=of_page) as granted:
        if missing := [each for each in paths if each not in granted]:
            raise Snooze(f"{path} waits for a job that writes to its companion {'/'.join(missing[0])}", _POLL)
        yield [each for each in find() if (each.bucket, each.key) in granted]
