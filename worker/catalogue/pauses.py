"""Pauses: what is paused, since when and why; they outlive every process and every broker."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Queries
from worker.catalogue.tables import pauses

_GET = Prepared(sa.select(pauses).where(pauses.c.scope == sa.bindparam("of"), pauses.c.name == sa.bindparam("called")))
_OF_JOB = Prepared(
    sa.select(pauses).where(
        sa.or_(
            pauses.c.scope == "store",
            sa.and_(
                pauses.c.scope == "job",
                sa.or_(pauses.c.name == sa.bindparam("job"), pauses.c.name == sa.bindparam("batch")),
            ),
        )
    )
)


class Scope(StrEnum):
    """What can be paused."""

    STORE = "store"
    QUEUE = "queue"
    JOB = "job"


@dataclass(frozen=True, slots=True)
class Pause:
    """One thing that is paused."""

    scope: Scope
    name: str
    since: datetime
    reason: str | None = None


def pauses_of_job(connection: Connection, id_: str, parent: str | None) -> list[Pause]:
    """Return the pauses of all stores, and those of a job and of the batch that it belongs to."""
    rows = _OF_JOB.all(connection, job=id_, batch=parent)
    return [Pause(Scope(row.scope), row.name, row.since, row.reason) for row in rows]


class Pauses(Queries):
    """The pauses, by scope and name."""

    def all(self) -> list[Pause]:
        """Return all pauses, the oldest first."""
        query = sa.select(pauses).order_by(pauses.c.since, pauses.c.scope, pauses.c.name)
        with self._database.read() as connection:
            return [Pause(Scope(row.scope), row.name, row.since, row.reason) for row in connection.execute(query)]

    def get(self, scope: Scope, name: str) -> Pause | None:
        """Return the pause of something, or None if it is not paused."""
        with self._database.read() as connection:
            row = _GET.first(connection, of=scope, called=name)
            return Pause(scope, name, row.since, row.reason) if row else None

    def begin(self, scope: Scope, name: str, *, reason: str | None, now: datetime) -> Pause:
        """Pause a store, a queue or a job. A second pause keeps the start, and the reason if none is given."""
        with self._database.write() as connection:
            row = connection.execute(sa.select(pauses).where(*_of(scope, name))).one_or_none()
            if row is None:
                values = {"scope": scope, "name": name, "since": now, "reason": reason}
                connection.execute(sa.insert(pauses), values)
                return Pause(scope, name, now, reason)
            reason = reason or row.reason
            connection.execute(sa.update(pauses).where(*_of(scope, name)).values(reason=reason))
            return Pause(scope, name, row.since, reason)

    def end(self, scope: Scope, name: str) -> bool:
        """End a pause; return False if there was none."""
        with self._database.write() as connection:
            return connection.execute(sa.delete(pauses).where(*_of(scope, name))).rowcount > 0


def _of(scope: Scope, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return pauses.c.scope == scope, pauses.c.name == name
