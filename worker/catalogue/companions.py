"""Companion artifacts: signatures, attestations and SBOMs that belong to an artifact of the same bucket."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from shlex import quote
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.companion_keys import OWNERS, all_placed_as, companion_keys, named_for, owner_keys, placed_as
from worker.catalogue.database import CatalogueError, Queries
from worker.catalogue.holds import check_hold
from worker.catalogue.key_ranges import begins_with
from worker.catalogue.records import Artifact, artifact_of
from worker.catalogue.rows_fingerprint import fingerprint_of
from worker.catalogue.tables import CURRENT, artifacts, companions
from worker.catalogue.types import Text

_TEXT = 500
_KEPT = 1000
_MOST = 32
"""Companions that a user can name for one artifact, so that a job on it stays short."""
_CURRENT = (
    sa.select(artifacts)
    .where(
        artifacts.c.bucket == sa.bindparam("of", type_=Text()),
        artifacts.c.key.in_(sa.bindparam("keys", expanding=True)),
        *CURRENT,
    )
    .order_by(artifacts.c.key)
)


class WrongCompanion(CatalogueError):
    """An artifact cannot be a companion of another one."""


@dataclass(frozen=True, slots=True)
class NamedCompanion:
    """What a user has said of an artifact: that it belongs to the one with the key `of_key`, or to none."""

    bucket: str
    key: str
    of_key: str | None
    by: str
    named_at: datetime


class Companions(Queries):
    """Which artifact belongs to which: what a user has said, else what the key says, as `app.tgz.sig` of `app.tgz`."""

    def of(self, bucket: str, key: str) -> list[Artifact]:
        """Return the current versions of the companions of an artifact, by key."""
        with self._database.read() as connection:
            keys = companion_keys(connection, bucket, key)
            return [artifact_of(row) for row in connection.execute(_CURRENT, {"of": bucket, "keys": keys})]

    def named_below(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys that users have named as companions of the artifacts with a prefix."""
        query = sa.select(companions.c.key).where(
            companions.c.bucket == bucket, *begins_with(companions.c.of_key, prefix)
        )
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def owner(self, bucket: str, key: str) -> str | None:
        """Return the key of the current artifact that this one is a companion of, or None."""
        with self._database.read() as connection:
            keys = owner_keys(connection, bucket, key)
            found = {row.key for row in connection.execute(_CURRENT, {"of": bucket, "keys": keys})}
        return next((each for each in keys if each in found), None)

    def placed_as(self, bucket: str, key: str) -> str:
        """Return the key by which the placement rules choose the stores: of a named companion that of its artifact."""
        with self._database.read() as connection:
            return placed_as(connection, bucket, key)

    def all_placed_as(self, paths: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Return `placed_as` of several artifacts, by bucket and key."""
        with self._database.read() as connection:
            return all_placed_as(connection, paths)

    def add(self, bucket: str, key: str, of: str, *, by: str, now: datetime) -> None:
        """Record that an artifact is a companion of another one. Both are in the catalogue.

        Raises:
            WrongCompanion: it is the artifact itself, belongs to another one, or has or would have companions of its
                own that a user named; or the artifact has as many as it can have.
            OnHold: it belongs to another artifact by its key, which is held.
        """
        with self._database.write() as connection:
            _check(connection, bucket, key, of)
            _replace(connection, bucket, key, of_key=of, by=by[:_TEXT], named_at=now)

    def fingerprint(self) -> list[Any]:
        """Return what changes with every change of `kept`; its first item is the number of rows."""
        with self._database.read() as connection:
            return fingerprint_of(connection, companions.c.named_at)

    def kept(self) -> Iterator[NamedCompanion]:
        """Yield what users have said of all artifacts, by bucket and key."""
        place = sa.tuple_(companions.c.bucket, companions.c.key)
        query = sa.select(companions).order_by(companions.c.bucket, companions.c.key).limit(_KEPT)
        after = ("", "")
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(place > sa.tuple_(*after))).all()
            yield from (NamedCompanion(**row._mapping) for row in rows)  # noqa: SLF001 - SQLAlchemy's public name
            if len(rows) < _KEPT:
                return
            after = rows[-1].bucket, rows[-1].key

    def restore(self, said: Sequence[NamedCompanion]) -> int:
        """Record what users have said of artifacts that are here, unless later words are; return how many were new."""
        by_bucket: dict[str, list[NamedCompanion]] = {}
        for each in said:
            by_bucket.setdefault(each.bucket, []).append(each)
        count = 0
        with self._database.write() as connection:
            for bucket, some in by_bucket.items():
                keys = [each.key for each in some]
                here = sa.select(artifacts.c.key).where(artifacts.c.bucket == bucket, artifacts.c.key.in_(keys))
                there = set(connection.execute(here).scalars())
                known = sa.select(companions.c.key, companions.c.named_at).where(
                    companions.c.bucket == bucket, companions.c.key.in_(keys)
                )
                at = dict(connection.execute(known).all())
                for each in some:
                    if each.key in there and (each.key not in at or at[each.key] < each.named_at):
                        _replace(connection, **asdict(each))
                        count += 1
        return count

    def check(self, bucket: str, key: str, of: str) -> None:
        """Raise as `add` if that would be refused now."""
        with self._database.read() as connection:
            _check(connection, bucket, key, of)

    def remove(self, bucket: str, key: str, *, by: str, now: datetime) -> None:
        """Record that an artifact is no companion, also where its key says that it is one.

        Raises:
            OnHold: it is held, itself or with its artifact.
        """
        with self._database.write() as connection:
            check_hold(connection, bucket, key)
            _replace(connection, bucket, key, of_key=None, by=by[:_TEXT], named_at=now)


def _replace(connection: Connection, bucket: str, key: str, **columns: object) -> None:
    connection.execute(sa.delete(companions).where(companions.c.bucket == bucket, companions.c.key == key))
    connection.execute(sa.insert(companions), {"bucket": bucket, "key": key, **columns})


def _check(connection: Connection, bucket: str, key: str, of: str) -> None:
    at = f"{bucket}/{key}"
    named = dict(connection.execute(OWNERS, {"of": bucket, "keys": [key, of]}).all())
    owned = named_for(connection, bucket, of)
    if key == of:
        raise WrongCompanion(f"{at} cannot be a companion of itself")
    if named.get(key, of) not in {of, None}:
        way_out = f"`zot-artifacts companions rm {quote(at)}` ends that"
        raise WrongCompanion(f"{at} is a companion of {bucket}/{named[key]} already: {way_out}")
    if key in owner_keys(connection, bucket, of):
        raise WrongCompanion(f"{bucket}/{of} is itself a companion of {at}")
    if named.get(of) is not None:
        raise WrongCompanion(f"{bucket}/{of} is itself a companion of {bucket}/{named[of]}: name that one")
    if named_for(connection, bucket, key):
        raise WrongCompanion(f"{at} has companions of its own: `zot-artifacts companions ls {quote(at)}`")
    if key not in owned and len(owned) >= _MOST:
        raise WrongCompanion(f"{bucket}/{of} has {_MOST} companions that were named, which is the limit")
    for owner in owner_keys(connection, bucket, key):
        if owner != of:  # it would not be held with that one any more
            check_hold(connection, bucket, owner)
