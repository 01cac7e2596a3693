"""Writer locks of pages: which artifacts a job that works on many of them may write to.

A job on one artifact needs no row here: its row of the ledger is its lock. Each of the two excludes the other. It has
rows for the companions that it writes to.

In SQLite no lock waits for the disk: a power cut ends the jobs that have the locks, too.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.bulk import by_bucket, one_of
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Queries
from worker.catalogue.tables import artifact_locks, jobs
from zot_artifact_client.contract import JobState

_RUNNING = (jobs.c.id != sa.bindparam("job"), jobs.c.state == JobState.RUNNING)
_OF_LOCKS = sa.and_(jobs.c.id == artifact_locks.c.job, jobs.c.fence == artifact_locks.c.fence)
_LOCKED = (
    sa.select(artifact_locks.c.key, jobs.c.id, jobs.c.lease_until).join(jobs, _OF_LOCKS).where(*_RUNNING)
)  # fmt: skip
_WRITERS = sa.select(jobs.c.holds, jobs.c.id, jobs.c.lease_until).where(*_RUNNING)
_INSERT = Prepared(sa.insert(artifact_locks))
_WRITERS_OF_ONE = Prepared(
    sa.union_all(
        sa.select(jobs.c.id, jobs.c.lease_until).where(jobs.c.holds == sa.bindparam("path"), *_RUNNING),
        sa.select(jobs.c.id, jobs.c.lease_until).join(artifact_locks, _OF_LOCKS)
        .where(artifact_locks.c.bucket == sa.bindparam("bucket"), artifact_locks.c.key == sa.bindparam("key"))
        .where(*_RUNNING),
    )
)  # fmt: skip
_FENCE_OUT = Prepared(sa.update(jobs).where(jobs.c.id == sa.bindparam("other")).values(fence=jobs.c.fence + 1))

Path = tuple[str, str]
"""Bucket and key of an artifact."""


class ArtifactLocks(Queries):
    """The writer locks, by bucket and key. A lock lasts as long as the lease of its job under the same fence."""

    def acquire(
        self, job: str, fence: int, paths: Sequence[Path], *, now: datetime, lease: timedelta, credible: int = 10
    ) -> set[Path]:
        """Lock artifacts for a job and return those it got; the others are locked by another job.

        `credible`: the longest lease of another job that counts, in leases; see the ledger.
        """
        far = now + credible * lease
        granted: set[Path] = set()
        with self._database.write(durable=False) as connection:
            for bucket, keys in by_bucket(dict.fromkeys(paths)):
                taken = _taken(connection, bucket, keys, job, (now, far))
                free = [key for key in keys if key not in taken]
                connection.execute(sa.delete(artifact_locks).where(*_named(bucket, free)))
                _INSERT.run_many(connection, [{"key": key} for key in free], bucket=bucket, job=job, fence=fence)
                granted.update((bucket, key) for key in free)
        return granted

    def release(self, job: str, fence: int) -> None:
        """Release all locks that a job has taken under this fencing token or before it; no lock is no error."""
        mine = sa.and_(artifact_locks.c.job == job, artifact_locks.c.fence <= fence)
        with self._database.write(durable=False) as connection:
            connection.execute(sa.delete(artifact_locks).where(mine))


def other_writer(connection: Connection, path: str, job: str, now: datetime, far: datetime) -> Any:
    """Return the id and lease of another job that writes to an artifact, or None; fence out one whose lease is over.

    Such a job may go on once its worker is no longer frozen: its lease is not renewed then, and it records nothing.
    `far`: a lease that lasts longer was written by a clock that was ahead.
    """
    bucket, _, key = path.partition("/")
    others = _WRITERS_OF_ONE.all(connection, path=path, bucket=bucket, key=key, job=job)
    for other in others:
        if _lasts(other.lease_until, now, far):
            return other
    _FENCE_OUT.run_many(connection, [{"other": id_} for id_ in {other.id for other in others}])
    return None


def _taken(
    connection: Connection, bucket: str, keys: Sequence[str], job: str, times: tuple[datetime, datetime]
) -> set[str]:
    """Return which of these artifacts other jobs write to; fence out jobs without a lease, as `other_writer`."""
    mine, paths = {"job": job}, [f"{bucket}/{key}" for key in keys]
    others = [tuple(row) for row in connection.execute(_LOCKED.where(*_named(bucket, keys)), mine)]
    writers = connection.execute(_WRITERS.where(one_of(jobs.c.holds, paths)), mine)
    others += [(path.partition("/")[2], id_, until) for path, id_, until in writers]
    taken = {key for key, _, until in others if _lasts(until, *times)}
    over = {id_ for key, id_, _ in others if key not in taken}
    _FENCE_OUT.run_many(connection, [{"other": id_} for id_ in over])
    return taken


def _lasts(until: datetime | None, now: datetime, far: datetime) -> bool:
    return until is not None and now <= until <= far


def _named(bucket: str, keys: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    return [artifact_locks.c.bucket == bucket, one_of(artifact_locks.c.key, keys)]
