"""Holds: marks that forbid to delete an artifact, or to replace its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import CatalogueError, Database
from worker.catalogue.tables import artifact_locks, holds, jobs, tombstones
from worker.catalogue.types import Text, without_nul
from zot_artifact_client.contract import DELETE, PAGE, UPLOAD, JobState

_TEXT = 500
_GET = sa.select(holds).where(
    holds.c.bucket == sa.bindparam("of", type_=Text()), holds.c.key == sa.bindparam("under", type_=Text())
)


class OnHold(CatalogueError):
    """An artifact is held: it is neither deleted nor replaced."""


class HoldTooLate(CatalogueError):
    """An artifact cannot be held: a job has begun to delete or replace it, or its bytes are being purged."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold, who placed it and why.

    `stores`: by store, `held` and the version tag if it holds its copy itself too, or why it does not.
    """

    bucket: str
    key: str
    held_at: datetime
    by: str
    reason: str
    stores: Mapping[str, str] = field(default_factory=dict)


class Holds:
    """The holds, by bucket and key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, bucket: str, key: str) -> Hold | None:
        """Return the hold on an artifact, or None."""
        with self._database.read() as connection:
            return _find(connection, bucket, key)

    def check(self, bucket: str, key: str) -> None:
        """Return if an artifact is not held.

        Raises:
            OnHold: naming who holds it, why, and the way out.
        """
        with self._database.read() as connection:
            check_hold(connection, bucket, key)

    def place(self, bucket: str, key: str, *, by: str, reason: str, now: datetime) -> Hold:
        """Hold an artifact, and return the hold; one that is there already stays as it is.

        A delete looks for a hold after it was leased, and this looks for a leased delete: one of the two is refused.

        Raises:
            HoldTooLate: naming the job that has begun to delete or replace the artifact.
        """
        with self._database.write() as connection:
            if found := _find(connection, bucket, key):
                return found
            if writer := begun_writer(connection, bucket, key):
                raise HoldTooLate(
                    f"{bucket}/{key} is not held: job {writer} has begun to delete or replace it; "
                    f"wait for it, or end it first: `zot-artifacts jobs cancel {writer}`"
                )
            if purging := connection.execute(_PURGING, {"of": bucket, "under": key}).scalar():
                raise HoldTooLate(
                    f"{bucket}/{key} is not held: its bytes are being purged since {purging:%Y-%m-%d %H:%M} UTC"
                )
            made = Hold(bucket, key, now, without_nul(by[:_TEXT]) or "", without_nul(reason[:_TEXT]) or "")
            row = {"bucket": bucket, "key": key, "held_at": now, "by": made.by, "reason": made.reason}
            connection.execute(sa.insert(holds), row)
            return made

    def note_stores(self, bucket: str, key: str, stores: Mapping[str, str]) -> None:
        """Record what stores said to a hold of their own; what others said before stays."""
        with self._database.write() as connection:
            if (found := _find(connection, bucket, key)) is not None:
                change = sa.update(holds).where(holds.c.bucket == bucket, holds.c.key == key)
                connection.execute(change.values(stores={**found.stores, **stores}))

    def release(self, bucket: str, key: str) -> bool:
        """End a hold; return False if there was none."""
        mine = sa.and_(holds.c.bucket == bucket, holds.c.key == key)
        with self._database.write() as connection:
            return connection.execute(sa.delete(holds).where(mine)).rowcount > 0

    def all(self, limit: int = 10_000) -> list[Hold]:
        """Return holds by bucket and key."""
        query = sa.select(holds).order_by(holds.c.bucket, holds.c.key).limit(limit)
        with self._database.read() as connection:
            return [_hold_of(row) for row in connection.execute(query)]


def check_hold(connection: Connection, bucket: str, key: str) -> None:
    """Do as `Holds.check`, within a transaction."""
    if (found := _find(connection, bucket, key)) is not None:
        raise OnHold(
            f"{bucket}/{key} is held by {found.by} since {found.held_at:%Y-%m-%d}: {found.reason}; "
            f"`zot-artifacts release {bucket}/{key}` ends the hold"
        )


_OPEN = (jobs.c.fence > 0, jobs.c.state.in_([state for state in JobState if not state.terminal]))
_WRITER = sa.select(jobs.c.id).where(
    jobs.c.holds == sa.bindparam("path"), jobs.c.kind.in_([DELETE.kind, UPLOAD.kind]), *_OPEN
)
_PAGES = (
    sa.select(jobs.c.id, jobs.c.request)
    .join(artifact_locks, artifact_locks.c.job == jobs.c.id)
    .where(
        artifact_locks.c.bucket == sa.bindparam("of", type_=Text()),
        artifact_locks.c.key == sa.bindparam("under", type_=Text()),
        jobs.c.kind == PAGE.kind, *_OPEN,
    )
)  # fmt: skip
_PURGING = sa.select(tombstones.c.purging_at).where(
    tombstones.c.bucket == sa.bindparam("of", type_=Text()), tombstones.c.key == sa.bindparam("under", type_=Text())
)


def begun_writer(connection: Connection, bucket: str, key: str) -> str | None:
    """Return the id of a job that has begun to delete or replace an artifact, also between two attempts."""
    found: str | None = connection.execute(_WRITER, {"path": f"{bucket}/{key}"}).scalar()
    pages = connection.execute(_PAGES, {"of": bucket, "under": key}).all()
    return found or next((row.id for row in pages if row.request.get("verb") in {DELETE.kind, UPLOAD.kind}), None)


def _find(connection: Connection, bucket: str, key: str) -> Hold | None:
    row = connection.execute(_GET, {"of": bucket, "under": key}).one_or_none()
    return _hold_of(row) if row else None


def _hold_of(row: sa.Row[Any]) -> Hold:
    return Hold(row.bucket, row.key, row.held_at, row.by, row.reason, row.stores or {})
