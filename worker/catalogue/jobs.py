"""The ledger: every job that was accepted, who works on it, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker.catalogue.database import CatalogueError, Database
from worker.catalogue.records import JobRecord
from worker.catalogue.tables import jobs
from zot_artifact_client.contract import JobState

# What every job asks is built once: building a statement takes SQLAlchemy longer than SQLite takes to run it.
_FIND = sa.select(jobs).where(jobs.c.id == sa.bindparam("job"))
_ACCEPT = sa.insert(jobs).returning(jobs)
_TAKE = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"))
    .values(
        state=JobState.RUNNING, attempts=jobs.c.attempts + 1, fence=jobs.c.fence + 1,
        lease_owner=sa.bindparam("lease_owner"), lease_until=sa.bindparam("lease_until"),
        started_at=sa.func.coalesce(jobs.c.started_at, sa.bindparam("now")),
    )
    .returning(jobs)
)  # fmt: skip
_HOLDER = (
    sa.select(jobs.c.id, jobs.c.lease_until)
    .where(
        jobs.c.holds == sa.bindparam("held"), jobs.c.lease_until > sa.bindparam("now"),
        jobs.c.state == JobState.RUNNING, jobs.c.id != sa.bindparam("job"),
    )
    .limit(1)
)  # fmt: skip
_SETTLE = sa.update(jobs).where(
    jobs.c.id == sa.bindparam("job"), jobs.c.fence == sa.bindparam("token"), jobs.c.state == JobState.RUNNING
)


class LostLease(CatalogueError):
    """The job has gone over to another worker; what this one still wants to record is void."""


class OtherRequest(CatalogueError):
    """The job's id has been given to another request before."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The job is this worker's now, under this fencing token."""

    record: JobRecord


@dataclass(frozen=True, slots=True)
class Busy:
    """Another job, or another delivery of this one, is at work; it must show life until `until`."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended before; nothing is to be done."""

    record: JobRecord


class Jobs:
    """The jobs, by id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(
        self,
        id_: str,
        kind: str,
        request: Mapping[str, Any],
        *,
        owner: str,
        holds: str | None,
        parent: str | None,
        now: datetime,
        lease: timedelta,
    ) -> Begun | Busy | Ended:
        """Accept a job if it is new, and take it unless it has ended or somebody is at work on it or on its artifact.

        Only taking it counts as an attempt.

        Raises:
            OtherRequest: the id belongs to another request.
        """
        row = {"id": id_, "kind": kind, "request": dict(request), "holds": holds, "parent": parent, "created_at": now}
        with self._database.write() as connection:
            found = _find(connection, id_) or _accept(connection, row)
            if (found.kind, found.request) != (kind, dict(request)):
                raise OtherRequest(
                    f"{id_} is the id of another {found.kind} request; an id or idempotency key names one request"
                )
            if JobState(found.state).terminal:
                return Ended(found)
            busy = _busy(connection, found, holds, now)
            if busy:
                return busy
            taken = {"job": id_, "lease_owner": owner, "lease_until": now + lease, "now": now}
            return Begun(_record(connection.execute(_TAKE, taken).one()))

    def renew(self, id_: str, fence: int, *, until: datetime, progress: Mapping[str, Any] | None) -> None:
        """Show life: keep the job until `until`, and record how far it is.

        Raises:
            LostLease: the job has gone over to another worker.
        """
        values: dict[str, Any] = {"lease_until": until}
        if progress is not None:
            values["progress"] = dict(progress)
        self._settle(id_, fence, values)

    def retrying(self, id_: str, fence: int, error: Mapping[str, Any]) -> None:
        """Record that the attempt met a passing fault and that there will be another one."""
        self._settle(id_, fence, {"state": JobState.RETRYING, "error": dict(error), "lease_until": None})

    def finish(
        self,
        id_: str,
        fence: int,
        state: JobState,
        *,
        now: datetime,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how the job ended.

        Raises:
            LostLease: the job has gone over to another worker.
        """
        self._settle(
            id_, fence,
            {
                "state": state, "result": dict(result) if result is not None else None, "error": error,
                "finished_at": now, "lease_until": None,
            },
        )  # fmt: skip

    def refuse(self, id_: str, kind: str, request: Mapping[str, Any], error: Mapping[str, Any], now: datetime) -> None:
        """Record a message that is no request. A job that has the id already stays as it is."""
        with self._database.write() as connection:
            if _find(connection, id_) is None:
                values = {"state": JobState.REFUSED, "error": dict(error), "finished_at": now}
                row = {
                    "id": id_,
                    "kind": kind[:64],
                    "request": dict(request),
                    "created_at": now,
                    "attempts": 0,
                    "fence": 0,
                }
                connection.execute(sa.insert(jobs), row | values)

    def get(self, id_: str) -> JobRecord | None:
        """Return a job, or None if no worker has taken such a job yet."""
        with self._database.read() as connection:
            return _find(connection, id_)

    def latest(self, *, states: Sequence[JobState] = (), limit: int = 50) -> list[JobRecord]:
        """Return jobs, the latest first."""
        query = sa.select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_(states))
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query)]

    def sources_of_open_jobs(self) -> set[str]:
        """Return the sources of all uploads that have still to end."""
        states = [state for state in JobState if not state.terminal]
        with self._database.read() as connection:
            requests = connection.execute(sa.select(jobs.c.request).where(jobs.c.state.in_(states))).scalars()
            return {request["source"] for request in requests if "source" in request}

    def _settle(self, id_: str, fence: int, values: Mapping[str, Any]) -> None:
        with self._database.write() as connection:
            changed = connection.execute(_SETTLE, {"job": id_, "token": fence, **values})
            if changed.rowcount != 1:
                raise LostLease(f"job {id_} has gone over to another worker")


def _find(connection: Connection, id_: str) -> JobRecord | None:
    row = connection.execute(_FIND, {"job": id_}).one_or_none()
    return _record(row) if row else None


def _accept(connection: Connection, job: Mapping[str, Any]) -> JobRecord:
    row = {**job, "state": JobState.QUEUED, "attempts": 0, "fence": 0}
    return _record(connection.execute(_ACCEPT, row).one())


def _busy(connection: Connection, job: JobRecord, holds: str | None, now: datetime) -> Busy | None:
    if job.state == JobState.RUNNING and job.lease_until and job.lease_until > now:
        return Busy(job.lease_until, f"job {job.id} is being worked on already")
    if holds is None:
        return None
    other = connection.execute(_HOLDER, {"held": holds, "now": now, "job": job.id}).one_or_none()
    return Busy(other.lease_until, f"job {other.id} is writing to {holds}") if other else None


def _record(row: Row[Any]) -> JobRecord:
    return JobRecord(
        row.id, row.kind, row.request, row.state, row.attempts, row.fence, row.created_at, row.lease_owner,
        row.lease_until, row.progress, row.error, row.result, row.parent, row.started_at, row.finished_at,
    )  # fmt: skip
