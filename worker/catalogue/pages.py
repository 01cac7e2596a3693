"""Pages: the objects of each that have no outcome yet, and the outcomes of the others.

A group of outcomes is one transaction, under the fencing token of the page's job: verdicts, copies and the page's own
row change together. So a page that is delivered again does not repeat what is recorded.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter
from types import TracebackType
from typing import Any, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.adoptions import ADOPTED_AFTER_DELETE, Adoption, OtherVersion, record_adoptions
from worker.catalogue.artifacts import FinishedCopy, delete_copies, finish_copies, tombstone_all
from worker.catalogue.budgets import BudgetState, change_budget
from worker.catalogue.bulk import by_bucket, one_of
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import CatalogueError, Database, Queries
from worker.catalogue.findings import note_action
from worker.catalogue.holds import OnHold
from worker.catalogue.records import NEW_JOB, OPEN_STATES, Artifact, Copy, CopyState, VerdictRow
from worker.catalogue.sweep_claims import claim_due_copies, due_copies
from worker.catalogue.tables import artifacts, batches, copies, jobs, pages, verifications
from worker.catalogue.verifications import PreparedVerdicts, append_verdicts, prepare_verdicts
from worker.storage import Digest
from zot_artifact_client.contract import JobState

_ENDED = [state for state in JobState if state.terminal and state != JobState.DEAD]
_AT_ONCE = 500
MOST_WAITING = 4
"""Groups that wait for another writer at most, before the page waits with them."""
_WRITTEN = 2
"""Groups that one transaction has at most: a longer one would keep the jobs of users waiting."""
_RECENT_PAGES = 200
"""Pages from which the rate of a store is computed."""

_run = jobs.alias("run")
_WAITS = sa.and_(jobs.c.state == JobState.QUEUED, jobs.c.started_at.is_(None))
_OF_SWEEP = jobs.c.request["claim"].as_string().is_not(None)
_FIND = Prepared(sa.select(pages).where(pages.c.job == sa.bindparam("of")))
_INSERT = Prepared(sa.insert(pages))
_UPDATE = Prepared(
    sa.update(pages)
    .where(pages.c.job == sa.bindparam("of"))
    .values(
        open=sa.bindparam("still"), bytes=sa.bindparam("size"), outcomes=sa.bindparam("counts"),
        failures=sa.bindparam("failed"), left=sa.bindparam("leaving"), not_kept=sa.bindparam("lost"),
    )
)  # fmt: skip
_COPIES = (
    sa.select(
        copies.c.id, copies.c.store, copies.c.state, copies.c.artifact_id, copies.c.tag,
        artifacts.c.bucket, artifacts.c.key, artifacts.c.version, artifacts.c.size, artifacts.c.sha256,
    )
    .join(artifacts, artifacts.c.id == copies.c.artifact_id)
)  # fmt: skip
_CLAIMED = Prepared(
    _COPIES.where(
        one_of(copies.c.id, sa.bindparam("ids")), copies.c.claimed_until.is_not_distinct_from(sa.bindparam("until"))
    )
)
_COPIES_OF = Prepared(_COPIES.where(one_of(copies.c.artifact_id, sa.bindparam("ids"))).order_by(copies.c.store))
_PRESENT = frozenset(state.value for state in CopyState if state.present)


class PageCopy(NamedTuple):
    """A copy that a page verifies, and the version that it is a copy of."""

    id: int
    store: str
    state: str
    artifact_id: int
    tag: str | None
    bucket: str
    key: str
    version: int
    size: int
    sha256: str

    @property
    def path(self) -> str:
        return f"{self.bucket}/{self.key}"

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self.sha256)


class PageOutcome(NamedTuple):
    """The outcome of one object of a page, in one word.

    `failure`: why it failed, None if it did not. `left`: it leaves the page as a job of its own, without an outcome.
    """

    id: int
    path: str
    size: int
    outcome: str
    failure: str | None = None
    left: bool = False

    @classmethod
    def leaves(cls, id_: int, path: str, size: int) -> Self:
        """Return that an object leaves its page."""
        return cls(id_, path, size, "left", left=True)


@dataclass(frozen=True, slots=True)
class Group:
    """What one transaction of a page records: outcomes, and what follows from them."""

    outcomes: Sequence[PageOutcome]
    verdicts: Sequence[VerdictRow] = ()
    finished: Sequence[FinishedCopy] = ()
    deleted: Sequence[Copy] = ()
    tombstoned: Sequence[Artifact] = ()
    not_kept: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By store, what it does not keep beside the bytes of some of the objects."""


@dataclass(frozen=True, slots=True)
class Page:
    """The progress of a page. `open` are the objects without an outcome, in the order of the page."""

    job: str
    claimed_until: datetime | None
    open: Sequence[int]
    bytes: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    failures: Sequence[Mapping[str, str]] = ()
    left: Sequence[str] = ()
    not_kept: Mapping[str, Sequence[str]] | None = None
    """By store, what it does not keep beside the bytes of some of the objects; None if all is kept."""

    @property
    def objects(self) -> int:
        """Return how many objects have an outcome."""
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class PlannedPage:
    """The job of a page. `waits`: no worker has leased it, and it has not ended.

    `objects`: what the page works on, where the planner has claimed that until `claimed_until`. `findings`: the copies
    about whose findings it is begun, by store, bucket and key.
    """

    job: str
    request: Mapping[str, Any]
    waits: bool = True
    objects: Sequence[int] | None = None
    claimed_until: datetime | None = None
    findings: Sequence[tuple[str, str, str]] = ()


class Share(NamedTuple):
    """Which copies a page reads within the budget of its store, and which no budget of a day or month has room for.

    The latter are due again `later`.
    """

    read: Collection[int]
    never: Sequence[int]
    later: datetime


BudgetShare = Callable[[BudgetState, Sequence[PageCopy]], tuple[BudgetState, Share]]
"""Returns the state of a budget after a page has taken its share for some of these copies."""


class Pages(Queries):
    """The pages whose jobs have not ended, by the ids of their jobs."""

    def get(self, job: str) -> Page | None:
        """Return the progress of a page, or None if it has not begun."""
        with self._database.read() as connection:
            row = _FIND.first(connection, of=job)
        return Page(*row) if row else None

    def begin(self, job: str, objects: Sequence[int]) -> Page:
        """Record the objects of a page, by ids or numbers; a power cut may undo it."""
        page = Page(job, None, list(objects))
        with self._database.write(durable=False) as connection:
            _insert(connection, page)
        return page

    def claim_due(
        self,
        job: str,
        store: str,
        *,
        period: timedelta,
        first_read: timedelta | None = None,
        now: datetime,
        until: datetime,
        limit: int,
        ahead: float = 1,
        share: BudgetShare | None = None,
    ) -> Page:
        """Claim copies of a store that are due, in the order of `due_copies`, and record them as the objects of a page.

        A claim keeps other pages away until a verdict is recorded, or until `until`. `ahead`: see `AHEAD`. `share`
        takes what they cost from the budget of the store, in the same transaction: no death leaves a page whose reads
        are not counted. Without it a power cut may undo the claim, and the page claims again.
        """
        claimed: list[int] = []
        while True:
            room = limit - len(claimed)
            with self._database.read() as connection:  # a read finds what is due, so that no writer waits for it
                wanted = due_copies(
                    connection, store, period=period, first_read=first_read, now=now, until=until, limit=room,
                    ahead=ahead,
                )  # fmt: skip
            with self._database.write(durable=share is not None) as connection:
                got = claim_due_copies(
                    connection, wanted, period=period, first_read=first_read, now=now, until=until, ahead=ahead
                )
                claimed += got
                if len(got) == len(wanted) or len(claimed) >= limit:  # no other page has claimed it meanwhile
                    page = Page(job, until, claimed)
                    if share is not None:
                        page = _within_budget(connection, page, store, share, now)
                    _insert(connection, page)
                    return page

    def claimed_copies(self, page: Page) -> list[PageCopy]:
        """Return the open copies of a page that are still claimed by it, in the order of the page."""
        with self._database.read() as connection:
            return _claimed_copies(connection, page)

    def copies_of(self, artifact_ids: Sequence[int]) -> dict[int, list[PageCopy]]:
        """Return the copies of these versions that their stores should have, by version, in the order of the stores."""
        found: dict[int, list[PageCopy]] = {}
        with self._database.read() as connection:
            rows = _COPIES_OF.tuples(connection, ids=artifact_ids)
        for copy in map(PageCopy._make, rows):
            if copy.state in _PRESENT:
                found.setdefault(copy.artifact_id, []).append(copy)
        return found

    def verdicts_by(
        self, job: str, paths: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str, str, int], tuple[str, str | None]]:
        """Return the verdicts that a page has recorded on objects, given by bucket and key, with their details.

        They are by store, bucket, key and version.
        """
        row = verifications.c
        verdicts: dict[tuple[str, str, str, int], tuple[str, str | None]] = {}
        query = sa.select(row.store, row.bucket, row.key, row.version, row.verdict, row.detail).where(row.job == job)
        with self._database.read() as connection:
            for bucket, keys in by_bucket(paths):
                rows = connection.execute(query.where(row.bucket == bucket, one_of(row.key, keys)))
                verdicts |= {tuple(found[:4]): (found[4], found[5]) for found in rows}
        return verdicts

    def progress_of(self, job_ids: Sequence[str]) -> tuple[int, int]:
        """Return how many objects of these pages have an outcome, and their bytes."""
        query = sa.select(pages.c.outcomes, pages.c.bytes).where(pages.c.job.in_(job_ids))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return sum(sum(outcomes.values()) for outcomes, _ in rows), sum(size for _, size in rows)

    def record(self, page: Page, group: Group, *, now: datetime, durable: bool = True) -> Page:
        """Record a group of outcomes, and what follows from them, in one transaction; return the page after it.

        Without `durable`, a power cut may undo it until the end of the page's job is recorded: only for objects that
        the next attempt may do again.

        Raises:
            LostLease: another worker has the lease; nothing was written.
        """
        after, verdicts = _after(page, group.outcomes, group.not_kept), prepare_verdicts(group.verdicts, now)
        with self._database.write(durable=durable) as connection:
            finish_copies(connection, group.finished, now)
            append_verdicts(connection, verdicts)  # after the writes: a copy that was read back is verified
            delete_copies(connection, group.deleted)
            tombstone_all(connection, group.tombstoned, now)
            _UPDATE.run(connection, **_progress(after))
        return after

    def adopt(
        self,
        page: Page,
        outcomes: Sequence[PageOutcome],
        adopted: Sequence[tuple[PageOutcome, Adoption]],
        *,
        now: datetime,
    ) -> tuple[Page, list[Artifact | None]]:
        """Record objects as copies, with their outcomes and those of others, in one transaction.

        An object that is held has failed. One whose artifact has got another version meanwhile leaves the page.

        Returns:
            The page after it, and the version of each object that was adopted, or None.

        Raises:
            LostLease: another worker has the lease; nothing was written.
        """
        found: list[Artifact | None] = []
        with self._database.write() as connection:
            ended, recorded = list(outcomes), record_adoptions(connection, [each for _, each in adopted], now)
            for (outcome, adoption), result in zip(adopted, recorded, strict=True):
                found.append(result if isinstance(result, Artifact) else None)
                if isinstance(result, OtherVersion):
                    ended.append(outcome._replace(left=True))
                elif isinstance(result, OnHold):
                    ended.append(outcome._replace(outcome=type(result).__name__, failure=str(result)))
                elif adoption.is_after_delete(result):
                    ended.append(outcome._replace(outcome=ADOPTED_AFTER_DELETE))
                else:
                    ended.append(outcome)
            after = _after(page, ended)
            _UPDATE.run(connection, **_progress(after))
        return after, found

    def recorder(self, page: Page) -> "VerdictRecorder":
        """Return what records the verdicts of a page while the page reads on."""
        return VerdictRecorder(self._database, page)

    def release(self, page: Page, ids: Sequence[int]) -> Page:
        """Give up claimed copies of a page, so that another page can claim them at once."""
        with self._database.write() as connection:
            after = _released(connection, page, ids)
            _UPDATE.run(connection, **_progress(after))
        return after

    def remove_ended(self) -> None:
        """Delete the pages whose jobs have ended; one without success stays until its batch has counted it.

        What a page of a sweep has left undone, because it was cancelled or has failed, can be claimed again at once.
        A dead one stays, because it continues when it is redriven.
        """
        counting = sa.exists().where(batches.c.job == jobs.c.parent, batches.c.open.is_(True))
        counted = sa.or_(jobs.c.state == JobState.SUCCEEDED, sa.and_(jobs.c.state.in_(_ENDED), ~counting))
        ended = sa.select(pages, jobs.c.request).join(jobs, jobs.c.id == pages.c.job).where(counted)
        with self._database.read() as connection:
            ids = [row.job for row in connection.execute(ended.limit(_AT_ONCE))]
        if ids:
            with self._database.write() as connection:
                rows = connection.execute(ended.where(pages.c.job.in_(ids))).all()  # none that was redriven meanwhile
                for *values, request in rows:
                    _release_claims(connection, Page(*values), request)
                connection.execute(sa.delete(pages).where(pages.c.job.in_([row.job for row in rows])))

    def dead_of_sweeps(self, *, limit: int) -> list[tuple[Page, Mapping[str, Any]]]:
        """Return dead pages that a sweep has sent, each with its request. Those of a batch are the batch's to count."""
        query = sa.select(pages, jobs.c.request).join(jobs, jobs.c.id == pages.c.job)
        with self._database.read() as connection:
            rows = connection.execute(query.where(jobs.c.state == JobState.DEAD, _OF_SWEEP).limit(limit)).all()
        return [(Page(*row[:-1]), row[-1]) for row in rows]

    def remove(self, job: str) -> None:
        """Delete a dead page whose objects have jobs of their own, unless it was redriven meanwhile."""
        with self._database.write() as connection:
            if end_split(connection, [job]):
                connection.execute(sa.delete(pages).where(pages.c.job == job))

    # Planning

    def plan(
        self, parent: str, planned: Sequence[PlannedPage], *, queue: str, due: datetime | None, now: datetime
    ) -> None:
        """Accept the jobs of pages into the ledger, in one transaction. `due`: see `BatchItemKind`."""
        if planned:
            with self._database.write() as connection:
                self.accept(connection, parent, planned, queue=queue, due=due, now=now)

    @staticmethod
    def accept(
        connection: Connection, parent: str, planned: Sequence[PlannedPage], *, queue: str, due: datetime | None,
        now: datetime,
    ) -> None:  # fmt: skip
        """Do as `plan`, in the transaction that claims what the pages work on: no death leaves a claim without one."""
        accepted = {**NEW_JOB, "kind": "page", "parent": parent, "created_at": now, "queue": queue, "due_at": due}
        rows = [accepted | {"id": page.job, "request": dict(page.request)} for page in planned]
        connection.execute(sa.insert(jobs), rows)
        for page in planned:
            if page.objects is not None:
                _insert(connection, Page(page.job, page.claimed_until, list(page.objects)))
            note_action(connection, dict.fromkeys(page.findings, page.job), page.request["verb"], now)

    def planned_by(self, parent: str) -> list[PlannedPage]:
        """Return the pages that a job has planned, in the order of their ids."""
        query = (
            sa.select(jobs.c.id, jobs.c.request, _WAITS)
            .where(jobs.c.parent == parent, jobs.c.kind == "page")  # earlier versions sent jobs for copies, too
            .order_by(jobs.c.id)
        )
        with self._database.read() as connection:
            return [PlannedPage(id_, request, waits) for id_, request, waits in connection.execute(query)]

    def sweeps_with_waiting_pages(self, *, before: datetime) -> list[str]:
        """Return the sweeps whose pages were planned before then, wait for a worker, and have no due time.

        A batch finds out by itself which of its pages have no message.
        """
        query = sa.select(jobs.c.parent).where(
            jobs.c.kind == "page", _WAITS, jobs.c.due_at.is_(None), jobs.c.created_at < before, _OF_SWEEP
        )
        with self._database.read() as connection:
            return list(connection.execute(query.distinct()).scalars())

    def set_due(self, sweep: str, due: datetime) -> None:
        """Let the waiting pages of a sweep that have no due time be sent again at a moment."""
        waiting = (jobs.c.parent == sweep, jobs.c.kind == "page", _WAITS, jobs.c.due_at.is_(None))
        with self._database.write() as connection:
            connection.execute(sa.update(jobs).where(*waiting).values(due_at=due))

    def read_rate(self, store: str, *, since: datetime) -> float | None:
        """Return how many copies a second the pages of sweeps have read that ended since then, or None without one.

        Only the time in which such a page ran counts, whatever number of workers ran them.
        """
        row = jobs.c
        query = (
            sa.select(row.request, row.result, row.started_at, row.finished_at)
            # concat: not by the index of states, of which all succeeded jobs would be sorted
            .where(row.finished_at >= since, row.kind == "page", row.state.concat("") == JobState.SUCCEEDED)
            .order_by(row.finished_at.desc())
            .limit(_RECENT_PAGES)
        )
        with self._database.read() as connection:
            ended = connection.execute(query).all()
        copies_read, busy, earliest = 0, timedelta(), None
        for request, result, started, finished in ended:  # the last one first
            if request["verb"] != "verify" or (request.get("claim") or {}).get("store") != store or started is None:
                continue
            copies_read += (result or {}).get("objects", 0)
            busy += max(min(finished, earliest or finished) - started, timedelta())
            earliest = min(started, earliest or started)
        return copies_read / busy.total_seconds() if busy else None

    def open_by_store(self, sweep: str) -> Counter[str]:
        """Return how many pages wait or run that the runs of a sweep, as `sweep.verify`, have planned, by store."""
        query = sa.select(jobs.c.request["claim"]["store"].as_string()).join(_run, _run.c.id == jobs.c.parent)
        of_sweep = (jobs.c.kind == "page", jobs.c.state.in_(OPEN_STATES), _run.c.kind == sweep)
        with self._database.read() as connection:
            return Counter(connection.execute(query.where(*of_sweep)).scalars())


class VerdictRecorder:
    """Records the verdicts of one page in groups, while the page reads on. A context manager.

    While another transaction writes, groups wait, up to `MOST_WAITING` of them, and one transaction has up to two. At
    the end of the context all groups are recorded, also where it ends by an error, unless the catalogue itself has
    failed. None waits for the disk: the flush at the end of the job, or of its attempt, makes them durable, too. A
    power cut before that costs verdicts, whose copies stay due.
    """

    def __init__(self, database: Database, page: Page) -> None:
        self._database = database
        self.page = page
        """The page after all groups, also those that wait."""
        self._waiting: list[tuple[Page, PreparedVerdicts]] = []
        """Groups, each with the page after it."""
        self._sure = True
        """Whether it is known what is written. If not, nothing more is, because that would skip objects of the page."""

    def add(self, outcomes: Sequence[PageOutcome], verdicts: Sequence[VerdictRow], *, now: datetime) -> None:
        """Record a group, now or with the next one.

        Raises:
            LostLease: another worker has the lease; this group, and those that waited, were not written.
            CatalogueError: this group or an earlier one could not be written.
        """
        self.page = _after(self.page, outcomes)
        self._waiting.append((self.page, prepare_verdicts(verdicts, now)))
        self._write(wait=len(self._waiting) >= MOST_WAITING)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, CatalogueError):
            return
        while self._sure and self._waiting:
            self._write(wait=True)

    def _write(self, *, wait: bool) -> None:
        """Write the first groups in one transaction; without `wait`, only if no other transaction writes now."""
        if not self._sure:
            return
        self._sure = False  # until the end, where no error or signal has come between
        written = 0
        with self._database.write(durable=False) if wait else self._database.write_if_free() as connection:
            if connection is not None:
                written = self._append(connection)
        self._waiting = self._waiting[written:]
        self._sure = True

    def _append(self, connection: Connection) -> int:
        groups = self._waiting[:_WRITTEN]
        for _, verdicts in groups:
            append_verdicts(connection, verdicts)
        _UPDATE.run(connection, **_progress(groups[-1][0]))
        return len(groups)


def _claimed_copies(connection: Connection, page: Page) -> list[PageCopy]:
    rows = _CLAIMED.tuples(connection, ids=page.open, until=page.claimed_until)
    found = {row[0]: PageCopy._make(row) for row in rows}
    return [found[id_] for id_ in page.open if id_ in found]


def _within_budget(connection: Connection, page: Page, store: str, share: BudgetShare, now: datetime) -> Page:
    """Take what the copies of a page cost from the budget of their store, and release those that are too many."""
    claimed = _claimed_copies(connection, page)
    read, never, later = change_budget(connection, store, lambda state: share(state, claimed), now)
    page = _released(connection, page, never, due=later)
    return _released(connection, page, [id_ for id_ in page.open if id_ not in read])


def _released(connection: Connection, page: Page, ids: Sequence[int], *, due: datetime | None = None) -> Page:
    """Give up claimed copies of a page, so that another page can claim them at once, or when they are `due`."""
    if not ids:
        return page
    gone = set(ids)
    later = {} if due is None else {"next_due_at": due}
    _end_claims(connection, page, ids, one_of(copies.c.id, sa.bindparam("ids")), **later)
    return replace(page, open=[id_ for id_ in page.open if id_ not in gone])


def _release_claims(connection: Connection, page: Page, request: Mapping[str, Any]) -> None:
    """End the claims on what a page has not done: its objects are copies to verify, or artifacts that lack a copy."""
    if page.claimed_until is None or not page.open or not request.get("claim"):
        return
    object_ = copies.c.id if request["verb"] == "verify" else copies.c.artifact_id
    of_store = sa.and_(one_of(object_, sa.bindparam("ids")), copies.c.store == request["claim"]["store"])
    _end_claims(connection, page, page.open, of_store)


def _end_claims(
    connection: Connection, page: Page, ids: Sequence[int], of: sa.ColumnElement[bool], **changed: datetime
) -> None:
    """End those claims of a page that are on the copies of these ids."""
    ours = sa.and_(of, copies.c.claimed_until == page.claimed_until)
    connection.execute(sa.update(copies).where(ours).values(claimed_until=None, **changed), {"ids": list(ids)})


def _progress(page: Page) -> dict[str, Any]:
    return {
        "of": page.job, "still": page.open, "size": page.bytes, "counts": page.outcomes, "failed": page.failures,
        "leaving": page.left, "lost": page.not_kept,
    }  # fmt: skip


def _insert(connection: Connection, page: Page) -> None:
    _INSERT.run(
        connection, job=page.job, claimed_until=page.claimed_until, open=page.open, bytes=page.bytes,
        outcomes=page.outcomes, failures=page.failures, left=page.left, not_kept=page.not_kept,
    )  # fmt: skip


def _after(page: Page, outcomes: Sequence[PageOutcome], not_kept: Mapping[str, Sequence[str]] | None = None) -> Page:
    """Return the page with these outcomes counted, and with what the stores do not keep of their objects."""
    ended = {each.id for each in outcomes}
    counted = [each for each in outcomes if not each.left]
    failures = [
        {"path": each.path, "outcome": each.outcome, "message": each.failure}
        for each in counted
        if each.failure is not None
    ]
    return replace(
        page,
        open=[id_ for id_ in page.open if id_ not in ended],
        bytes=page.bytes + sum(each.size for each in counted),
        outcomes=dict(Counter(page.outcomes) + Counter(map(attrgetter("outcome"), counted))),
        failures=[*page.failures, *failures],
        left=[*page.left, *(each.path for each in outcomes if each.left)],
        not_kept=_joined(page.not_kept or {}, not_kept or {}) or None,
    )


def _joined(some: Mapping[str, Sequence[str]], more: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    names = {store: sorted({*some.get(store, ()), *more.get(store, ())}) for store in {**some, **more}}
    return {store: each for store, each in names.items() if each}


def end_split(connection: Connection, ids: Sequence[str]) -> int:
    """Record that dead pages have failed, because their objects have jobs of their own: nothing is left to redrive.

    Returns how many of them were dead.
    """
    dead = sa.update(jobs).where(jobs.c.id.in_(ids), jobs.c.state == JobState.DEAD)
    return connection.execute(dead.values(state=JobState.FAILED)).rowcount
