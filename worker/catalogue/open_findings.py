"""The open findings: bad, unreadable and overdue copies, lost artifacts, and what part of each store was read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from worker.catalogue.artifacts import FIRST_READS, SPREADS
from worker.catalogue.database import Database
from worker.catalogue.records import CopyState
from worker.catalogue.tables import artifacts, copies, jobs
from zot_artifact_client.contract import REPLICATE, JobState

BAD = (CopyState.CORRUPT, CopyState.MISSING, CopyState.SIZE_MISMATCH)
"""The states that two independent reads have confirmed."""

_GOOD = [state for state in CopyState if state.good]
_OPEN_JOBS = [state for state in JobState if not state.terminal]
_newer = artifacts.alias("newer")
_other = copies.alias("other")
CURRENT = (
    artifacts.c.committed_at.is_not(None),
    artifacts.c.tombstoned_at.is_(None),
    ~sa.exists().where(
        _newer.c.bucket == artifacts.c.bucket,
        _newer.c.key == artifacts.c.key,
        _newer.c.version > artifacts.c.version,
        _newer.c.committed_at.is_not(None),
    ),
)
"""True for the newest committed version of an artifact that was not deleted."""
_NO_GOOD_COPY = ~sa.exists().where(_other.c.artifact_id == artifacts.c.id, _other.c.state.in_(_GOOD))
_NAMES = (artifacts.c.bucket, artifacts.c.key, artifacts.c.version, copies.c.store)


@dataclass(frozen=True, slots=True)
class OpenFinding:
    """A copy that is bad, unreadable or overdue. `since`: its last attempt; if overdue, its last full read or write."""

    store: str
    bucket: str
    key: str
    version: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many copies of a store have been read.

    `read`: fully, within the period. `recent`: fully, within the last hours that were asked for. `never`: not since
    they were written. `unreadable`: the last attempt had no answer. A copy that was found bad counts as read.
    """

    read: int
    recent: int
    never: int
    unreadable: int
    oldest_read_at: datetime | None


class OpenFindings:
    """The open findings of the catalogue. Every question about one store is answered from an index."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bad(self, store: str, state: CopyState, *, limit: int) -> list[OpenFinding]:
        """Return some copies of a store in one state, those that were verified longest ago first."""
        query = (
            _findings(copies.c.last_attempt_at)
            .where(copies.c.store == store, copies.c.state == state)
            .order_by(copies.c.last_verified_at)
        )
        return self._some(query, limit)

    def unreadable(self, store: str, *, limit: int) -> list[OpenFinding]:
        """Return some copies of a store whose last attempt had no answer, the next to be retried first."""
        query = (
            _findings(copies.c.last_attempt_at)
            .where(copies.c.store == store, copies.c.next_due_at.is_not(None))
            .order_by(copies.c.next_due_at)
        )
        return self._some(query, limit)

    def overdue(self, store: str, *, period: timedelta, now: datetime, limit: int) -> list[OpenFinding]:
        """Return some copies of a store that were not read fully for longer than `period`, the oldest first."""
        late = _findings(copies.c.read_at).where(copies.c.store == store, copies.c.read_at <= now - period)
        found = self._some(late.where(copies.c.next_due_at.is_not(None)), limit)
        for spread in range(SPREADS):
            of = late.where(copies.c.spread == spread, copies.c.next_due_at.is_(None))
            found += self._some(of.order_by(copies.c.read_at), limit)
        return sorted(found, key=lambda each: each.since or now)[:limit]

    def lost(self, stores: Sequence[str], *, limit: int) -> list[OpenFinding]:
        """Return up to `limit` current artifacts of which a copy is bad and no copy is good, once each."""
        query = (
            sa.select(
                artifacts.c.bucket, artifacts.c.key, artifacts.c.version,
                sa.func.min(copies.c.store).label("store"), sa.func.min(copies.c.last_attempt_at).label("since"),
            )
            .join(copies, copies.c.artifact_id == artifacts.c.id)
            .where(copies.c.store.in_(stores), copies.c.state.in_(BAD), _NO_GOOD_COPY, *CURRENT)
            .group_by(artifacts.c.id, artifacts.c.bucket, artifacts.c.key, artifacts.c.version)
        )  # fmt: skip
        return self._some(query, limit)

    def coverage(self, store: str, *, period: timedelta, recent: timedelta, now: datetime) -> Coverage:
        """Return how many copies of a store have been read within `period`, and within the time `recent`."""
        count = sa.select(sa.func.count()).where(copies.c.store == store)
        oldest = sa.select(sa.func.min(copies.c.read_at)).where(copies.c.store == store, copies.c.read_at.is_not(None))
        retry = copies.c.next_due_at.is_not(None)
        with self._database.read() as connection:

            def counted(of: sa.Select[Any], *, again: bool) -> int:
                """Count by a search of the index for each `spread`, and the unreadable ones by theirs."""
                spreads = range(FIRST_READS, SPREADS) if again else range(FIRST_READS)
                each = [
                    connection.execute(of.where(copies.c.spread == spread, copies.c.next_due_at.is_(None))).scalar_one()
                    for spread in spreads
                ]
                unread = of.where(retry, copies.c.spread.in_(list(spreads)))
                found: int = sum(each, connection.execute(unread).scalar_one())
                return found

            of_reads = [oldest.where(copies.c.spread == s, ~retry) for s in range(FIRST_READS, SPREADS)]
            of_reads.append(oldest.where(retry, copies.c.spread >= FIRST_READS))
            moments = [connection.execute(query).scalar() for query in of_reads]
            return Coverage(
                read=counted(count.where(copies.c.read_at > now - period), again=True),
                recent=counted(count.where(copies.c.read_at > now - recent), again=True),
                never=counted(count.where(copies.c.read_at.is_not(None)), again=False),
                unreadable=connection.execute(count.where(retry)).scalar_one(),
                oldest_read_at=min((moment for moment in moments if moment), default=None),
            )

    def jobs(self) -> tuple[int, int]:
        """Return how many replications are open, and how many jobs are dead letters."""
        count = sa.select(sa.func.count()).select_from(jobs)
        repairs = count.where(jobs.c.state.in_(_OPEN_JOBS), jobs.c.kind == REPLICATE.kind)
        dead = count.where(jobs.c.state == JobState.DEAD)
        with self._database.read() as connection:
            return connection.execute(repairs).scalar_one(), connection.execute(dead).scalar_one()

    def _some(self, query: sa.Select[Any], limit: int) -> list[OpenFinding]:
        with self._database.read() as connection:
            rows = connection.execute(query.limit(limit)).all()
        return [OpenFinding(row.store, row.bucket, row.key, row.version, row.since) for row in rows]


def _findings(since: sa.ColumnElement[datetime]) -> sa.Select[Any]:
    return sa.select(*_NAMES, since.label("since")).join(copies, copies.c.artifact_id == artifacts.c.id)
