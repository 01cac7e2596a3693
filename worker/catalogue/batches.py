"""Batches: the progress of each, its jobs in flight, and the jobs that failed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import Queries
from worker.catalogue.ledger import job_record
from worker.catalogue.pages import end_split
from worker.catalogue.records import ENDED_STATES, NEW_JOB, JobRecord
from worker.catalogue.tables import batch_items, batches, jobs
from zot_artifact_client.contract import JobState

_FAILED_STATES = [JobState.FAILED, JobState.DEAD, JobState.REFUSED]
_OF = sa.select(batches).where(batches.c.job == sa.bindparam("batch"))
_IN_FLIGHT = (
    sa.select(
        batch_items.c.number, batch_items.c.job, batch_items.c.size,
        jobs.c.request, jobs.c.state, jobs.c.result, jobs.c.error, jobs.c.started_at, jobs.c.kind,
    )
    .join(jobs, jobs.c.id == batch_items.c.job)
    .where(batch_items.c.batch == sa.bindparam("batch"), batch_items.c.outcome.is_(None))
    .order_by(batch_items.c.number)
)  # fmt: skip
_FAILED = (
    sa.select(batch_items.c.job, batch_items.c.outcome, jobs.c.request, jobs.c.result, jobs.c.error)
    .join(jobs, jobs.c.id == batch_items.c.job)
    .where(batch_items.c.batch == sa.bindparam("batch"), batch_items.c.outcome.is_not(None))
    .order_by(batch_items.c.number)
)
_REMOVE_SUCCEEDED = sa.delete(batch_items).where(
    batch_items.c.batch == sa.bindparam("of"), batch_items.c.number == sa.bindparam("at")
)
_RECORD_FAILED = (
    sa.update(batch_items)
    .where(batch_items.c.batch == sa.bindparam("of"), batch_items.c.number == sa.bindparam("at"))
    .values(outcome=sa.bindparam("came"))
)
_ENDED_OPEN = (
    sa.select(batches.c.job)
    .join(jobs, jobs.c.id == batches.c.job)
    .where(batches.c.open.is_(True), jobs.c.state.in_(ENDED_STATES))
)

_CHILDREN = jobs.alias("children")
_BATCH_OF = sa.select(_CHILDREN.c.parent).where(_CHILDREN.c.id == sa.bindparam("child")).scalar_subquery()
_WAITING = sa.exists().where(
    batch_items.c.batch == batches.c.job, batch_items.c.outcome.is_(None),
    _CHILDREN.c.id == batch_items.c.job, _CHILDREN.c.state.not_in(ENDED_STATES),
)  # fmt: skip
_IDLE_BATCH = (
    sa.select(jobs)
    .join(batches, batches.c.job == jobs.c.id)
    .where(batches.c.job == _BATCH_OF, batches.c.open.is_(True), batches.c.next_step_at > sa.bindparam("now"))
    .where(jobs.c.state == JobState.QUEUED, ~_WAITING)
)


@dataclass(frozen=True, slots=True)
class Batch:
    """The progress of a batch. `cursor` is where its next page begins, as the planner wrote it.

    `planned` counts jobs, and `ended` objects: a page is one job.
    """

    job: str
    cursor: Mapping[str, Any]
    exhausted: bool
    total: int | None
    total_bytes: int | None
    planned: int
    ended: int
    ended_bytes: int
    failed: int
    outcomes: Mapping[str, int]
    begun_at: datetime
    next_step_at: datetime


@dataclass(frozen=True, slots=True)
class NewBatchItem:
    """A job that a batch is about to accept; `number` is its position. `kind`: that of the batch's verb by default."""

    number: int
    job: str
    request: Mapping[str, Any]
    size: int
    writes_to: str | None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class BatchItem:
    """A job of a batch that was in flight at the last read. `started`: a worker has leased it."""

    number: int
    job: str
    size: int
    request: Mapping[str, Any]
    state: JobState
    started: bool
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class PageCounts:
    """The outcomes of the objects of a page: how many there are of each, their bytes, and how many failed."""

    outcomes: Mapping[str, int]
    bytes: int
    failed: int


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """The outcome of a batch item, in one word, and whether the item succeeded. `page`: of all its objects."""

    item: BatchItem
    outcome: str
    good: bool
    page: PageCounts | None = None

    @property
    def counts(self) -> PageCounts:
        """Return the counts of an item of one object or of a page."""
        return self.page or PageCounts({self.outcome: 1}, self.item.size, int(not self.good))


@dataclass(frozen=True, slots=True)
class FailedBatchItem:
    """A batch item that failed, by its state or by its verdict."""

    job: str
    outcome: str
    request: Mapping[str, Any]
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class BatchChanges:
    """What one run of the planner changes, atomically: outcomes to count, items to accept, the new cursor."""

    outcomes: Sequence[BatchOutcome]
    items: Sequence[NewBatchItem]
    cursor: Mapping[str, Any]
    exhausted: bool
    next_at: datetime


@dataclass(frozen=True, slots=True)
class BatchItemKind:
    """What all items of a batch have in common. `due`: when they are sent again without a heartbeat, or never."""

    kind: str
    queue: str
    due: datetime | None


class Batches(Queries):
    """The batches, by the id of their jobs."""

    def get(self, batch: str) -> Batch | None:
        """Return the progress of a batch, or None if it has not begun."""
        with self._database.read() as connection:
            return _find(connection, batch)

    def begin(
        self, batch: str, cursor: Mapping[str, Any], *, total: int | None, total_bytes: int | None, now: datetime
    ) -> Batch:
        """Record that a batch begins, with its totals where they are known."""
        row: dict[str, Any] = {
            "job": batch, "cursor": dict(cursor), "exhausted": False, "open": True, "total": total,
            "total_bytes": total_bytes, "planned": 0, "ended": 0, "ended_bytes": 0, "failed": 0, "outcomes": {},
            "begun_at": now, "next_step_at": now,
        }  # fmt: skip
        with self._database.write() as connection:
            connection.execute(sa.insert(batches), row)
        return Batch(**{name: value for name, value in row.items() if name != "open"})

    def in_flight(self, batch: str) -> list[BatchItem]:
        """Return the items that have not been counted yet, in the order in which they were planned."""
        with self._database.read() as connection:
            rows = connection.execute(_IN_FLIGHT, {"batch": batch}).all()
        return [
            BatchItem(
                row.number, row.job, row.size, row.request, JobState(row.state), row.started_at is not None,
                row.result, row.error, row.kind,
            )
            for row in rows
        ]  # fmt: skip

    def advance(self, batch: Batch, kind: BatchItemKind, changes: BatchChanges, now: datetime) -> Batch:
        """Count the outcomes, accept the next items into the ledger, and move the cursor after them, atomically."""
        with self._database.write() as connection:
            _count(connection, batch.job, changes.outcomes)
            _accept(connection, batch.job, kind, changes.items, now)
            values = _after(batch, changes)
            connection.execute(sa.update(batches).where(batches.c.job == batch.job).values(**values, open=True))
            found = _find(connection, batch.job)
        assert found is not None
        return found

    def hasten(self, child: str, now: datetime) -> JobRecord | None:
        """Make the next step of a job's batch due, if it waits and all of its jobs have ended; return the batch's job.

        The message of that step is the caller's to send.
        """
        with self._database.read() as connection:
            row = connection.execute(_IDLE_BATCH, {"child": child, "now": now}).one_or_none()
        if row is None:
            return None
        with self._database.write() as connection:
            connection.execute(sa.update(batches).where(batches.c.job == row.id).values(next_step_at=now))
        return job_record(row)

    def failed(self, batch: str, *, limit: int) -> list[FailedBatchItem]:
        """Return the items that failed, in the order in which they were planned."""
        with self._database.read() as connection:
            return [FailedBatchItem(*row) for row in connection.execute(_FAILED.limit(limit), {"batch": batch})]

    def child_jobs(self, parent: str, *, failed: bool = False, after: str = "", limit: int = 50) -> list[JobRecord]:
        """Return the jobs that a batch or another job has sent, ordered by id: of a batch, in planning order.

        `failed`: only jobs that failed, by their state or by their verdict.
        """
        query = sa.select(jobs).where(jobs.c.parent == parent, jobs.c.id > after).order_by(jobs.c.id).limit(limit)
        if failed:
            bad = sa.select(batch_items.c.job).where(batch_items.c.batch == parent, batch_items.c.outcome.is_not(None))
            query = query.where(sa.or_(jobs.c.state.in_(_FAILED_STATES), jobs.c.id.in_(bad)))
        with self._database.read() as connection:
            return [job_record(row) for row in connection.execute(query)]

    def ended_open(self) -> list[str]:
        """Return the batches that have ended and whose items have not been asked to end."""
        with self._database.read() as connection:
            return list(connection.execute(_ENDED_OPEN).scalars())

    def close(self, batch: str) -> None:
        """Record that no item of the batch is waited for any more."""
        with self._database.write() as connection:
            connection.execute(sa.update(batches).where(batches.c.job == batch).values(open=False))


def _find(connection: Connection, batch: str) -> Batch | None:
    row = connection.execute(_OF, {"batch": batch}).one_or_none()
    if row is None:
        return None
    return Batch(
        row.job, row.cursor, row.exhausted, row.total, row.total_bytes, row.planned, row.ended, row.ended_bytes,
        row.failed, row.outcomes, row.begun_at, row.next_step_at,
    )  # fmt: skip


def _count(connection: Connection, batch: str, outcomes: Sequence[BatchOutcome]) -> None:
    good = [{"of": batch, "at": each.item.number} for each in outcomes if each.good]
    bad = [{"of": batch, "at": each.item.number, "came": each.outcome} for each in outcomes if not each.good]
    if good:
        connection.execute(_REMOVE_SUCCEEDED, good)
    if bad:
        connection.execute(_RECORD_FAILED, bad)
    dead = [each.item.job for each in outcomes if each.page is not None and each.item.state is JobState.DEAD]
    if dead:
        end_split(connection, dead)


def _accept(
    connection: Connection, batch: str, kind: BatchItemKind, items: Sequence[NewBatchItem], now: datetime
) -> None:  # fmt: skip
    if not items:
        return
    accepted = {**NEW_JOB, "parent": batch, "created_at": now, "queue": kind.queue, "due_at": kind.due}
    connection.execute(
        sa.insert(jobs),
        [
            accepted
            | {"id": each.job, "request": dict(each.request), "holds": each.writes_to, "kind": each.kind or kind.kind}
            for each in items
        ],
    )
    connection.execute(
        sa.insert(batch_items),
        [{"batch": batch, "number": each.number, "job": each.job, "size": each.size} for each in items],
    )


def _after(batch: Batch, changes: BatchChanges) -> dict[str, Any]:
    counts = [each.counts for each in changes.outcomes]
    outcomes = Counter(batch.outcomes)
    for each in counts:
        outcomes.update(each.outcomes)
    return {
        "cursor": dict(changes.cursor),
        "exhausted": changes.exhausted,
        "planned": batch.planned + len(changes.items),
        "ended": batch.ended + sum(sum(each.outcomes.values()) for each in counts),
        "ended_bytes": batch.ended_bytes + sum(each.bytes for each in counts),
        "failed": batch.failed + sum(each.failed for each in counts),
        "outcomes": dict(outcomes),
        "next_step_at": changes.next_at,
    }
