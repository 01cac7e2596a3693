"""Reconciliation: where listings and catalogue differ, remembered from one run to the next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.bulk import upserts
from worker.catalogue.database import Queries
from worker.catalogue.key_ranges import begins_with, following
from worker.catalogue.records import GONE, CopyState, FindingKind
from worker.catalogue.tables import artifacts, copies, findings, reconcile_runs, reconcile_sightings

_PAGE = 1000

_RECORDED = (
    sa.select(
        artifacts.c.key, artifacts.c.version, artifacts.c.size, copies.c.state, copies.c.read_at,
    )
    .join(copies, copies.c.artifact_id == artifacts.c.id)
    .where(
        artifacts.c.bucket == sa.bindparam("of"), copies.c.store == sa.bindparam("at"), copies.c.state.not_in(GONE),
    )
    .order_by(artifacts.c.key, artifacts.c.version)
    .limit(_PAGE)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordedCopy:
    """A copy that a store should have under a key, or that is being written there."""

    key: str
    version: int
    size: int
    state: CopyState
    read_at: datetime | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A key at which the listing and the catalogue differ. `version` is 0 and `size` that of the object of an orphan.

    Otherwise `size` is the size that the store lists, None of a missing object.
    """

    bucket: str
    key: str
    kind: FindingKind
    version: int
    size: int | None
    first_run: datetime | None = None


@dataclass(frozen=True, slots=True)
class SettledFinding:
    """An open finding that a listing no longer shows."""

    id: int
    kind: FindingKind
    bucket: str
    key: str


@dataclass(slots=True)
class ReconcileRun:
    """One run over a store: where it is, and what it has counted. `scope`: a bucket and a prefix, empty for all."""

    store: str
    scope: str
    run: datetime
    bucket: str = ""
    after: str = ""
    listed: int = 0
    recorded: int = 0
    found: dict[str, int] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    """How many keys differ as a verdict has recorded already, by state; of the part of the run in this process."""

    def count(self, kind: FindingKind) -> int:
        """Return how many keys of one kind the run has seen."""
        return self.found.get(kind, 0)


class Reconciliations(Queries):
    """The runs and what they have seen; a difference counts when two runs have seen it."""

    def begin(
        self, store: str, scope: str, *, now: datetime, within: timedelta, since: datetime, at: datetime | None = None
    ) -> ReconcileRun:
        """Begin a run, or continue with the one of this store and scope that was begun `within` this time, unfinished.

        One that was begun `since` the job was accepted continues, too, where it has finished: an earlier attempt has
        compared the store, and did not come to the end of the others.

        `at`: the time of an inventory report. It is that of the run, which always begins anew; the same report is the
        same run, so that it never counts as a second sighting.
        """
        row = reconcile_runs.c
        mine = sa.and_(row.store == store, row.scope == scope)
        with self._database.write() as connection:
            found = connection.execute(sa.select(reconcile_runs).where(mine)).one_or_none()
            goes_on = found and (found.finished_at is None or found.run >= since)
            if found and goes_on and at is None and now - within < found.run <= now:
                return ReconcileRun(
                    store, scope, found.run, found.bucket, found.after, found.listed, found.recorded, dict(found.found)
                )
            connection.execute(sa.delete(reconcile_runs).where(mine))
            begun = ReconcileRun(store, scope, at or now)
            connection.execute(sa.insert(reconcile_runs), _row(begun))
        return begun

    def recorded(self, store: str, bucket: str, prefix: str, after: str) -> Iterator[RecordedCopy]:
        """Yield the copies that a store should have of a bucket after a key, and those being written, by key."""
        while True:
            query = _RECORDED.where(*following(prefix, after))
            with self._database.read() as connection:
                rows = connection.execute(query, {"of": bucket, "at": store}).all()
            if len(rows) == _PAGE:  # the versions of its last key may go on in the next page
                last = rows[-1].key
                kept = [row for row in rows if row.key != last]
                rows = kept or rows
            yield from (RecordedCopy(row.key, row.version, row.size, CopyState(row.state), row.read_at) for row in rows)
            if not rows:
                return
            after = rows[-1].key

    def record(self, run: ReconcileRun, seen: Sequence[Sighting]) -> None:
        """Record what a part of a run has seen, and where the run is, in one transaction."""
        rows = [
            {"store": run.store, "bucket": each.bucket, "key": each.key, "kind": each.kind, "version": each.version,
             "size": each.size, "first_run": run.run, "last_run": run.run}
            for each in seen
        ]  # fmt: skip
        with self._database.write() as connection:
            if rows:
                connection.execute(_UPSERTS[connection.dialect.name], rows)
            _update(connection, run)

    def seen_twice(self, run: ReconcileRun, after: tuple[str, str]) -> list[Sighting]:
        """Return some of what this run has seen and an earlier one too, by bucket and key after the one given."""
        row = reconcile_sightings.c
        query = (
            sa.select(row.bucket, row.key, row.kind, row.version, row.size, row.first_run)
            .where(row.store == run.store, row.last_run == run.run, row.first_run < run.run)
            .where(sa.tuple_(row.bucket, row.key) > sa.tuple_(*after))
            .order_by(row.bucket, row.key)
            .limit(_PAGE)
        )
        with self._database.read() as connection:
            return [
                Sighting(bucket, key, FindingKind(kind), *rest)
                for bucket, key, kind, *rest in connection.execute(query)
            ]

    def settled(self, run: ReconcileRun, bucket: str | None, prefix: str, *, after: int = 0) -> list[SettledFinding]:
        """Return some open findings that the listing of this run no longer shows, within its scope, by id.

        A copy that a verdict has found bad stays a finding until another verdict or a write. So does what was seen
        after the run began, or after the inventory report that it has read.
        """
        row, seen = findings.c, reconcile_sightings.c
        still = sa.exists().where(
            seen.store == row.store, seen.bucket == row.bucket, seen.key == row.key, seen.last_run == run.run
        )
        judged = sa.exists().where(
            artifacts.c.bucket == row.bucket, artifacts.c.key == row.key, artifacts.c.version == row.version,
            copies.c.artifact_id == artifacts.c.id, copies.c.store == row.store, copies.c.state == row.kind,
        )  # fmt: skip
        kinds = [FindingKind.ORPHAN, FindingKind.MISSING, FindingKind.SIZE_MISMATCH]
        query = sa.select(row.id, row.kind, row.bucket, row.key).where(
            row.id > after,
            row.resolved_at.is_(None),
            row.kind.in_(kinds),
            row.store == run.store,
            row.last_seen_at <= run.run,
            ~still,
            ~judged,
        )
        if bucket is not None:
            query = query.where(row.bucket == bucket, *begins_with(row.key, prefix))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(row.id).limit(_PAGE)).all()
        return [SettledFinding(id_, FindingKind(kind), *where) for id_, kind, *where in rows]

    def end(self, run: ReconcileRun, outcome: str, *, counts: bool, now: datetime) -> None:
        """Record the end of a run. One that `counts` is what the next one is compared with; the other is forgotten."""
        row = reconcile_sightings.c
        bucket, _, prefix = run.scope.partition("/")
        scope = [row.bucket == bucket, *begins_with(row.key, prefix)] if run.scope else []
        stale = row.last_run < run.run if counts else row.first_run == run.run
        with self._database.write() as connection:
            connection.execute(sa.delete(reconcile_sightings).where(row.store == run.store, stale, *scope))
            _update(connection, run, finished_at=now, outcome=outcome[:500])


def _row(run: ReconcileRun) -> dict[str, object]:
    return {
        "store": run.store, "scope": run.scope, "run": run.run, "bucket": run.bucket, "after": run.after,
        "listed": run.listed, "recorded": run.recorded, "found": run.found,
    }  # fmt: skip


def _update(connection: Connection, run: ReconcileRun, **more: object) -> None:
    mine = sa.and_(reconcile_runs.c.store == run.store, reconcile_runs.c.scope == run.scope)
    connection.execute(sa.update(reconcile_runs).where(mine).values(**_row(run), **more))


def _seen_again(new: sa.ColumnCollection[str, Any]) -> dict[str, Any]:
    known = reconcile_sightings.c
    first = sa.case((known.kind == new.kind, known.first_run), else_=new.first_run)
    return {"kind": new.kind, "version": new.version, "size": new.size, "first_run": first, "last_run": new.last_run}


_UPSERTS = upserts(reconcile_sightings, ["store", "bucket", "key"], _seen_again)
