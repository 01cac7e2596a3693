"""Alarms: the digests of what findings have changed, and what each channel has delivered."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import Connection

from worker import clock
from worker.catalogue.database import Queries
from worker.catalogue.records import FindingKind
from worker.catalogue.tables import UNTOLD_OPEN, UNTOLD_RESOLVED, alarm_digests, findings

_LONGEST_BACKOFF = timedelta(hours=1)
_RANKS = {kind.value: rank for rank, kind in enumerate(FindingKind)}
"""The worst kind has the lowest; a kind that only a newer worker knows has none."""
_NAMED = 5
"""Findings of one kind and store that a digest names; the others are counted."""
_OPENED, _ESCALATED, _RESOLVED = 1, 2, 3
"""`findings.told`: the last change of the finding that a digest has told; 0 is none."""


@dataclass(frozen=True, slots=True)
class PendingDigest:
    """A digest that a channel has not delivered. `id` is the same at every attempt."""

    id: str
    channel: str
    made_at: datetime
    payload: Mapping[str, Any]
    attempts: int


@dataclass(frozen=True, slots=True)
class ChannelState:
    """What one channel has delivered: `pending` digests wait, the oldest since `since`, after `error`."""

    channel: str
    delivered_at: datetime | None
    pending: int
    since: datetime | None
    attempts: int
    error: str | None


class Alarms(Queries):
    """The digests, by id and channel."""

    def make_digest(
        self, channels: Sequence[str], *, quiet: Collection[str], escalate: timedelta, now: datetime
    ) -> str | None:
        """Make one digest of all findings that changed since the last one; return its id, or None if none did.

        The transaction that makes it also records that the findings are told: nothing is told twice or never.
        """
        before = now - escalate
        with self._database.read() as connection:
            if not _changed(connection, before, now):
                return None
        with self._database.write() as connection:
            told = {
                "opened": _groups(connection, sa.or_(_new_open(), _new_resolved()), quiet),
                "escalated": _groups(connection, _late(before, now), quiet),
                "resolved": _groups(connection, sa.and_(UNTOLD_RESOLVED), quiet),
            }
            open_ = _open(connection, quiet)
            for which, level in (
                (UNTOLD_RESOLVED, _RESOLVED), (_late(before, now), _ESCALATED), (_new_open(), _OPENED),
            ):  # fmt: skip
                connection.execute(sa.update(findings).where(which).values(told=level))
            if not any(told.values()) or not channels:
                return None
            id_ = str(uuid4())
            payload = {"id": id_, "at": now.isoformat(), **told, "open": open_}
            rows = [
                {"id": id_, "channel": channel, "made_at": now, "payload": payload, "attempts": 0, "next_at": now}
                for channel in channels
            ]
            connection.execute(sa.insert(alarm_digests), rows)
        return id_

    def claim(self, channels: Sequence[str], *, now: datetime, until: datetime) -> list[PendingDigest]:
        """Return the digests that are due in these channels, the oldest first; no other worker gets them until then."""
        due = sa.and_(
            alarm_digests.c.delivered_at.is_(None),
            alarm_digests.c.channel.in_(channels),
            is_due(alarm_digests.c.next_at, now=now, until=until),
        )
        with self._database.read() as connection:
            if connection.execute(sa.select(alarm_digests.c.id).where(due).limit(1)).scalar() is None:
                return []
        with self._database.write() as connection:
            rows = connection.execute(sa.select(alarm_digests).where(due).order_by(alarm_digests.c.made_at)).all()
            connection.execute(sa.update(alarm_digests).where(due).values(next_at=until))
        return [PendingDigest(row.id, row.channel, row.made_at, row.payload, row.attempts) for row in rows]

    def delivered(self, digest: PendingDigest, *, now: datetime, note: str | None = None) -> None:
        """Record that a channel has delivered a digest; `note` is what it said about single recipients."""
        self._set(digest, delivered_at=now, attempts=digest.attempts + 1, error=note)

    def failed(self, digest: PendingDigest, error: str, *, next_at: datetime) -> None:
        """Record that an attempt has failed, and when the next one is due."""
        self._set(digest, attempts=digest.attempts + 1, error=error[:500], next_at=next_at)

    def drop(self, channels: Sequence[str]) -> int:
        """Forget the digests that wait for a channel other than these; return how many those were."""
        unwanted = sa.and_(alarm_digests.c.delivered_at.is_(None), alarm_digests.c.channel.not_in(channels))
        with self._database.read() as connection:
            if connection.execute(sa.select(alarm_digests.c.id).where(unwanted).limit(1)).scalar() is None:
                return 0
        with self._database.write() as connection:
            return connection.execute(sa.delete(alarm_digests).where(unwanted)).rowcount

    def channels(self) -> dict[str, ChannelState]:
        """Return what each channel that ever had a digest has delivered."""
        row, states = alarm_digests.c, dict[str, ChannelState]()
        with self._database.read() as connection:
            sent = sa.select(row.channel, sa.func.max(row.delivered_at, type_=row.delivered_at.type)).group_by(
                row.channel
            )
            last = {found[0]: found[1] for found in connection.execute(sent)}
            waiting = sa.select(row.channel, row.made_at, row.attempts, row.error).where(row.delivered_at.is_(None))
            pending: dict[str, list[Any]] = {}
            for each in connection.execute(waiting.order_by(row.made_at)):
                pending.setdefault(each.channel, []).append(each)
        for channel, delivered_at in last.items():
            some = pending.get(channel, [])
            first = some[0] if some else None
            states[channel] = ChannelState(
                channel, delivered_at, len(some), first.made_at if first else None,
                max((each.attempts for each in some), default=0), first.error if first else None,
            )  # fmt: skip
        return states

    def prune(self, *, before: datetime) -> None:
        """Forget digests that were delivered before a time."""
        old = alarm_digests.c.delivered_at < before
        with self._database.read() as connection:
            if connection.execute(sa.select(alarm_digests.c.id).where(old).limit(1)).scalar() is None:
                return
        with self._database.write() as connection:
            connection.execute(sa.delete(alarm_digests).where(old))

    def _set(self, digest: PendingDigest, **values: object) -> None:
        mine = sa.and_(alarm_digests.c.id == digest.id, alarm_digests.c.channel == digest.channel)
        with self._database.write() as connection:
            connection.execute(sa.update(alarm_digests).where(mine).values(**values))


def _new_open() -> sa.ColumnElement[bool]:
    return sa.and_(UNTOLD_OPEN, findings.c.told == 0)


def _new_resolved() -> sa.ColumnElement[bool]:
    return sa.and_(UNTOLD_RESOLVED, findings.c.told == 0)


def is_due(next_at: sa.ColumnElement[Any], *, now: datetime, until: datetime) -> sa.ColumnElement[bool]:
    """Return the condition that the next attempt at a message is due.

    A time after the longest backoff, and after the end of any claim, was written by a clock that was ahead.
    """
    return sa.or_(next_at <= now, next_at > max(until, now + _LONGEST_BACKOFF) + clock.SKEW)


def _late(before: datetime, now: datetime) -> sa.ColumnElement[bool]:
    opened = findings.c.opened_at
    long_ago = sa.or_(opened <= before, opened > now + clock.SKEW)  # the latter by a clock that was ahead
    return sa.and_(UNTOLD_OPEN, findings.c.told == _OPENED, long_ago, findings.c.acknowledged_at.is_(None))


def _changed(connection: Connection, before: datetime, now: datetime) -> bool:
    of = (_new_open(), UNTOLD_RESOLVED, _late(before, now))
    some = (sa.select(findings.c.id).where(which).limit(1) for which in of)
    return any(connection.execute(query).scalar() is not None for query in some)


def _groups(connection: Connection, which: sa.ColumnElement[bool], quiet: Collection[str]) -> list[dict[str, Any]]:
    """Return findings counted by kind and store, the worst kind first, with the first few of each by name."""
    row = findings.c
    wanted = sa.and_(which, row.kind.not_in(list(quiet)))
    since = sa.func.min(row.opened_at, type_=row.opened_at.type)
    counts = sa.select(row.kind, row.store, sa.func.count(), since).where(wanted).group_by(row.kind, row.store)
    found = sorted(connection.execute(counts).all(), key=lambda each: (_RANKS.get(each.kind, -1), each.store))
    return [
        {"kind": kind, "store": store or None, "count": count, "since": opened.isoformat(),
         "examples": _examples(connection, wanted, kind, store)}
        for kind, store, count, opened in found
    ]  # fmt: skip


def _examples(connection: Connection, wanted: sa.ColumnElement[bool], kind: str, store: str) -> list[dict[str, Any]]:
    row = findings.c
    query = sa.select(row.id, row.bucket, row.key, row.version, row.evidence, row.how).where(
        wanted, row.kind == kind, row.store == store
    )
    return [
        {"id": each.id, "bucket": each.bucket or None, "key": each.key or None, "version": each.version or None,
         "detail": (each.evidence or {}).get("detail") or (each.evidence or {}).get("reason"), "how": each.how}
        for each in connection.execute(query.order_by(row.id).limit(_NAMED))
    ]  # fmt: skip


def _open(connection: Connection, quiet: Collection[str]) -> dict[str, int]:
    row = findings.c
    open_ = sa.select(row.kind, sa.func.count()).where(row.resolved_at.is_(None), row.kind.not_in(list(quiet)))
    return {row[0]: row[1] for row in connection.execute(open_.group_by(row.kind))}
