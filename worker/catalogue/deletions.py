"""Deletions that can be undone for some time: tombstones, their undo and their purge."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.artifacts import tombstone_all
from worker.catalogue.companion_keys import companion_keys
from worker.catalogue.database import CatalogueError, Queries
from worker.catalogue.findings import see_lost_among
from worker.catalogue.holds import OnHold, begun_writer, check_hold
from worker.catalogue.record_versions import written_by
from worker.catalogue.records import GONE, OPEN_STATES, Artifact, Copy, artifact_of, copy_of
from worker.catalogue.rows_fingerprint import fingerprint_of
from worker.catalogue.tables import artifacts, copies, holds, jobs, tombstones, undeletes
from worker.catalogue.types import UtcDateTime, without_nul

_TEXT = 500
_KEPT = 1000
_NEWER = artifacts.alias("newer")
_FOLLOWED = sa.exists().where(
    _NEWER.c.bucket == tombstones.c.bucket, _NEWER.c.key == tombstones.c.key, _NEWER.c.version > tombstones.c.version,
    _NEWER.c.committed_at.is_not(None),
)  # fmt: skip
"""The condition of a tombstone whose artifact was uploaded again."""


class UndeleteRefused(CatalogueError):
    """A delete cannot be undone: there is none, its bytes are being purged, or another version follows it."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A recorded delete whose bytes are still there. `version` is the newest that was deleted, older ones with it."""

    bucket: str
    key: str
    version: int
    deleted_at: datetime
    purge_after: datetime
    by: str | None
    reason: str | None
    job: str


@dataclass(frozen=True, slots=True)
class KeptTombstone(Tombstone):
    """A tombstone as the stores keep it, with the digest of the version that was deleted."""

    sha256: str


class Deletions(Queries):
    """The tombstones of artifacts whose bytes are still there."""

    def begin(
        self, artifact: Artifact, *, now: datetime, until: datetime, by: str | None, reason: str | None, job: str,
        companions: Sequence[Artifact] = (), purging: bool = False,
    ) -> Tombstone:  # fmt: skip
        """Record that an artifact was deleted with its companions; their copies stay until they are purged.

        That is after `until`. With `purging` some bytes have gone already, and the delete cannot be undone.

        Raises:
            OnHold: one of them is held; nothing was recorded.
        """
        with self._database.write() as connection:
            for each in (artifact, *companions):
                check_hold(connection, each.bucket, each.key)
                made = Tombstone(each.bucket, each.key, each.version, now, until, _text(by), _text(reason), job)
                record_tombstone(connection, each, made)
                if purging:
                    _begin_purge(connection, made.bucket, made.key, now)
        return replace(made, key=artifact.key, version=artifact.version)

    def of_companions(self, of: Tombstone) -> list[Tombstone]:
        """Return the tombstones of the companions that were deleted with an artifact and not uploaded again since."""
        with self._database.read() as connection:
            return _together(connection, of)

    def get(self, bucket: str, key: str) -> Tombstone | None:
        """Return the tombstone under a key whose bytes are still there, or None."""
        return next(iter(self._some(*_at(bucket, key), limit=1)), None)

    def page(self, after: tuple[str, str] = ("", ""), *, limit: int = 1000) -> list[Tombstone]:
        """Return the deletes that can be undone, by bucket and key, starting after the one given."""
        behind = sa.tuple_(tombstones.c.bucket, tombstones.c.key) > sa.tuple_(*after)
        return self._some(behind, tombstones.c.purging_at.is_(None), ~_FOLLOWED, limit=limit)

    def of_job(self, job: str, after: tuple[str, str] = ("", ""), *, limit: int = 1000) -> list[Tombstone]:
        """Return the tombstones of a delete, or of all jobs of a batch, by bucket and key, after the one given."""
        behind = sa.tuple_(tombstones.c.bucket, tombstones.c.key) > sa.tuple_(*after)
        its = sa.or_(tombstones.c.job == job, tombstones.c.job.between(f"{job}.{'0' * 8}", f"{job}.{'9' * 8}"))
        return self._some(behind, its, limit=limit)

    def fingerprint(self) -> list[Any]:
        """Return what changes with every change of `kept`; its first item is the number of rows."""
        with self._database.read() as connection:
            return fingerprint_of(connection, tombstones.c.deleted_at, ~_FOLLOWED)

    def kept(self) -> Iterator[KeptTombstone]:
        """Yield the deletes that are not followed by another version, by bucket and key, for the stores to keep."""
        query = (
            sa.select(tombstones, artifacts.c.sha256)
            .join(
                artifacts,
                sa.and_(
                    artifacts.c.bucket == tombstones.c.bucket, artifacts.c.key == tombstones.c.key,
                    artifacts.c.version == tombstones.c.version,
                ),
            )
            .where(~_FOLLOWED)
            .order_by(tombstones.c.bucket, tombstones.c.key)
            .limit(_KEPT)
        )  # fmt: skip
        after = ("", "")
        while True:
            behind = sa.tuple_(tombstones.c.bucket, tombstones.c.key) > sa.tuple_(*after)
            with self._database.read() as connection:
                rows = connection.execute(query.where(behind)).all()
            for row in rows:
                yield KeptTombstone(**asdict(_tombstone_of(row)), sha256=row.sha256)
            if len(rows) < _KEPT:
                return
            after = rows[-1].bucket, rows[-1].key

    def undo(
        self, bucket: str, key: str, *, now: datetime, by: str | None = None, reason: str | None = None
    ) -> Artifact:
        """Undo a delete: the version that was current then is current again, and its companions with it.

        It is recorded, by whom and why, with the delete that it undoes.
        What has no good copy is lost again, which the delete had ended.
        It is refused while a job has begun to delete the bytes or to write others: one of the two has to wait.

        Raises:
            UndeleteRefused: it cannot be undone; says why.
        """
        undone = {"undone_at": now, "by": _text(by), "reason": _text(reason)}
        with self._database.write() as connection:
            found = _undo_together(connection, bucket, key, undone)
            see_lost_among(connection, {(each.bucket, each.key) for each in found}, now)
            return found[0]

    def undo_all(
        self, of: Sequence[Tombstone], *, now: datetime, by: str | None, reason: str | None, dry_run: bool = False
    ) -> tuple[list[Artifact], list[str]]:
        """Undo some deletes as `undo` does, in one transaction; with `dry_run` nothing changes.

        Returns:
            What is current again, companions included, and why others are not.
        """
        undone = {"undone_at": now, "by": _text(by), "reason": _text(reason)}
        found: dict[tuple[str, str], Artifact] = {}
        refused: list[str] = []
        with self._database.write() as connection, connection.begin_nested() as changes:
            for each in of:
                if (each.bucket, each.key) in found:
                    continue  # as a companion
                try:
                    some = _undo_together(connection, each.bucket, each.key, undone)
                except UndeleteRefused as error:
                    refused.append(str(error))
                else:
                    found |= {(one.bucket, one.key): one for one in some}
            if dry_run:
                changes.rollback()
            else:
                see_lost_among(connection, set(found), now)
        return list(found.values()), refused

    # Purging

    def count_due(self, *, now: datetime) -> int:
        """Return how many tombstones are due to be purged and not held."""
        with self._database.read() as connection:
            due = _due(now).subquery()
            return connection.execute(sa.select(sa.func.count()).select_from(due)).scalar_one()

    def due(self, *, now: datetime, limit: int) -> list[Tombstone]:
        """Return tombstones that are due to be purged and not held, those due longest first.

        Those whose purge was begun follow: bytes in a store that is not configured must not delay all others.
        """
        order = tombstones.c.purging_at.nulls_first(), tombstones.c.purge_after
        with self._database.read() as connection:
            rows = connection.execute(_due(now).order_by(*order).limit(limit)).all()
        return [_tombstone_of(row) for row in rows]

    def postpone(self, until: datetime) -> None:
        """Purge nothing that was deleted so far before this moment: it may have been undone in another catalogue."""
        with self._database.write() as connection:
            earlier = sa.update(tombstones).where(tombstones.c.purge_after < until)
            connection.execute(earlier.values(purge_after=until))

    def first_deleted_at(self) -> datetime | None:
        """Return when the artifact was deleted that waits longest for its purge, None if none waits."""
        row = tombstones.c
        with self._database.read() as connection:
            at: datetime | None = connection.execute(
                sa.select(sa.func.min(row.deleted_at, type_=row.deleted_at.type))
            ).scalar_one()
        return at

    def database_time(self) -> datetime | None:
        """Return the present moment by the clock of the database, None if that is the clock of this machine."""
        with self._database.read() as connection:
            if connection.dialect.name != "postgresql":
                return None
            at: datetime = connection.execute(sa.select(sa.func.clock_timestamp(type_=UtcDateTime()))).scalar_one()
            return at

    def begin_purge(self, of: Tombstone, *, now: datetime) -> list[tuple[Artifact, Copy]] | None:
        """Return the copies of a deleted artifact whose bytes may go now; from here on the delete cannot be undone.

        Returns None if the delete was undone meanwhile, or the artifact is held: its tombstone must stay.
        """
        with self._database.write() as connection:
            mine = _due(now).where(*_at(of.bucket, of.key))
            if connection.execute(mine).one_or_none() is None:
                return None
            try:
                check_hold(connection, of.bucket, of.key)  # that of its artifact holds a companion too
            except OnHold:
                return None
            _begin_purge(connection, of.bucket, of.key, now)
            query = (
                sa.select(artifacts, copies.c.id.label("copy_id"))
                .join(copies, copies.c.artifact_id == artifacts.c.id)
                .where(artifacts.c.bucket == of.bucket, artifacts.c.key == of.key, artifacts.c.version <= of.version)
                .where(copies.c.state.not_in(GONE))
            )
            found = {row.copy_id: artifact_of(row) for row in connection.execute(query)}
            rows = connection.execute(sa.select(copies).where(copies.c.id.in_(list(found))))
            return [(found[row.id], copy_of(row)) for row in rows]

    def is_being_purged(self, of: Tombstone) -> bool:
        """Return whether the purge of an artifact was begun, so that its delete cannot be undone any more."""
        begun = sa.select(tombstones.c.key).where(*_at(of.bucket, of.key), tombstones.c.purging_at.is_not(None))
        with self._database.read() as connection:
            return connection.execute(begun).one_or_none() is not None

    def end_purge(self, of: Sequence[Tombstone]) -> None:
        """Remove tombstones whose bytes are deleted; one of a later delete under the same key stays."""
        with self._database.write() as connection:
            for each in of:
                same = tombstones.c.deleted_at == each.deleted_at
                connection.execute(sa.delete(tombstones).where(*_at(each.bucket, each.key), same))

    def _some(self, *where: sa.ColumnElement[bool], limit: int) -> list[Tombstone]:
        query = sa.select(tombstones).where(*where).order_by(tombstones.c.bucket, tombstones.c.key).limit(limit)
        with self._database.read() as connection:
            return [_tombstone_of(row) for row in connection.execute(query)]


def _text(given: str | None) -> str | None:
    return without_nul(given[:_TEXT]) if given else None


def _undo_together(connection: Connection, bucket: str, key: str, undone: Mapping[str, Any]) -> list[Artifact]:
    """Undo a delete with that of its companions, and return the artifact, then the companions that are current again.

    Raises:
        UndeleteRefused: it cannot be undone; nothing was changed.
    """
    row = connection.execute(sa.select(tombstones).where(*_at(bucket, key))).one_or_none()
    if row is None:
        raise UndeleteRefused(f"{bucket}/{key} has no delete that can be undone: `zot-artifacts deleted` lists them")
    together = _together(connection, _tombstone_of(row))
    found = [_undo(connection, row, undone)]
    for each in together:
        with suppress(UndeleteRefused):  # it was uploaded again, and that is kept
            of = connection.execute(sa.select(tombstones).where(*_at(bucket, each.key))).one()
            found.append(_undo(connection, of, undone))
    return found


def _undo(connection: Connection, row: sa.Row[Any], undone: Mapping[str, Any]) -> Artifact:
    bucket, key = row.bucket, row.key
    if row.purging_at is not None:
        raise UndeleteRefused(f"{bucket}/{key}: its bytes are being purged since {row.purging_at:%Y-%m-%d %H:%M} UTC")
    if writer := begun_writer(connection, bucket, key):
        raise UndeleteRefused(f"{bucket}/{key}: job {writer} has begun to delete or replace it; wait for its end")
    here = sa.and_(artifacts.c.bucket == bucket, artifacts.c.key == key)
    versions = sa.select(artifacts).where(here)
    newer = connection.execute(versions.where(artifacts.c.version > row.version)).all()
    if any(each.committed_at is not None for each in newer):
        raise UndeleteRefused(f"{bucket}/{key} was uploaded again since: delete that version first, or keep it")
    if uploaded := written_by(connection, newer, jobs.c.state.in_(OPEN_STATES)):  # by a page, between two attempts
        raise UndeleteRefused(f"{bucket}/{key}: job {uploaded[-1].job} has begun to replace it; wait for its end")
    those = sa.update(artifacts).where(here, artifacts.c.tombstoned_at == row.deleted_at)
    connection.execute(those.values(tombstoned_at=None))
    connection.execute(sa.delete(tombstones).where(*_at(bucket, key)))
    of = {"deleted_at": row.deleted_at, "deleted_by": row.by, "delete_reason": row.reason, "job": row.job}
    connection.execute(sa.insert(undeletes), {"bucket": bucket, "key": key, "version": row.version, **of, **undone})
    return artifact_of(connection.execute(versions.where(artifacts.c.version == row.version)).one())


def _together(connection: Connection, of: Tombstone) -> list[Tombstone]:
    keys = companion_keys(connection, of.bucket, of.key)
    same = (tombstones.c.job == of.job, tombstones.c.deleted_at == of.deleted_at, ~_FOLLOWED)
    query = sa.select(tombstones).where(tombstones.c.bucket == of.bucket, tombstones.c.key.in_(keys), *same)
    return [_tombstone_of(row) for row in connection.execute(query.order_by(tombstones.c.key))]


def record_tombstone(connection: Connection, artifact: Artifact, tombstone: Tombstone) -> None:
    """Record that an artifact was deleted; its tombstone replaces that of an earlier delete under its key."""
    tombstone_all(connection, [artifact], tombstone.deleted_at)
    connection.execute(sa.delete(tombstones).where(*_at(tombstone.bucket, tombstone.key)))
    connection.execute(sa.insert(tombstones), asdict(tombstone))


def _begin_purge(connection: Connection, bucket: str, key: str, now: datetime) -> None:
    connection.execute(sa.update(tombstones).where(*_at(bucket, key)).values(purging_at=now))


def _at(bucket: str, key: str) -> tuple[sa.ColumnElement[bool], ...]:
    return tombstones.c.bucket == bucket, tombstones.c.key == key


def _due(now: datetime) -> sa.Select[Any]:
    held = sa.exists().where(holds.c.bucket == tombstones.c.bucket, holds.c.key == tombstones.c.key)
    return sa.select(tombstones).where(tombstones.c.purge_after <= now, ~held)


def _tombstone_of(row: sa.Row[Any]) -> Tombstone:
    return Tombstone(
        row.bucket, row.key, row.version, row.deleted_at, row.purge_after, row.by, row.reason, row.job,
    )  # fmt: skip
