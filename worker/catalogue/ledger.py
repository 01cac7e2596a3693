"""The ledger: every accepted job, its lease, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker import clock
from worker.catalogue.artifact_locks import other_writer
from worker.catalogue.artifacts import FinishedCopy, finish_copies
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import CatalogueError, CatalogueUnavailable, LostLease, Queries
from worker.catalogue.job_webhooks import want_webhooks
from worker.catalogue.pauses import Pause, pauses_of_job
from worker.catalogue.records import NEW_JOB, OPEN_STATES, WAITING_STATES, JobRecord
from worker.catalogue.tables import SWEEPS, artifact_locks, batch_items, batches, job_webhooks, jobs, upload_lists
from worker.counted import counted
from zot_artifact_client.contract import BATCH_JOB_ID, JobState

_FIND = Prepared(sa.select(jobs).where(jobs.c.id == sa.bindparam("job")))
_ACCEPT = Prepared(sa.insert(jobs))
_TAKE = Prepared(
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"))
    .values(
        state=JobState.RUNNING, attempts=jobs.c.attempts + 1, fence=jobs.c.fence + 1,
        lease_owner=sa.bindparam("lease_owner"), lease_until=sa.bindparam("lease_until"),
        due_at=sa.bindparam("lease_until"), crashes=sa.bindparam("crashes"), queue=sa.bindparam("queue"),
        started_at=sa.func.coalesce(jobs.c.started_at, sa.bindparam("now")),
        put_off_since=sa.bindparam("since"),
    )
    .returning(jobs)
)  # fmt: skip
_WAIT = Prepared(
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"))
    .values(due_at=sa.bindparam("due"), put_off_since=sa.bindparam("since"))
)
_BURY = Prepared(
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"))
    .values(
        state=sa.bindparam("end"), fence=jobs.c.fence + 1, crashes=jobs.c.crashes + 1, lease_until=None, due_at=None,
        finished_at=sa.bindparam("now"), error=sa.bindparam("cause", type_=sa.JSON),
    )
    .returning(jobs)
)  # fmt: skip
_SETTLE = Prepared(
    sa.update(jobs).where(
        jobs.c.id == sa.bindparam("job"), jobs.c.fence == sa.bindparam("token"), jobs.c.state == JobState.RUNNING
    )
)


_SNOOZE = "Snooze"
"""The type of the error of a job that waits for a store, unless a person has paused that."""
_BELIEVED = 10
"""The longest credible lease, in leases. A longer one was written by a clock that was ahead; it counts as expired.
Several, because the clocks of workers differ by seconds and their settings of the lease differ too.
"""


_PRUNED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.REFUSED)
_PRUNED_AT_ONCE = 200
_FLUSHED_WITHIN = timedelta(minutes=1)
"""The longest time for which the end of a job is in the ledger and not yet on the disk."""
_LOCKED_POLL = 0.02
"""Seconds between two tries to write to a catalogue that is locked."""


class OtherRequest(CatalogueError):
    """The job's id belongs to another request. `first`: the job with that request, if the ledger has it."""

    def __init__(self, message: str, first: JobRecord | None = None) -> None:
        super().__init__(message)
        self.first = first


class EndNotDurable(CatalogueUnavailable):
    """The end of a job is in the ledger, and the disk did not confirm it: nothing may be told of it."""


@dataclass(frozen=True, slots=True)
class Leased:
    """This worker has the lease, under the fencing token of the record.

    `pauses`: those of all stores, of the job and of its batch, as they were when it got the lease.
    """

    record: JobRecord
    pauses: Sequence[Pause] = ()


@dataclass(frozen=True, slots=True)
class Busy:
    """Another job on the same artifact, or another delivery of this one, has the lease until `until`."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The job has ended before; nothing is left to do."""

    record: JobRecord


class Ledger(Queries):
    """The jobs, by id."""

    def acquire(
        self,
        id_: str,
        kind: str,
        request: Mapping[str, Any],
        *,
        owner: str,
        writes_to: str | None,
        parent: str | None,
        now: datetime,
        lease: timedelta,
        queue: str | None = None,
        max_crashes: int = 5,
        planned: bool = False,
    ) -> Leased | Busy | Finished:
        """Accept a job if it is new, and lease it unless it has ended or it or its artifact is leased.

        Only a lease counts as an attempt. A job whose worker died at `max_crashes` starts in a row ends as dead, or as
        failed if it is a sweep: the job itself may kill its workers. A `planned` job is one of a batch, which accepts
        its jobs before it sends them.

        A power cut may undo the first lease of a job, until something else is recorded: its message is acknowledged
        only after the end of the job, and is delivered again. Anything else is durable when this returns.

        Raises:
            OtherRequest: the id belongs to another request, or to a batch that has not planned the job.
        """
        given = {"id": id_, "kind": kind, "request": dict(request), "parent": parent, "created_at": now}
        taken = {"lease_owner": owner, "lease_until": now + lease, "queue": queue}
        with self._database.write(durable=False) as connection:
            found = _acquire(connection, given, taken, writes_to, lease=lease, max_crashes=max_crashes, planned=planned)
        if not (isinstance(found, Leased) and found.record.fence == 1):
            self._database.flush()
        return found

    def renew(self, id_: str, fence: int, *, until: datetime, progress: Mapping[str, Any] | None) -> None:
        """Renew the lease until `until`, and record the progress.

        Raises:
            LostLease: another worker has the lease.
        """
        values: dict[str, Any] = {"lease_until": until, "due_at": until}
        if progress is not None:
            values["progress"] = dict(progress)
        self._settle(id_, fence, values)

    def retry(self, id_: str, fence: int, error: Mapping[str, Any], *, due: datetime) -> None:
        """Record that the attempt met a transient error, and by when the next attempt must have started.

        Raises:
            LostLease: another worker has the lease.
        """
        values = {"state": JobState.RETRYING, "error": dict(error), "lease_until": None, "due_at": due}
        self._settle(id_, fence, values | {"crashes": 0, "put_off_since": None})

    def snooze(self, id_: str, fence: int, why: Mapping[str, Any], *, since: datetime | None, due: datetime) -> None:
        """Give a job back for later without counting the attempt.

        `since`: when it was first snoozed in a row, or None if that is not to be counted.

        Raises:
            LostLease: another worker has the lease.
        """
        values = {"state": JobState.QUEUED, "lease_until": None, "due_at": due, "crashes": 0}
        with self._database.write_then_flush() as connection:
            found = _FIND.first(connection, job=id_)
            kept = {"error": dict(why) | last_cause(found.error), "attempts": found.attempts - 1}
            _change(connection, id_, fence, values | kept | {"put_off_since": since})

    def continue_later(self, id_: str, fence: int, *, progress: Mapping[str, Any] | None, due: datetime) -> None:
        """Give a job back that continues later, with its attempts and errors reset.

        Raises:
            LostLease: another worker has the lease.
        """
        values: dict[str, Any] = {
            "state": JobState.QUEUED, "due_at": due, "lease_until": None, "attempts": 0, "crashes": 0, "error": None,
            "put_off_since": None,
        }  # fmt: skip
        self._settle(id_, fence, values if progress is None else values | {"progress": dict(progress)})

    def finish(
        self,
        id_: str,
        fence: int,
        state: JobState,
        *,
        now: datetime,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
        copies: Sequence[FinishedCopy] = (),
    ) -> None:
        """Record how the job ended, and in the same transaction the copies that it has completed.

        It is durable when this returns. The wait for the disk follows the commit, so that others write meanwhile, and
        jobs that end at one time share it.

        Raises:
            LostLease: another worker has the lease; nothing was recorded.
            EndNotDurable: the disk failed; the next delivery of the job finds its end.
        """
        values = {
            "state": state, "result": dict(result) if result is not None else None, "error": error,
            "finished_at": now, "lease_until": None, "due_at": None,
        }  # fmt: skip
        with self._database.write(durable=False) as connection:
            _change(connection, id_, fence, values)
            finish_copies(connection, copies, now)
        try:
            self._database.flush()
        except CatalogueUnavailable as failed:
            raise EndNotDurable(str(failed)) from failed

    def reject(self, id_: str, kind: str, request: Mapping[str, Any], error: Mapping[str, Any], now: datetime) -> None:
        """Record a rejected message. A job that has the id already is not changed, and an id of a batch is not used."""
        if BATCH_JOB_ID.fullmatch(id_):
            return
        with self._database.write() as connection:
            if _find(connection, id_) is None:
                row = {"id": id_, "kind": kind[:64], "request": dict(request), "created_at": now, "finished_at": now}
                connection.execute(sa.insert(jobs), NEW_JOB | row | {"state": JobState.REFUSED, "error": dict(error)})

    def get(self, id_: str) -> JobRecord | None:
        """Return a job, or None if it is not in the ledger. An end that this returns is durable."""
        with self._database.read() as connection:
            found = _find(connection, id_)
        return None if found is None else self._durable([found])[0]

    def leased(self, now: datetime) -> dict[str | None, int]:
        """Return how many jobs workers have leased, by queue."""
        held = sa.and_(jobs.c.state == JobState.RUNNING, jobs.c.lease_until > now)
        query = sa.select(jobs.c.queue, sa.func.count().label("number")).where(held).group_by(jobs.c.queue)
        with self._database.read() as connection:
            return {row.queue: row.number for row in connection.execute(query)}

    def snoozed_for(self, store: str) -> set[str]:
        """Return the ids of the jobs that wait for a store which took no job; not of those that wait for a pause."""
        error = jobs.c.error
        waits = sa.and_(error["type"].as_string() == _SNOOZE, error["store"].as_string() == store)
        query = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED, waits)
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def sources_of_open_jobs(self) -> set[str]:
        """Return the sources of all uploads, and the key lists of all batches, that have not ended."""
        with self._database.read() as connection:
            requests = connection.execute(sa.select(jobs.c.request).where(jobs.c.state.in_(OPEN_STATES))).scalars()
            return {request[name] for request in requests for name in ("source", "keys_from") if name in request}

    def overdue(
        self,
        *,
        now: datetime,
        again: timedelta,
        lease: timedelta,
        limit: int,
        delay: timedelta | None = None,
        unseen: timedelta = timedelta(),
    ) -> list[JobRecord]:
        """Claim open jobs without a heartbeat since they were due, the longest overdue first.

        Jobs whose lease is longer than a credible one are claimed too, and those that wait for longer than `delay`, the
        longest that anything waits: a clock that was ahead wrote these times. A job that has not started may wait for
        `unseen`, if that is longer. The caller sends the jobs again; none of them is overdue again before
        `again` has passed.
        """
        far = now + again + _BELIEVED * lease  # a job that was sent again is due within `again`
        past = sa.select(jobs).where(jobs.c.due_at < now, jobs.c.state.in_(OPEN_STATES))
        ahead = sa.select(jobs).where(jobs.c.due_at > far, jobs.c.state == JobState.RUNNING)
        with self._database.write() as connection:
            found: list[JobRecord] = []
            longest = now + (delay or timedelta()) + again
            waiting = sa.select(jobs).where(
                jobs.c.due_at > longest,
                jobs.c.state.in_(WAITING_STATES),
                sa.or_(jobs.c.started_at.is_not(None), jobs.c.due_at > max(longest, now + unseen + again)),
            )
            for query in (past, ahead, *((waiting,) if delay is not None else ())):
                rows = connection.execute(query.order_by(jobs.c.due_at).limit(limit - len(found)))
                found += map(job_record, rows)
            if found:
                due = now + again
                waits = [{"job": job.id, "since": _snoozes_since(job, now, due=due)} for job in found]
                _WAIT.run_many(connection, waits, due=due)
        return found

    def prune(self, *, before: datetime, limit: int = 1000) -> int:
        """Delete jobs that ended before a moment, the oldest first and at most `limit`; return how many.

        Dead jobs stay until they are redriven or cancelled, the jobs of a batch until it has counted them, and jobs
        whose webhooks are due until these are delivered or given up.
        """
        of_open_batch = sa.exists().where(batches.c.job.in_([jobs.c.id, jobs.c.parent]), batches.c.open.is_(True))
        untold = sa.exists().where(
            job_webhooks.c.job == jobs.c.id, job_webhooks.c.delivered_at.is_(None), job_webhooks.c.next_at.is_not(None)
        )
        state = jobs.c.state.concat("")  # no index by state, of which all ended jobs would be sorted for each call
        ended = (
            sa.select(jobs.c.id)
            .where(jobs.c.finished_at < before, state.in_(_PRUNED), ~of_open_batch, ~untold)
            .order_by(jobs.c.finished_at)
            .limit(limit)
        )
        return self._delete(ended)

    def prune_sweeps(self, kind: str, *, before: datetime, limit: int = 1000) -> int:
        """Delete runs of a sweep that began before a moment and have ended, at most `limit`; return how many."""
        ended = (
            sa.select(jobs.c.id)
            .where(SWEEPS, jobs.c.kind == kind, jobs.c.created_at < before, jobs.c.state.in_(_PRUNED))
            .order_by(jobs.c.created_at)
            .limit(limit)
        )
        return self._delete(ended)

    def _delete(self, ended: sa.Select[tuple[str]]) -> int:
        """Delete the jobs with these ids that have ended, with what belongs to them."""
        with self._database.read() as connection:  # so that other writers wait for the deletes only
            ids = list(connection.execute(ended).scalars())
        deleted = 0
        for start in range(0, len(ids), _PRUNED_AT_ONCE):
            group = ids[start : start + _PRUNED_AT_ONCE]
            with self._database.write() as connection:
                still = sa.select(jobs.c.id).where(jobs.c.id.in_(group), jobs.c.state.in_(_PRUNED))
                gone = connection.execute(still).scalars().all()  # none that was redriven meanwhile
                connection.execute(sa.delete(batch_items).where(batch_items.c.batch.in_(gone)))
                connection.execute(sa.delete(batches).where(batches.c.job.in_(gone)))
                connection.execute(sa.delete(upload_lists).where(upload_lists.c.batch.in_(gone)))
                connection.execute(sa.delete(artifact_locks).where(artifact_locks.c.job.in_(gone)))
                connection.execute(sa.delete(jobs).where(jobs.c.id.in_(gone)))
            deleted += len(gone)
        return deleted

    def open_on(self, bucket: str, key: str, *, kind: str) -> list[str]:
        """Return the jobs of a kind that write to an artifact and have not ended."""
        query = sa.select(jobs.c.id).where(
            jobs.c.holds == f"{bucket}/{key}", jobs.c.kind == kind, jobs.c.state.in_(OPEN_STATES)
        )
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return which of these jobs a worker has leased, or have ended.

        A refused one is none of them: a valid request may have its id, as for `acquire`.
        """
        taken = sa.or_(jobs.c.started_at.is_not(None), jobs.c.due_at.is_not(None), jobs.c.finished_at.is_not(None))
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(ids), taken, jobs.c.state != JobState.REFUSED)
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def open_or_ended_since(self, ids: Sequence[str], since: datetime) -> set[str]:
        """Return which of these jobs have not ended, or have ended at this time or later."""
        late = sa.or_(jobs.c.finished_at.is_(None), jobs.c.finished_at >= since)
        with self._database.read() as connection:
            return set(connection.execute(sa.select(jobs.c.id).where(jobs.c.id.in_(ids), late)).scalars())

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """Return the states of those of these jobs that are in the ledger, by id."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(ids)))
            return {row.id: JobState(row.state) for row in rows}

    def ended_since(self, since: datetime, *, after: str = "", limit: int) -> list[JobRecord]:
        """Return jobs that ended at this time with ids behind `after`, and those that ended later, in this order."""
        at, id_ = jobs.c.finished_at, jobs.c.id
        query = sa.select(jobs).where(at >= since, sa.or_(at > since, id_ > after)).order_by(at, id_).limit(limit)
        with self._database.read() as connection:
            found = [job_record(row) for row in connection.execute(query)]
        return self._durable(found)

    def _durable(self, found: list[JobRecord]) -> list[JobRecord]:
        """Return jobs once the ends among them survive a power cut: `finish` commits an end before it is durable."""
        now = clock.now()
        if any(job.finished_at and abs(now - job.finished_at) < _FLUSHED_WITHIN for job in found):
            self._database.flush()
        return found

    def check_writable(self) -> None:
        """Write to the catalogue without a change. Raise CatalogueUnavailable if that fails."""
        with self._database.write() as connection:
            self._database.touch(connection)

    def is_locked(self, *, within: float) -> bool:
        """Return whether the catalogue is locked by other transactions for all of so many seconds.

        Raises:
            CatalogueError: it cannot be written, such as one that is read only.
        """
        until = monotonic() + within
        while True:
            with self._database.write_if_free() as connection:
                if connection is not None:
                    self._database.touch(connection)
                    return False
            if monotonic() >= until:
                return True
            sleep(_LOCKED_POLL)

    def _settle(self, id_: str, fence: int, values: Mapping[str, Any]) -> None:
        with self._database.write_then_flush() as connection:
            _change(connection, id_, fence, values)


def _acquire(
    connection: Connection,
    given: Mapping[str, Any],
    taken: Mapping[str, Any],
    writes_to: str | None,
    *,
    lease: timedelta,
    max_crashes: int,
    planned: bool,
) -> Leased | Busy | Finished:
    """Accept or lease a job within the transaction; see `Ledger.acquire`."""
    id_, now = given["id"], given["created_at"]
    found = _find(connection, id_)
    if found is not None and found.state == JobState.REFUSED:  # by a message that was no valid request
        connection.execute(sa.delete(jobs).where(jobs.c.id == id_))
        found = None
    if found is None and planned:
        raise OtherRequest(f"{id_} is the id of a job of batch {given['parent']}, which has not planned it")
    if found is None:
        if receivers := given["request"].get("notify"):
            want_webhooks(connection, id_, receivers, now)
        return _accept(connection, given, writes_to, taken, lease)
    if (found.kind, found.request) != (given["kind"], given["request"]):
        raise OtherRequest(
            f"{id_} is the id of another {found.kind} request; an id or idempotency key names one request", found
        )
    if JobState(found.state).terminal:
        return Finished(found)
    busy = _busy(connection, found, writes_to, now, lease)
    if busy:
        if found.state != JobState.RUNNING:
            _WAIT.run(connection, job=id_, due=busy.until + lease, since=_snoozes_since(found, now))
        return busy
    crashes = found.crashes + 1 if found.state == JobState.RUNNING else found.crashes
    if crashes >= max_crashes:
        return Finished(job_record(_BURY.first(connection, **_poison(found, crashes, now))))
    since = _snoozes_since(found, now)
    leased = job_record(_TAKE.first(connection, **taken, job=id_, now=now, crashes=crashes, since=since))
    return Leased(leased, pauses_of_job(connection, id_, leased.parent))


def _snoozes_since(job: JobRecord, now: datetime, *, due: datetime | None = None) -> datetime | None:
    """Return since when a job snoozes in a row, that is leased, sent again or held up now.

    The time since it was due does not count: no worker was free to run it, or the clock is wrong. Nor does the time
    until it is `due` again where it is sent again: there may still be no worker.
    """
    if job.snoozed_since is None:
        return None
    late = max((due or now) - job.due_at, timedelta()) if job.due_at else timedelta()
    return min(job.snoozed_since + late, now)


def _change(connection: Connection, id_: str, fence: int, values: Mapping[str, Any]) -> None:
    if _SETTLE.run(connection, job=id_, token=fence, **values) != 1:
        raise LostLease(id_)


def _find(connection: Connection, id_: str) -> JobRecord | None:
    row = _FIND.first(connection, job=id_)
    return job_record(row) if row else None


def _accept(
    connection: Connection, given: Mapping[str, Any], writes_to: str | None, taken: Mapping[str, Any], lease: timedelta
) -> Leased | Busy:
    """Record a new job, leased at once unless its artifact is leased: one row is written once."""
    now = given["created_at"]
    job = {**NEW_JOB, **given}
    busy = _busy(connection, JobRecord(**job), writes_to, now, lease)
    if busy:
        job |= {"due_at": busy.until + lease}
    else:
        running = {"state": JobState.RUNNING, "attempts": 1, "fence": 1, "due_at": taken["lease_until"]}
        job |= {**taken, **running, "started_at": now}
    _ACCEPT.run(connection, **job, holds=writes_to)
    return busy or Leased(JobRecord(**job), pauses_of_job(connection, job["id"], job["parent"]))


def _busy(
    connection: Connection, job: JobRecord, writes_to: str | None, now: datetime, lease: timedelta
) -> Busy | None:
    far = now + _BELIEVED * lease
    if job.state == JobState.RUNNING and job.lease_until and now < job.lease_until <= far:
        return Busy(job.lease_until, f"job {job.id} is leased by another delivery already")
    if writes_to is None:
        return None
    other = other_writer(connection, writes_to, job.id, now, far)
    return Busy(other.lease_until, f"job {other.id} is writing to {writes_to}") if other else None


def _poison(job: JobRecord, crashes: int, now: datetime) -> dict[str, Any]:
    message = f"its worker died after {counted(crashes, 'start')} in a row: the job may be the cause"
    end = JobState.FAILED if job.is_sweep else JobState.DEAD  # an operator has to examine the object
    cause = {"type": "Poison", "message": message} | last_cause(job.error)
    return {"job": job.id, "now": now, "end": end, "cause": cause}


def last_cause(error: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return, as `previous`, the last failure with a traceback that an error in the ledger has."""
    if error is None:
        return {}
    return {"previous": dict(error)} if "traceback" in error else {k: v for k, v in error.items() if k == "previous"}


def job_record(row: Row[Any]) -> JobRecord:
    """Return a row of the ledger as a value, without the progress of a job that succeeded: its last report is old."""
    progress = None if row.state == JobState.SUCCEEDED else row.progress
    return JobRecord(
        row.id, row.kind, row.request, row.state, row.attempts, row.fence, row.created_at, row.lease_owner,
        row.lease_until, progress, row.error, row.result, row.parent, row.started_at, row.finished_at,
        row.queue, row.due_at, row.crashes, row.put_off_since,
    )  # fmt: skip
