"""Canaries: objects of ours that are damaged on purpose, to measure how soon that is found and repaired."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import median

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker.catalogue.database import Queries
from worker.catalogue.records import Artifact, FindingKind
from worker.catalogue.tables import canaries, copies, findings
from worker.storage.keys import CANARY_BUCKET

CANARY_TIMES = timedelta(days=30)
"""For how long status, the report and the metrics show what canaries took."""


@dataclass(frozen=True, slots=True)
class CanaryRound:
    """One canary that was damaged. `damaged_at` is None until that is done; `closed_at` ends the round."""

    id: int
    store: str
    key: str
    begun_at: datetime
    damaged_at: datetime | None
    detected_at: datetime | None
    repaired_at: datetime | None
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class CanaryTimes:
    """How long canaries of a store took, in seconds, over `rounds` rounds; None where there was none."""

    store: str
    rounds: int
    open: bool
    last_damaged_at: datetime | None
    detect_seconds: float | None
    detect_longest: float | None
    repair_seconds: float | None
    repair_longest: float | None


class Canaries(Queries):
    """The rounds, the latest last. At most one is open for a store."""

    def last(self, store: str) -> CanaryRound | None:
        """Return the last round of a store, with what the findings say of it now."""
        query = sa.select(canaries).where(canaries.c.store == store).order_by(canaries.c.id.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _round_of(row)

    def begin(self, store: str, key: str, *, now: datetime) -> CanaryRound:
        """Record that a canary will be damaged: from here on its findings are those of a canary."""
        with self._database.write() as connection:
            made = sa.insert(canaries).values(store=store, key=key, begun_at=now).returning(canaries)
            return _round_of(connection.execute(made).one())

    def damaged(self, of: CanaryRound, artifact: Artifact, *, now: datetime) -> None:
        """Record that the bytes are damaged, and make the copy due, so that the next verify sweep reads it."""
        mine = sa.and_(copies.c.artifact_id == artifact.id, copies.c.store == of.store)
        with self._database.write() as connection:
            connection.execute(sa.update(canaries).where(canaries.c.id == of.id).values(damaged_at=now))
            connection.execute(sa.update(copies).where(mine).values(next_due_at=now))

    def observe(self, of: CanaryRound) -> CanaryRound:
        """Record when the damage was found and when it was repaired, from the finding, and return the round."""
        with self._database.read() as connection:
            seen = _seen(connection, of)
        if seen == of:
            return of
        values = {"detected_at": seen.detected_at, "repaired_at": seen.repaired_at}
        with self._database.write() as connection:
            connection.execute(sa.update(canaries).where(canaries.c.id == of.id).values(**values))
        return seen

    def close(self, of: CanaryRound, *, now: datetime) -> None:
        """End a round: the bytes of its canary are right again, and a finding about it counts as for any other copy."""
        with self._database.write() as connection:
            connection.execute(sa.update(canaries).where(canaries.c.id == of.id).values(closed_at=now))

    def times(self, *, since: datetime) -> list[CanaryTimes]:
        """Return how long the canaries of each store took that were damaged since a time."""
        query = sa.select(canaries).where(canaries.c.begun_at > since).order_by(canaries.c.store, canaries.c.id)
        with self._database.read() as connection:
            recorded = [_round_of(row) for row in connection.execute(query).all()]
            rounds = [each if each.closed_at else _seen(connection, each) for each in recorded]
        by_store: dict[str, list[CanaryRound]] = {}
        for each in rounds:
            by_store.setdefault(each.store, []).append(each)
        return [_times(store, some) for store, some in by_store.items()]

    def prune(self, *, before: datetime) -> None:
        """Forget rounds that were closed before a time."""
        with self._database.write() as connection:
            connection.execute(sa.delete(canaries).where(canaries.c.closed_at < before))


def _times(store: str, rounds: list[CanaryRound]) -> CanaryTimes:
    found = [(e.detected_at - e.damaged_at).total_seconds() for e in rounds if e.detected_at and e.damaged_at]
    repaired = [(e.repaired_at - e.detected_at).total_seconds() for e in rounds if e.repaired_at and e.detected_at]
    return CanaryTimes(
        store, len(rounds), rounds[-1].closed_at is None, rounds[-1].damaged_at,
        median(found) if found else None, max(found, default=None),
        median(repaired) if repaired else None, max(repaired, default=None),
    )  # fmt: skip


def _seen(connection: Connection, of: CanaryRound) -> CanaryRound:
    """Return a round with the times that its finding has."""
    if of.damaged_at is None:
        return of
    query = (
        sa.select(findings.c.opened_at, findings.c.resolved_at)
        .where(findings.c.kind == FindingKind.CANARY, findings.c.bucket == CANARY_BUCKET, findings.c.key == of.key)
        .where(findings.c.store == of.store, findings.c.opened_at >= of.damaged_at)
        .order_by(findings.c.id)
        .limit(1)
    )
    found = connection.execute(query).one_or_none()
    return of if found is None else replace(of, detected_at=found.opened_at, repaired_at=found.resolved_at)


def _round_of(row: Row[tuple[object, ...]]) -> CanaryRound:
    return CanaryRound(**dict(row._mapping))  # noqa: SLF001 - SQLAlchemy's public name
