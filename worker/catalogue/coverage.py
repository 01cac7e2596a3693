"""How far the copies of each store have been read, what is overdue, and when each sweep ran last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from worker import clock
from worker.catalogue.artifacts import FIRST_READS, SPREADS
from worker.catalogue.database import Queries
from worker.catalogue.records import BAD, GONE, GOOD, OPEN_STATES, WAITING_STATES, CopyState
from worker.catalogue.sweep_claims import NOT_ARCHIVED
from worker.catalogue.tables import (
    BAD_VERDICT,
    CURRENT,
    SWEEPS,
    artifacts,
    copies,
    findings,
    jobs,
    pages,
    verifications,
)
from worker.storage import Verdict
from worker.storage.keys import CANARY_BUCKET
from zot_artifact_client.contract import ADOPT, DELETE, REPLICATE, UPLOAD, VERIFY, JobState

_NAMES = (artifacts.c.bucket, artifacts.c.key, artifacts.c.version, copies.c.store)
_NOT_READ = [CopyState.MISSING, CopyState.SIZE_MISMATCH]
"""The states after a verdict that needed no read to the end."""
_NUMBER, _DIGITS = "0123456789", 8
"""What is at the end of the id of a page or item of a batch; see BATCH_JOB_ID."""
_REFUSES = "StoreRefuses"
"""The type of the error of a job that waits for a store which refuses all that it asks."""
_DETECTIONS = 1000
"""Most findings about bad copies whose detection times are returned."""
_WHOLE = [sa.func.coalesce(jobs.c.request[name].as_string(), "") == "" for name in ("store", "bucket", "prefix")]
"""The conditions of a run of a sweep that was of all stores: it names no single store or prefix."""
_DECIDED = {JobState.SUCCEEDED, JobState.FAILED}
"""The ends of a run that tell whether a sweep works; an operator has cancelled the others."""


@dataclass(frozen=True, slots=True)
class OverdueCopy:
    """A copy that was not read for longer than its period. `since`: its last full read or write."""

    store: str
    bucket: str
    key: str
    version: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far the copies of a store have been read.

    `read`: fully, within the period. `recent`: fully, within the last hours that were asked for. `never`: not since
    they were written. `unreadable`: the last attempt had no answer. `archived`: it is in an archive class and not
    readable now; it counts as nothing else. A corrupt copy counts as read; a missing one and one of another size were
    not read.
    """

    read: int
    recent: int
    never: int
    unreadable: int
    archived: int
    oldest_read_at: datetime | None


@dataclass(frozen=True, slots=True)
class FailedJobs:
    """How many jobs failed for good with one type of error, and since when.

    `store`: the one that it is about, None for no store.
    """

    error: str
    store: str | None
    count: int
    since: datetime


@dataclass(frozen=True, slots=True)
class WaitingJobs:
    """How many jobs wait for a store. `until`: by when the last of them is tried again; `reason`: why one waits.

    `refusal`: why the store refuses all that some of them ask, None if it refuses nothing. `since`: when the first of
    them began to wait, None where all are retried.
    """

    count: int
    until: datetime
    reason: str | None = None
    refusal: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run of a sweep that succeeded or failed.

    `failing_since`: when the first of the runs ended that have failed in a row up to this one; None if it succeeded.
    """

    job: str
    failing_since: datetime | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last run of a sweep, which may be still open.

    `ended`: the last run of all stores that succeeded or failed; None without one.
    """

    job: str
    state: str
    started_at: datetime | None
    finished_at: datetime | None
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    ended: EndedRun | None


class CoverageQueries(Queries):
    """The questions about coverage. Every one about one store is answered from an index."""

    def overdue(self, store: str, *, period: timedelta, now: datetime, limit: int) -> list[OverdueCopy]:
        """Return some copies of a store that were not read fully for longer than `period`, the oldest first."""
        late = (
            sa.select(*_NAMES, copies.c.read_at.label("since"))
            .join(copies, copies.c.artifact_id == artifacts.c.id)
            .where(copies.c.store == store, copies.c.read_at <= now - period)
        )
        found = self._some(late.where(copies.c.next_due_at.is_not(None), NOT_ARCHIVED), limit)
        for spread in range(SPREADS):
            of = late.where(copies.c.spread == spread, copies.c.next_due_at.is_(None))
            found += self._some(of.order_by(copies.c.read_at), limit)
        return sorted(found, key=lambda each: each.since or now)[:limit]

    def of(self, store: str, *, period: timedelta, recent: timedelta, now: datetime) -> Coverage:
        """Return how many copies of a store have been read within `period`, and within the time `recent`."""
        count = sa.select(sa.func.count()).where(copies.c.store == store)
        oldest = sa.select(sa.func.min(copies.c.read_at)).where(copies.c.store == store, copies.c.read_at.is_not(None))
        retry, unreadable = copies.c.next_due_at.is_not(None), copies.c.last_verdict == Verdict.UNREADABLE
        with self._database.read() as connection:

            def counted(of: sa.Select[Any], *, again: bool) -> int:
                """Count by a search of the index for each `spread`, and the unreadable ones by theirs."""
                spreads = range(FIRST_READS, SPREADS) if again else range(FIRST_READS)
                each = [
                    connection.execute(of.where(copies.c.spread == spread, copies.c.next_due_at.is_(None))).scalar_one()
                    for spread in spreads
                ]
                unread = of.where(retry, NOT_ARCHIVED, copies.c.spread.in_(list(spreads)))
                found: int = sum(each, connection.execute(unread).scalar_one())
                return found

            of_reads = [oldest.where(copies.c.spread == s, ~retry) for s in range(FIRST_READS, SPREADS)]
            of_reads.append(oldest.where(retry, NOT_ARCHIVED, copies.c.spread >= FIRST_READS))
            moments = [connection.execute(query).scalar() for query in of_reads]

            def read_since(moment: datetime) -> int:
                since = count.where(copies.c.read_at > moment)
                unread = since.where(copies.c.state.in_(_NOT_READ), copies.c.spread >= FIRST_READS, NOT_ARCHIVED)
                return counted(since, again=True) - int(connection.execute(unread).scalar_one())

            return Coverage(
                read=read_since(now - period),
                recent=read_since(now - recent),
                never=counted(count.where(copies.c.read_at.is_not(None)), again=False),
                unreadable=connection.execute(count.where(retry, unreadable)).scalar_one(),
                archived=connection.execute(count.where(retry, ~NOT_ARCHIVED)).scalar_one(),
                oldest_read_at=min((moment for moment in moments if moment), default=None),
            )

    def ages(self, store: str, edges: Sequence[datetime], *, read: bool) -> list[int]:
        """Return how many copies were read, or were written and not read since, between each moment and the next.

        `edges` begins with the latest moment; the last count is of everything before the last one.
        """
        before = []
        with self._database.read() as connection:
            for edge in edges:
                count = sa.select(sa.func.count()).where(copies.c.store == store, copies.c.read_at <= edge)
                spreads = range(FIRST_READS, SPREADS) if read else range(FIRST_READS)
                queries = [count.where(copies.c.spread == s, copies.c.next_due_at.is_(None)) for s in spreads]
                queries.append(
                    count.where(copies.c.next_due_at.is_not(None), NOT_ARCHIVED, copies.c.spread.in_(list(spreads)))
                )
                before.append(sum(connection.execute(query).scalar_one() for query in queries))
        return [one - other for one, other in pairwise([*before, 0])]

    def bad_verdicts(self, store: str, *, since: datetime) -> dict[str, int]:
        """Return how often copies of a store were found bad since a time, by verdict."""
        row = verifications.c
        query = (
            sa.select(row.verdict, sa.func.count())
            .where(row.store == store, row.at > since, BAD_VERDICT, row.bucket != CANARY_BUCKET)
            .group_by(row.verdict)
        )
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def seconds_to_detect(self, *, since: datetime) -> list[float]:
        """Return for each finding about a bad copy the seconds since the copy was last known to be good.

        The copy became bad within that time, so it is the longest that the detection can have taken.
        """
        found, read = findings.c, verifications.c
        good = (
            sa.select(sa.func.max(read.at, type_=read.at.type))
            .where(
                read.bucket == found.bucket, read.key == found.key, read.store == found.store,
                read.version == found.version, read.verdict == Verdict.VERIFIED, read.at < found.opened_at,
            )
            .scalar_subquery()
        )  # fmt: skip
        written = (
            sa.select(artifacts.c.committed_at)
            .where(
                artifacts.c.bucket == found.bucket, artifacts.c.key == found.key, artifacts.c.version == found.version
            )
            .scalar_subquery()
        )
        query = (
            sa.select(found.opened_at, good.label("good"), written.label("written"))
            .where(found.kind.in_(BAD), found.opened_at > since)
            .limit(_DETECTIONS)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        times = [(row.opened_at, row.good or row.written) for row in rows]
        return [(opened - known).total_seconds() for opened, known in times if known is not None]

    def jobs(self) -> tuple[int, int]:
        """Return how many objects are to be replicated, as jobs or in open pages, and how many jobs are dead letters.

        The objects of a page of a batch count from its begin on, those of a sweep from its plan on.
        """
        count, is_open = sa.select(sa.func.count()).select_from(jobs), jobs.c.state.in_(OPEN_STATES)
        repairs = count.where(is_open, jobs.c.kind == REPLICATE.kind)
        in_pages = (
            sa.select(sa.func.sum(sa.func.json_array_length(pages.c.open)))
            .join(jobs, jobs.c.id == pages.c.job)
            .where(is_open, jobs.c.request["verb"].as_string() == REPLICATE.kind)
        )
        dead = count.where(jobs.c.state == JobState.DEAD)
        with self._database.read() as connection:
            replications = connection.execute(repairs).scalar_one() + (connection.execute(in_pages).scalar() or 0)
            return replications, connection.execute(dead).scalar_one()

    def waiting_jobs(self) -> dict[str, WaitingJobs]:
        """Return the jobs that wait for a store, by store: at their last attempt it took no job, or failed."""
        with self._database.read() as connection:
            return {name: WaitingJobs(*rest) for name, *rest in connection.execute(_waiting())}

    def waiting_jobs_of(self, parents: Sequence[str]) -> dict[str, dict[str, WaitingJobs]]:
        """Return those of the jobs that these, such as batches, have sent; by the id of their sender and by store."""
        waiting: dict[str, dict[str, WaitingJobs]] = {parent: {} for parent in parents}
        if waiting:
            state = jobs.c.state.concat("")  # no index by state, which has all jobs that wait, also of other batches
            sent = _waiting(state).add_columns(jobs.c.parent).where(jobs.c.parent.in_(waiting))
            with self._database.read() as connection:
                for name, *rest, parent in connection.execute(sent.group_by(jobs.c.parent)):
                    waiting[parent][name] = WaitingJobs(*rest)
        return waiting

    def failed_jobs(self, *, since: datetime) -> list[FailedJobs]:
        """Return the jobs but sweeps that failed for good since then and still matter, by error and store.

        A job does not if it was sent again, if a later job of its kind succeeded with the same artifact, or if its
        effect is there: the copies of its upload or of a later one are complete, its store gave right bytes since, or
        what it was to delete is gone. A success of a clock that was ahead is no later one: it was before that was put
        right, as was each failure that this clock has recorded.
        """
        latest = clock.now() + clock.SKEW
        some = (
            sa.select(
                jobs.c.id, jobs.c.kind, jobs.c.parent, jobs.c.holds, jobs.c.finished_at,
                *(jobs.c.error[name].as_string().label(name) for name in ("type", "store")),
                *(jobs.c.request[name].as_string().label(name) for name in ("bucket", "key")),
            )
            .where(jobs.c.state == JobState.FAILED, jobs.c.finished_at >= since, ~jobs.c.kind.startswith("sweep."))
            .subquery()
        )  # fmt: skip
        success = sa.case((jobs.c.state == JobState.SUCCEEDED, jobs.c.finished_at))  # by the index of `holds`
        last = (  # all jobs of an artifact at once: many may have failed
            sa.select(
                jobs.c.kind, jobs.c.holds, sa.func.max(success).label("at"),
                sa.func.max(sa.case((jobs.c.finished_at <= latest, success))).label("certain"),
            )
            .where(jobs.c.holds.in_(sa.select(some.c.holds)), success.is_not(None))
            .group_by(jobs.c.kind, jobs.c.holds)
            .subquery()
        )  # fmt: skip
        later = sa.case((some.c.finished_at > latest, last.c.at), else_=last.c.certain)
        of_artifact = sa.and_(last.c.kind == some.c.kind, last.c.holds == some.c.holds)
        unsettled = (
            sa.select(
                some.c.type, some.c.store, sa.func.count(),
                sa.func.min(some.c.finished_at, type_=some.c.finished_at.type),
            )
            .outerjoin_from(some, last, of_artifact)
            .where(sa.or_(later.is_(None), later <= some.c.finished_at), _lacks_effect(some.c))
            .group_by(some.c.type, some.c.store)
        )  # fmt: skip
        with self._database.read() as connection:
            rows = connection.execute(unsettled).all()
        found = [FailedJobs(type_ or "unknown", store, count, first) for type_, store, count, first in rows]
        return sorted(found, key=lambda each: (-each.count, each.error, each.store or ""))

    def last_runs(self, kinds: Sequence[str], *, now: datetime) -> dict[str, LastRun]:
        """Return the last run of each of these kinds of sweep that has left a row in the ledger.

        A run of a single store or prefix, by hand, says nothing about the others, and counts only if there is no other.
        So does one of a clock that was ahead: it would hide the runs since that was put right.
        """
        found = {}
        with self._database.read() as connection:
            for kind in kinds:
                runs = sa.select(jobs).where(jobs.c.kind == kind, SWEEPS).order_by(jobs.c.created_at.desc()).limit(1)
                begun = runs.where(jobs.c.created_at <= now + clock.SKEW)
                if (last := connection.execute(begun).first()) is None:
                    begun, last = runs, connection.execute(runs).first()
                whole = begun.where(*_WHOLE)
                if (row := connection.execute(whole).first() or last) is not None:
                    ended = connection.execute(whole.where(jobs.c.state.in_(_DECIDED))).first()
                    found[kind] = LastRun(
                        row.id, row.state, row.started_at, row.finished_at, row.result, row.error,
                        _ended_run(connection, ended) if ended else None,
                    )  # fmt: skip
        return found

    def _some(self, query: sa.Select[Any], limit: int) -> list[OverdueCopy]:
        with self._database.read() as connection:
            rows = connection.execute(query.limit(limit)).all()
        return [OverdueCopy(row.store, row.bucket, row.key, row.version, row.since) for row in rows]


def _waiting(state: sa.ColumnElement[str] = jobs.c.state) -> sa.Select[Any]:
    """Select the jobs that wait for a store, by store, with the columns of `WaitingJobs`."""
    store, reason, type_ = (jobs.c.error[name].as_string() for name in ("store", "message", "type"))
    until = sa.func.max(jobs.c.due_at, type_=jobs.c.due_at.type)
    refusal = sa.func.max(sa.case((type_ == _REFUSES, reason)))
    since = sa.func.min(jobs.c.put_off_since, type_=jobs.c.put_off_since.type)
    query = sa.select(store, sa.func.count(), until, sa.func.max(reason), refusal, since)
    return query.where(state.in_(WAITING_STATES), store.is_not(None)).group_by(store)


def _lacks_effect(job: Any) -> sa.ColumnElement[bool]:
    """Return the condition that no page, no repair and no other job has done what a failed job was to do."""
    # An id is no pattern of LIKE, where `_` is any character, and which ignores case in SQLite.
    reused_by = sa.cast(artifacts.c.reused_by, sa.Text)
    # A batch with a long id gives its pages and items another one, so that the item itself tells how they begin.
    of_batch = sa.func.rtrim(job.id, _NUMBER)
    is_item = sa.and_(job.parent.is_not(None), sa.func.length(job.id) == sa.func.length(of_batch) + _DIGITS)
    by_page = sa.or_(
        sa.and_(
            sa.func.rtrim(artifacts.c.job, _NUMBER) == of_batch,
            sa.func.length(artifacts.c.job) == sa.func.length(job.id),
        ),
        sa.func.replace(reused_by, sa.literal('"').concat(of_batch), "|").like(f'%|{"_" * _DIGITS}"%'),
    )
    named = sa.literal('"').concat(job.id).concat('"')
    uploaded = sa.or_(
        artifacts.c.committed_at > job.finished_at,
        artifacts.c.job == job.id,
        sa.func.replace(reused_by, named, "") != reused_by,
        sa.and_(is_item, by_page),  # the page that the item has left recorded its version
    )
    copy = sa.exists().where(copies.c.artifact_id == artifacts.c.id).correlate_except(copies)
    read = copy.where(copies.c.store == job.store, copies.c.read_at > job.finished_at, copies.c.state.in_(GOOD))
    done = sa.case(
        (job.kind == UPLOAD.kind, uploaded),
        (job.kind.in_([REPLICATE.kind, VERIFY.kind, ADOPT.kind]), read),
        else_=sa.false(),
    )
    # An unfinished copy may be what the job was to write, also after an error of the store that it read from.
    unfinished = sa.and_(job.kind != VERIFY.kind, copy.where(copies.c.state == CopyState.WRITING))
    # A delete also removes older versions, what is in its grace, and what a killed job has begun to write.
    of_key = sa.select(artifacts.c.id).where(artifacts.c.bucket == job.bucket, artifacts.c.key == job.key)
    there = of_key.where(copy.where(copies.c.state.not_in(GONE))).correlate_except(artifacts).exists()
    # The condition that decides most jobs comes first: a store that refuses everything leaves all copies unfinished.
    has_effect = of_key.where(~unfinished, *CURRENT, done).correlate_except(artifacts).exists()
    return sa.and_(~has_effect, sa.or_(job.kind != DELETE.kind, there))


def _ended_run(connection: sa.Connection, run: sa.Row[Any]) -> EndedRun:
    """Return a run that succeeded or failed, with the time since which runs have failed in a row."""
    if run.state == JobState.SUCCEEDED:
        return EndedRun(run.id, None, run.result, run.error)
    began = jobs.c.created_at
    runs = [SWEEPS, jobs.c.kind == run.kind, *_WHOLE, began <= run.created_at]
    succeeded = sa.select(began).where(*runs, jobs.c.state == JobState.SUCCEEDED).order_by(began.desc()).limit(1)
    first = sa.select(sa.func.min(jobs.c.finished_at, type_=began.type)).where(*runs, jobs.c.state == JobState.FAILED)
    if (good := connection.execute(succeeded).scalar()) is not None:
        first = first.where(began > good)
    return EndedRun(run.id, connection.execute(first).scalar(), run.result, run.error)
