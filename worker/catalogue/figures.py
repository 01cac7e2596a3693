"""The figures of the exporter: what is open, and what ended since it was last asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.catalogue.database import Queries
from worker.catalogue.records import OPEN_STATES
from worker.catalogue.tables import findings, jobs, pauses
from zot_artifact_client.contract import JobState

_MOST = 100_000
"""Dead letters and late jobs that are counted at most: a search of an index takes 50 ms for so many."""


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended. `seconds`: from its first start to its end; None if it never started."""

    kind: str
    state: str
    ended_at: datetime
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ResolvedFinding:
    """A finding that was resolved. `action`: what was begun about it. `seconds`: for how long it was open."""

    kind: str
    action: str
    resolved_at: datetime
    seconds: float


class Figures(Queries):
    """The questions of the exporter. Each is answered from an index, by as many rows as it returns or counts."""

    def ended_jobs(self, after: datetime, until: datetime, *, limit: int) -> list[EndedJob]:
        """Return jobs that ended later than `after` and at `until` at the latest, the earliest first."""
        row = jobs.c
        query = (
            sa.select(row.kind, row.state, row.finished_at, row.started_at)
            .where(row.finished_at > after, row.finished_at <= until)
            .order_by(row.finished_at)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                EndedJob(kind, state, ended, _seconds(began, ended) if began else None)
                for kind, state, ended, began in connection.execute(query)
            ]

    def resolved_findings(self, after: datetime, until: datetime, *, limit: int) -> list[ResolvedFinding]:
        """Return findings that were resolved later than `after` and at `until` at the latest, the earliest first."""
        row = findings.c
        query = (
            sa.select(row.kind, row.action, row.resolved_at, row.opened_at)
            .where(row.resolved_at > after, row.resolved_at <= until)
            .order_by(row.resolved_at)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [
                ResolvedFinding(kind, action or "none", resolved, _seconds(opened, resolved))
                for kind, action, resolved, opened in connection.execute(query)
            ]

    def open_jobs(self) -> Mapping[tuple[str, str], int]:
        """Return the number of open jobs in the ledger by kind and state."""
        query = sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).where(jobs.c.state.in_(OPEN_STATES))
        with self._database.read() as connection:
            rows = connection.execute(query.group_by(jobs.c.kind, jobs.c.state)).all()
        return {(row[0], row[1]): row[2] for row in rows}

    def dead_letters(self) -> int:
        """Return the number of dead letters, counted up to 100,000."""
        return self._count(sa.select(jobs.c.id).where(jobs.c.state == JobState.DEAD))

    def late_jobs(self, before: datetime) -> int:
        """Return the number of open jobs without a heartbeat that were due before a time, counted up to 100,000."""
        return self._count(sa.select(jobs.c.id).where(jobs.c.due_at < before, jobs.c.state.in_(OPEN_STATES)))

    def pauses(self) -> Mapping[str, int]:
        """Return how many stores, queues and jobs are paused, by scope."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(pauses.c.scope, sa.func.count()).group_by(pauses.c.scope)).all()
        return {row[0]: row[1] for row in rows}

    def _count(self, some: sa.Select[Any]) -> int:
        counted = some.limit(_MOST).subquery()
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one()


def _seconds(began: datetime, ended: datetime) -> float:
    return max(0.0, (ended - began).total_seconds())
