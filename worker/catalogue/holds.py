"""Holds: marks that forbid to delete an artifact, or to replace its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from shlex import quote
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.companion_keys import companion_keys, owner_keys
from worker.catalogue.database import CatalogueError, Queries
from worker.catalogue.records import OPEN_STATES
from worker.catalogue.tables import artifact_locks, artifacts, holds, jobs, tombstones
from worker.catalogue.types import Text, without_nul
from zot_artifact_client.contract import DELETE, PAGE, UPLOAD

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


class Holds(Queries):
    """The holds, by bucket and key."""

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
        """Hold an artifact and its companions, and return its hold; one that is there already stays as it is.

        A delete looks for a hold after it was leased, and this looks for a leased delete: one of the two is refused.

        Raises:
            HoldTooLate: naming the job that has begun to delete or replace the artifact.
        """
        with self._database.write() as connection:
            made = _place(connection, bucket, key, by=by, reason=reason, now=now)
            for each in _recorded(connection, bucket, companion_keys(connection, bucket, key)):
                _place(connection, bucket, each, by=made.by, reason=made.reason, now=made.held_at)
            return made

    def of_companions(self, of: Hold) -> list[Hold]:
        """Return a hold and those of the companions that were placed with it."""
        with self._database.read() as connection:
            keys = companion_keys(connection, of.bucket, of.key)
            rows = connection.execute(sa.select(holds).where(*_with(of, keys)).order_by(holds.c.key))
            return [of, *(_hold_of(row) for row in rows)]

    def note_stores(self, bucket: str, key: str, stores: Mapping[str, str]) -> None:
        """Record what stores said to a hold of their own; what others said before stays."""
        with self._database.write() as connection:
            if (found := _find(connection, bucket, key)) is not None:
                change = sa.update(holds).where(holds.c.bucket == bucket, holds.c.key == key)
                connection.execute(change.values(stores={**found.stores, **stores}))

    def release(self, bucket: str, key: str) -> bool:
        """End a hold, and those of companions that were placed with it; return False if there was none."""
        mine = sa.and_(holds.c.bucket == bucket, holds.c.key == key)
        with self._database.write() as connection:
            if (found := _find(connection, bucket, key)) is not None:
                keys = companion_keys(connection, bucket, key)
                connection.execute(sa.delete(holds).where(*_with(found, keys)))
            return connection.execute(sa.delete(holds).where(mine)).rowcount > 0

    def all(self, limit: int = 10_000) -> list[Hold]:
        """Return holds by bucket and key."""
        query = sa.select(holds).order_by(holds.c.bucket, holds.c.key).limit(limit)
        with self._database.read() as connection:
            return [_hold_of(row) for row in connection.execute(query)]


def _place(connection: Connection, bucket: str, key: str, *, by: str, reason: str, now: datetime) -> Hold:
    if found := _find(connection, bucket, key):
        return found
    if writer := begun_writer(connection, bucket, key):
        raise HoldTooLate(
            f"{bucket}/{key} is not held: job {writer} has begun to delete or replace it; "
            f"wait for it, or end it first: `zot-artifacts jobs cancel {writer}`"
        )
    if purging := connection.execute(_PURGING, {"of": bucket, "under": key}).scalar():
        raise HoldTooLate(f"{bucket}/{key} is not held: its bytes are being purged since {purging:%Y-%m-%d %H:%M} UTC")
    made = Hold(bucket, key, now, without_nul(by[:_TEXT]) or "", without_nul(reason[:_TEXT]) or "")
    row = {"bucket": bucket, "key": key, "held_at": now, "by": made.by, "reason": made.reason}
    connection.execute(sa.insert(holds), row)
    return made


def _recorded(connection: Connection, bucket: str, keys: list[str]) -> list[str]:
    query = sa.select(artifacts.c.key).where(artifacts.c.bucket == bucket, artifacts.c.key.in_(keys)).distinct()
    return list(connection.execute(query.order_by(artifacts.c.key)).scalars())


def _with(of: Hold, keys: list[str]) -> tuple[sa.ColumnElement[bool], ...]:
    same = (holds.c.held_at == of.held_at, holds.c.by == of.by, holds.c.reason == of.reason)
    return (holds.c.bucket == of.bucket, holds.c.key.in_(keys), *same)


def check_hold(connection: Connection, bucket: str, key: str) -> None:
    """Do as `Holds.check`, within a transaction. A companion is held as long as its artifact is."""
    for each in (key, *owner_keys(connection, bucket, key)):
        if (found := _find(connection, bucket, each)) is not None:
            what = (
                f"{bucket}/{key} is" if each == key else f"{bucket}/{key} is a companion of {bucket}/{each}, which is"
            )
            raise OnHold(
                f"{what} held by {found.by} since {found.held_at:%Y-%m-%d}: {found.reason}; "
                f"`zot-artifacts release {quote(f'{bucket}/{each}')}` ends the hold"
            )


_OPEN = (jobs.c.fence > 0, jobs.c.state.in_(OPEN_STATES))
_WRITER = sa.select(jobs.c.id).where(
    jobs.c.holds == sa.bindparam("path"), jobs.c.kind.in_([DELETE.kind, UPLOAD.kind]), *_OPEN
)
_PAGES = (
    sa.select(jobs.c.id, jobs.c.kind, jobs.c.request)
    .join(artifact_locks, artifact_locks.c.job == jobs.c.id)
    .where(
        artifact_locks.c.bucket == sa.bindparam("of", type_=Text()),
        artifact_locks.c.key == sa.bindparam("under", type_=Text()),
        jobs.c.kind.in_([PAGE.kind, DELETE.kind]), *_OPEN,
    )
)  # fmt: skip
_PURGING = sa.select(tombstones.c.purging_at).where(
    tombstones.c.bucket == sa.bindparam("of", type_=Text()), tombstones.c.key == sa.bindparam("under", type_=Text())
)


def begun_writer(connection: Connection, bucket: str, key: str) -> str | None:
    """Return the id of a job that has begun to delete or replace an artifact, also between two attempts."""
    found: str | None = connection.execute(_WRITER, {"path": f"{bucket}/{key}"}).scalar()
    pages = connection.execute(_PAGES, {"of": bucket, "under": key}).all()
    writing = {DELETE.kind, UPLOAD.kind}  # a delete locks the companions of its artifact
    return found or next((row.id for row in pages if {row.kind, row.request.get("verb")} & writing), None)


def _find(connection: Connection, bucket: str, key: str) -> Hold | None:
    row = connection.execute(_GET, {"of": bucket, "under": key}).one_or_none()
    return _hold_of(row) if row else None


def _hold_of(row: sa.Row[Any]) -> Hold:
    return Hold(row.bucket, row.key, row.held_at, row.by, row.reason, row.stores or {})
