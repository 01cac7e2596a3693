"""Claims of sweeps: copies that are due, and copies that are absent."""

from collections.abc import Callable
from datetime import datetime
from itertools import islice

import sqlalchemy as sa

from worker.catalogue.artifacts import artifact_of, copy_of, ensure_copy, following, listed
from worker.catalogue.database import Database
from worker.catalogue.records import Artifact, Copy, CopyState
from worker.catalogue.tables import artifacts, copies

_BELIEVED = 10
"""Longest credible claim, in claims. A longer one was written by a clock that was ahead; it counts as expired."""


class SweepClaims:
    """The claims: no two sweeps work on the same copy."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def due(self, store: str, *, now: datetime, until: datetime, limit: int) -> list[tuple[Artifact, Copy]]:
        """Claim copies that are due to be read again, the oldest attempt first, and those never attempted before all.

        A claim keeps other sweeps away until it is settled by a verification, or until `until`.
        """
        due = (
            sa.select(copies.c.id)
            .where(copies.c.store == store, copies.c.next_due_at <= now)
            .where(_unclaimed(now, until))
            .order_by(copies.c.last_attempt_at.asc().nulls_first(), copies.c.next_due_at, copies.c.id)
            .limit(limit)
        )
        with self._database.write() as connection:
            ids = list(connection.execute(due).scalars())
            connection.execute(sa.update(copies).where(copies.c.id.in_(ids)).values(claimed_until=until))
            rows = connection.execute(sa.select(copies).where(copies.c.id.in_(ids))).all()
            found = {row.id: copy_of(row) for row in rows}
            wanted = {copy.artifact_id for copy in found.values()}
            versions = connection.execute(sa.select(artifacts).where(artifacts.c.id.in_(wanted))).all()
            by_id = {row.id: artifact_of(row) for row in versions}
        return [(by_id[found[id_].artifact_id], found[id_]) for id_ in ids]

    def absent(
        self,
        store: str,
        bucket: str,
        prefix: str,
        *,
        wanted: Callable[[Artifact], bool],
        now: datetime,
        until: datetime,
        limit: int,
    ) -> list[Artifact]:
        """Claim current artifacts of which a store never had a copy that it is wanted to have, the oldest first.

        A copy that was deleted there, or that is there and bad, is not absent. A claim keeps other sweeps away until
        the copy is written, or until `until`.
        """
        here = sa.and_(copies.c.artifact_id == artifacts.c.id, copies.c.store == store)
        begun = sa.and_(copies.c.state == CopyState.WRITING, _unclaimed(now, until))
        query = (
            sa.select(artifacts)
            .outerjoin(copies, here)
            .where(*listed(), artifacts.c.bucket == bucket, *following(prefix, ""))
            .where(sa.or_(copies.c.id.is_(None), begun))
            .order_by(artifacts.c.id)
        )
        with self._database.read() as connection:  # it may scan many rows, and a writer keeps the others waiting
            rows = connection.execution_options(yield_per=1000).execute(query)
            found = list(islice(filter(wanted, map(artifact_of, rows)), limit))
            rows.close()
        with self._database.write() as connection:
            ids = [ensure_copy(connection, artifact, store).id for artifact in found]
            connection.execute(sa.update(copies).where(copies.c.id.in_(ids)).values(claimed_until=until))
        return found


def _unclaimed(now: datetime, until: datetime) -> sa.ColumnElement[bool]:
    claimed = copies.c.claimed_until
    return sa.or_(claimed.is_(None), claimed <= now, claimed > now + _BELIEVED * (until - now))
