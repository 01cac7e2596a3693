"""Operators' actions on jobs: find, cancel one that waits, redrive one that ended without success."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker import clock
from worker.catalogue.database import Queries
from worker.catalogue.job_webhooks import want_webhooks, want_webhooks_again
from worker.catalogue.ledger import job_record
from worker.catalogue.records import NEW_JOB, WAITING_STATES, JobRecord
from worker.catalogue.tables import batches, jobs
from zot_artifact_client.contract import BATCH, PAGE, JobState

REDRIVABLE = (JobState.DEAD, JobState.FAILED, JobState.CANCELLED)
"""The states that can be redriven. A rejected job has no request that could be sent again."""
_PARENTS = 500
_SHOWN_OTHERWISE = {JobState.QUEUED, JobState.RUNNING}
_LEASE_EXPIRED = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until <= sa.bindparam("now"))
_SHOWN_STATE = sa.case(
    (_LEASE_EXPIRED, JobState.QUEUED.value),
    (
        sa.and_(jobs.c.kind == BATCH.kind, jobs.c.state == JobState.QUEUED, jobs.c.started_at.is_not(None)),
        JobState.RUNNING.value,
    ),
    else_=jobs.c.state,
)
"""`JobRecord.shown_state`."""

_CANCEL = (
    sa.update(jobs)
    .where(
        jobs.c.id == sa.bindparam("job"),
        sa.or_(jobs.c.state.in_(WAITING_STATES), _LEASE_EXPIRED),
    )
    .values(
        state=JobState.CANCELLED, fence=jobs.c.fence + 1, lease_until=None, due_at=None,
        finished_at=sa.bindparam("now"), error=sa.bindparam("cause", type_=sa.JSON),
    )
    .returning(jobs)
)  # fmt: skip
_REDRIVE = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"), jobs.c.state.in_(REDRIVABLE))
    .values(
        state=JobState.QUEUED, fence=jobs.c.fence + 1, attempts=0, crashes=0, put_off_since=None, lease_until=None,
        due_at=sa.bindparam("due"), finished_at=None, result=None, progress=None,
        error=sa.bindparam("cause", type_=sa.JSON),
    )
    .returning(jobs)
)  # fmt: skip


class JobAdmin(Queries):
    """The jobs, for operators."""

    def find(
        self,
        states: Sequence[JobState],
        *,
        kind: str | None = None,
        fits: Callable[[JobRecord], bool] = lambda _: True,
        limit: int | None = 50,
        everything: bool = True,
    ) -> list[JobRecord]:
        """Return jobs that are shown in these states (any if empty) for which `fits` is true, the latest first.

        `everything`: whether sweeps that succeeded are among them, of which beat starts some every minute, and the jobs
        of batches, which would hide their batches.
        """
        query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id)
        if states:
            shown = _SHOWN_STATE if _SHOWN_OTHERWISE & set(states) else jobs.c.state  # the index has the state alone
            query = query.where(shown.in_(states))
            if shown is _SHOWN_STATE:
                query = query.params(now=clock.now())
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if not everything:
            of_batch = sa.exists().where(batches.c.job == jobs.c.parent)
            succeeded_sweep = jobs.c.kind.startswith("sweep.") & (jobs.c.state == JobState.SUCCEEDED)
            query = query.where(~succeeded_sweep, ~of_batch)
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

    def descendants(self, parent: str) -> list[JobRecord]:
        """Return the jobs that a job has sent, and those that its pages have sent."""
        query = sa.select(jobs)
        with self._database.read() as connection:
            of_job = [job_record(row) for row in connection.execute(query.where(jobs.c.parent == parent))]
            pages = [each.id for each in of_job if each.kind == PAGE.kind]
            of_pages: list[JobRecord] = []
            for start in range(0, len(pages), _PARENTS):
                some = query.where(jobs.c.parent.in_(pages[start : start + _PARENTS]))
                of_pages += [job_record(row) for row in connection.execute(some)]
        return of_job + of_pages

    def ids_like(self, beginning: str, *, limit: int) -> list[str]:
        """Return ids that are `beginning` or begin with it, first the ids outside batches.

        `5f0a1d0e.00000003` is the job 00000003 of each batch whose id begins with 5f0a1d0e.
        """
        root, dot, number = beginning.partition(".")
        if not root:
            return []
        batch_jobs = jobs.c.id.endswith(f".{number}", autoescape=True) if dot else ~jobs.c.id.contains(".")
        query = sa.select(jobs.c.id).where(
            jobs.c.id >= root, jobs.c.id < root + chr(0x10FFFF), sa.or_(jobs.c.id == beginning, batch_jobs)
        )
        with self._database.read() as connection:
            return list(connection.execute(query.order_by(jobs.c.id != beginning, jobs.c.id).limit(limit)).scalars())

    def cancel(self, id_: str, cause: Mapping[str, Any], now: datetime) -> JobRecord | None:
        """Cancel a job that waits and return it; None if it is leased, has ended or is unknown."""
        values = {"job": id_, "now": now, "cause": dict(cause)}
        with self._database.write() as connection:
            row = connection.execute(_CANCEL, values).one_or_none()
            return job_record(row) if row else None

    def cancel_dead(self, id_: str) -> bool:
        """Cancel a dead letter, whose last error stays; return False for any other job. It can still be redriven."""
        dead = sa.update(jobs).where(jobs.c.id == id_, jobs.c.state == JobState.DEAD)
        with self._database.write() as connection:
            return connection.execute(dead.values(state=JobState.CANCELLED)).rowcount == 1

    def cancel_new(
        self, id_: str, kind: str, request: Mapping[str, Any], cause: Mapping[str, Any], now: datetime
    ) -> JobRecord | None:
        """Record a job that is not in the ledger, or only as a rejected message, as cancelled; None if it is there."""
        row = NEW_JOB | {
            "id": id_, "kind": kind, "request": dict(request), "state": JobState.CANCELLED, "error": dict(cause),
            "created_at": now, "finished_at": now,
        }  # fmt: skip
        with self._database.write() as connection:
            connection.execute(sa.delete(jobs).where(jobs.c.id == id_, jobs.c.state == JobState.REFUSED))
            if connection.execute(sa.select(jobs.c.id).where(jobs.c.id == id_)).one_or_none() is not None:
                return None
            if receivers := request.get("notify"):
                want_webhooks(connection, id_, receivers, now)
            return job_record(connection.execute(sa.insert(jobs).returning(jobs), row).one())

    def redrive(self, id_: str, cause: Mapping[str, Any], *, due: datetime) -> JobRecord | None:
        """Queue a job that ended without success as if it were new and return it; None for any other job.

        `cause` says why it is queued again. If its message is lost, it is sent again from `due` on.
        """
        with self._database.write() as connection:
            row = connection.execute(_REDRIVE, {"job": id_, "due": due, "cause": dict(cause)}).one_or_none()
            if row is not None:
                want_webhooks_again(connection, id_)
            return job_record(row) if row else None
