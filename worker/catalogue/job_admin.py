"""What people do to jobs: look for some, end one that waits, begin an ended one again."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.catalogue.database import Database
from worker.catalogue.ledger import job_record
from worker.catalogue.records import JobRecord
from worker.catalogue.tables import jobs
from zot_artifact_client.contract import JobState

UNSUCCESSFUL = (JobState.DEAD, JobState.FAILED, JobState.CANCELLED)
"""How jobs end that may be begun again. A refused one has no request that could be."""
_WAITING = (JobState.QUEUED, JobState.RETRYING)

_CANCEL = (
    sa.update(jobs)
    .where(
        jobs.c.id == sa.bindparam("job"),
        sa.or_(
            jobs.c.state.in_(_WAITING),
            sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until <= sa.bindparam("now")),
        ),
    )
    .values(
        state=JobState.CANCELLED, fence=jobs.c.fence + 1, lease_until=None, due_at=None,
        finished_at=sa.bindparam("now"), error=sa.bindparam("cause", type_=sa.JSON),
    )
    .returning(jobs)
)  # fmt: skip
_REVIVE = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"), jobs.c.state.in_(UNSUCCESSFUL))
    .values(
        state=JobState.QUEUED, fence=jobs.c.fence + 1, attempts=0, crashes=0, put_off_since=None, lease_until=None,
        due_at=sa.bindparam("due"), finished_at=None, result=None, progress=None,
        error=sa.bindparam("cause", type_=sa.JSON),
    )
    .returning(jobs)
)  # fmt: skip


class JobAdmin:
    """The jobs, as people and not workers take hold of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(
        self,
        states: Sequence[JobState],
        *,
        kind: str | None = None,
        fits: Callable[[JobRecord], bool] = lambda _: True,
        limit: int | None = 50,
    ) -> list[JobRecord]:
        """Return jobs in these states, or in any, that fit, the latest first."""
        query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id)
        if states:
            query = query.where(jobs.c.state.in_(states))
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        found: list[JobRecord] = []
        with (
            self._database.read() as connection,
            connection.execution_options(yield_per=500).execute(query) as rows,
        ):
            for row in rows:
                if limit is not None and len(found) >= limit:
                    break
                if fits(record := job_record(row)):
                    found.append(record)
        return found

    def cancel(self, id_: str, cause: Mapping[str, Any], now: datetime) -> JobRecord | None:
        """End a job that nobody is at work on; None if it is not one that waits."""
        values = {"job": id_, "now": now, "cause": dict(cause)}
        with self._database.write() as connection:
            row = connection.execute(_CANCEL, values).one_or_none()
            return job_record(row) if row else None

    def cancel_new(
        self, id_: str, kind: str, request: Mapping[str, Any], cause: Mapping[str, Any], now: datetime
    ) -> JobRecord | None:
        """Record a job as cancelled that no worker has taken over; None if one has, meanwhile."""
        row = {
            "id": id_, "kind": kind, "request": dict(request), "state": JobState.CANCELLED, "error": dict(cause),
            "attempts": 0, "fence": 0, "crashes": 0, "created_at": now, "finished_at": now,
        }  # fmt: skip
        with self._database.write() as connection:
            if connection.execute(sa.select(jobs.c.id).where(jobs.c.id == id_)).one_or_none() is not None:
                return None
            return job_record(connection.execute(sa.insert(jobs).returning(jobs), row).one())

    def revive(self, id_: str, cause: Mapping[str, Any], *, due: datetime) -> JobRecord | None:
        """Let a job that ended without success begin again as if it were new; None if it is none of those.

        `cause` says why it stands in its queue again. If its message gets lost, it is sent again from `due` on.
        """
        with self._database.write() as connection:
            row = connection.execute(_REVIVE, {"job": id_, "due": due, "cause": dict(cause)}).one_or_none()
            return job_record(row) if row else None
