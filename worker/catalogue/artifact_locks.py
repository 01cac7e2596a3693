"""Writer locks of pages: which artifacts a job that works on many of them may write to.

A job on one artifact needs no row here: the ledger's `holds` is its lock. Each of the two excludes the other. It has
rows for the companions that it writes to.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.bulk import by_bucket
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Database
from worker.catalogue.tables import artifact_locks, jobs
from zot_artifact_client.contract import JobState

_GROUP = 200
"""Artifacts that one statement names at most: databases bound the number of parameters."""
_LIVE = (
    jobs.c.state == JobState.RUNNING,
    jobs.c.lease_until.between(sa.bindparam("now"), sa.bindparam("far")),
)
_LOCKED = (
    sa.select(artifact_locks.c.key)
    .join(jobs, sa.and_(jobs.c.id == artifact_locks.c.job, jobs.c.fence == artifact_locks.c.fence))
    .where(artifact_locks.c.job != sa.bindparam("job"), *_LIVE)
)
_INSERT = Prepared(sa.insert(artifact_locks))
_HOLDS = sa.select(jobs.c.holds).where(jobs.c.id != sa.bindparam("job"), *_LIVE)
HOLDERS = Prepared(
    sa.union_all(
        sa.select(jobs.c.id, jobs.c.lease_until)
        .where(jobs.c.holds == sa.bindparam("path"), jobs.c.id != sa.bindparam("job"), *_LIVE),
        sa.select(jobs.c.id, jobs.c.lease_until)
        .join(artifact_locks, sa.and_(jobs.c.id == artifact_locks.c.job, jobs.c.fence == artifact_locks.c.fence))
        .where(
            artifact_locks.c.bucket == sa.bindparam("bucket"), artifact_locks.c.key == sa.bindparam("key"),
            artifact_locks.c.job != sa.bindparam("job"), *_LIVE,
        ),
    )
)  # fmt: skip
"""The other jobs, with their leases, that write to one artifact: `bucket`, `key`, and both as `path`."""

Path = tuple[str, str]
"""Bucket and key of an artifact."""


class ArtifactLocks:
    """The writer locks, by bucket and key. A lock lasts as long as the lease of its job under the same fence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(
        self, job: str, fence: int, paths: Sequence[Path], *, now: datetime, lease: timedelta, credible: int = 10
    ) -> set[Path]:
        """Lock artifacts for a job and return those it got; the others are locked by another job.

        `credible`: the longest lease of a holder that counts, in leases; see the ledger.
        """
        times = {"job": job, "now": now, "far": now + credible * lease}
        granted: set[Path] = set()
        with self._database.write() as connection:
            for bucket, keys in by_bucket(dict.fromkeys(paths), _GROUP):
                taken = _taken(connection, bucket, keys, times)
                free = [key for key in keys if key not in taken]
                connection.execute(sa.delete(artifact_locks).where(*_named(bucket, free)))
                _INSERT.run_many(connection, [{"key": key} for key in free], bucket=bucket, job=job, fence=fence)
                granted.update((bucket, key) for key in free)
        return granted

    def release(self, job: str, fence: int) -> None:
        """Release all locks that a job has taken under this fencing token or before it; no lock is no error."""
        mine = sa.and_(artifact_locks.c.job == job, artifact_locks.c.fence <= fence)
        with self._database.write() as connection:
            connection.execute(sa.delete(artifact_locks).where(mine))


def _taken(connection: Connection, bucket: str, keys: Sequence[str], times: dict[str, object]) -> set[str]:
    locked = set(connection.execute(_LOCKED.where(*_named(bucket, keys)), times).scalars())
    held = [f"{bucket}/{key}" for key in keys]
    holders = connection.execute(_HOLDS.where(jobs.c.holds.in_(held)), times).scalars()
    return locked | {path.partition("/")[2] for path in holders}


def _named(bucket: str, keys: Sequence[str]) -> list[sa.ColumnElement[bool]]:
    return [artifact_locks.c.bucket == bucket, artifact_locks.c.key.in_(keys)]
