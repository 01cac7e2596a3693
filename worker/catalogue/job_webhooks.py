"""The webhooks of jobs: which receivers get the end of which job, and which have it.

A row is written with the job, in the same transaction. Its end is read from the ledger, so that every way in which a
job can end is told, and a worker that is killed loses none.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker import clock
from worker.catalogue.alarms import is_due
from worker.catalogue.database import Queries
from worker.catalogue.findings import NewFinding, resolve_key, see
from worker.catalogue.records import FindingKind
from worker.catalogue.tables import findings, job_webhooks, jobs

_AT_ONCE = 100
_MANY = 5
"""Attempts at one end, over about five minutes, after which it is a finding that it does not arrive."""
_TEXT = 500
REFUSED = "UnknownReceiver"
"""The error of a job that names a receiver which the settings do not have."""
_REMOVED = "the settings have no such webhook"
_SAID = ("type", "message", "store")
"""The fields of an error that a webhook has; its traceback stays here."""


@dataclass(frozen=True, slots=True)
class PendingWebhook:
    """The end of a job that a receiver does not have. `payload` is the same at every attempt, and has the id.

    `bucket` and `start`: the key of the job, or the beginning of all its keys; without a bucket it is on any key.
    """

    job: str
    receiver: str
    bucket: str | None
    start: str
    ended_at: datetime
    payload: Mapping[str, Any]
    attempts: int


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """What one receiver has got: `pending` ends wait after `error`, and `given_up` are not tried again."""

    receiver: str
    delivered_at: datetime | None
    pending: int
    given_up: int
    error: str | None


def want_webhooks(connection: Connection, job: str, receivers: Sequence[str], now: datetime) -> None:
    """Record the receivers that a new job names, in place of those of an earlier job with its id, which was removed."""
    connection.execute(sa.delete(job_webhooks).where(job_webhooks.c.job == job))
    rows = [
        {"job": job, "receiver": name, "made_at": now, "attempts": 0, "next_at": now}
        for name in dict.fromkeys(receivers)
    ]
    connection.execute(sa.insert(job_webhooks), rows)


def want_webhooks_again(connection: Connection, job: str) -> None:
    """Record that a job which has ended is to end once more: its next end is another message."""
    now = clock.now()
    again = {"made_at": now, "id": None, "payload": sa.null(), "attempts": 0, "next_at": now, "delivered_at": None}
    connection.execute(sa.update(job_webhooks).where(job_webhooks.c.job == job).values(**again, error=None))


class JobWebhooks(Queries):
    """The webhooks of jobs."""

    def claim(self, receivers: Sequence[str], *, now: datetime, until: datetime) -> list[PendingWebhook]:
        """Return up to 100 ends of jobs that are due for these receivers; no other worker gets them until then."""
        row = job_webhooks.c
        due = (
            sa.select(job_webhooks, jobs.c.kind, jobs.c.request, jobs.c.state, jobs.c.result,
                      jobs.c.error.label("cause"), jobs.c.attempts.label("tries"), jobs.c.finished_at)
            .join_from(job_webhooks, jobs, jobs.c.id == row.job)
            .where(row.delivered_at.is_(None), is_due(row.next_at, now=now, until=until), row.receiver.in_(receivers))
            .where(jobs.c.finished_at.is_not(None))
            .order_by(row.next_at)
            .limit(_AT_ONCE)
        )  # fmt: skip
        with self._database.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return []
        with self._database.write() as connection:
            claimed = []
            for each in connection.execute(due).all():
                payload = each.payload or _payload(each)
                values = {"payload": payload, "id": payload["id"], "next_at": until}
                connection.execute(sa.update(job_webhooks).where(_is(each.job, each.receiver)).values(**values))
                at = each.request.get("bucket"), each.request.get("key", each.request.get("prefix", ""))
                claimed.append(PendingWebhook(each.job, each.receiver, *at, each.finished_at, payload, each.attempts))
        return claimed

    def delivered(self, webhook: PendingWebhook, *, now: datetime) -> None:
        """Record that the receiver has the end of the job, and with that accepts messages again."""
        with self._database.write() as connection:
            _set(connection, webhook, delivered_at=now, next_at=None, attempts=webhook.attempts + 1, error=None)
            resolve_key(connection, FindingKind.WEBHOOK_UNDELIVERED, webhook.receiver, "it accepts messages again", now)

    def failed(self, webhook: PendingWebhook, error: str, *, now: datetime, next_at: datetime | None) -> None:
        """Record that an attempt has failed, and when the next one is due; None: there is none.

        The last attempt, and each from the fifth on, is a finding on the receiver until it accepts a message.
        """
        attempts, error = webhook.attempts + 1, error[:_TEXT]
        with self._database.write() as connection:
            if not _set(connection, webhook, attempts=attempts, error=error, next_at=next_at):
                return
            if next_at is None or attempts >= _MANY:
                after = "it is not tried again" if next_at is None else f"after {attempts} attempts"
                detail = f"the end of job {webhook.job} is not delivered, {after}: {error}: `zot-artifacts webhooks`"
                evidence = {"detail": detail[:_TEXT], "job": webhook.job, "attempts": attempts}
                found = NewFinding(FindingKind.WEBHOOK_UNDELIVERED, key=webhook.receiver, evidence=evidence)
                see(connection, [found], now)

    def wait(self, webhook: PendingWebhook, *, next_at: datetime) -> None:
        """Give back what was claimed and not tried."""
        with self._database.write() as connection:
            _set(connection, webhook, next_at=next_at)

    def withdraw(self, webhook: PendingWebhook) -> None:
        """Forget an end that its receiver is not for."""
        with self._database.write() as connection:
            connection.execute(sa.delete(job_webhooks).where(_is(webhook.job, webhook.receiver)))

    def see_removed(self, configured: Collection[str], *, now: datetime, give_up: timedelta) -> dict[str, int]:
        """Return how many more ends wait for each receiver that the settings do not have, and make each a finding.

        They are delivered if it is configured again within `give_up` of their end, and given up after that. A job that
        was refused because it named such a receiver has told so, and its end waits for none.
        """
        row, unknown = job_webhooks.c, sa.not_(job_webhooks.c.receiver.in_(sorted(configured)))
        ended = sa.select(jobs.c.id).where(jobs.c.id == row.job, jobs.c.finished_at.is_not(None))
        waits = sa.and_(unknown, row.delivered_at.is_(None), row.next_at.is_not(None), ended.exists())
        told = sa.select(findings.c.key).where(
            findings.c.kind == FindingKind.WEBHOOK_UNDELIVERED, findings.c.resolved_at.is_(None)
        )
        with self._database.read() as connection:
            there = connection.execute(sa.select(row.job).where(waits).limit(1)).first()
            open_ = set(connection.execute(told).scalars()).difference(configured)
            if there is None and not open_:
                return {}
        refused = ended.where(jobs.c.error["type"].as_string() == REFUSED)
        new = sa.and_(waits, row.error.is_distinct_from(_REMOVED))
        late = ended.where(jobs.c.finished_at <= now - give_up)
        with self._database.write() as connection:
            connection.execute(sa.delete(job_webhooks).where(waits, refused.exists()))
            counted = sa.select(row.receiver, sa.func.count()).where(new).group_by(row.receiver)
            more = {name: count for name, count in connection.execute(counted).all()}  # noqa: C416 - rows are no pairs
            connection.execute(sa.update(job_webhooks).where(new).values(error=_REMOVED))
            connection.execute(sa.update(job_webhooks).where(waits, late.exists()).values(next_at=None))
            kept = sa.select(row.receiver, sa.func.count(row.next_at), sa.func.count()).where(
                unknown, row.delivered_at.is_(None), ended.exists()
            )
            counts = {name: (wait, all_) for name, wait, all_ in connection.execute(kept.group_by(row.receiver)).all()}
            for name in open_.difference(counts):
                resolve_key(connection, FindingKind.WEBHOOK_UNDELIVERED, name, "no end waits for it any more", now)
            for name, (wait, all_) in counts.items():
                detail = f"{_REMOVED}: ends of jobs that wait for it: {wait}, that are given up: {all_ - wait}"
                evidence = {"detail": f"{detail}: `zot-artifacts webhooks`"}
                see(connection, [NewFinding(FindingKind.WEBHOOK_UNDELIVERED, key=name, evidence=evidence)], now)
        return more

    def of_job(self, job: str) -> dict[str, str]:
        """Return the state of the end of a job at each of the receivers that its request names."""
        row = job_webhooks.c
        query = sa.select(row.receiver, row.delivered_at, row.next_at, row.error).where(row.job == job)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(row.receiver)).all()
        return {
            each.receiver: f"delivered at {each.delivered_at:%Y-%m-%d %H:%M:%S} UTC"
            if each.delivered_at
            else f"{'not delivered yet' if each.next_at else 'given up'}{f': {each.error}' if each.error else ''}"
            for each in found
        }

    def count_undelivered(self, receiver: str) -> int:
        """Return how many ends `forget` would forget, those that were not tried yet included."""
        with self._database.read() as connection:
            query = sa.select(sa.func.count()).select_from(job_webhooks).where(_undelivered(receiver))
            return connection.execute(query).scalar_one()

    def forget(self, receiver: str, *, now: datetime) -> int:
        """Forget the ends that wait for a receiver or are given up, resolve its finding, and return how many."""
        with self._database.write() as connection:
            count = connection.execute(sa.delete(job_webhooks).where(_undelivered(receiver))).rowcount
            resolve_key(connection, FindingKind.WEBHOOK_UNDELIVERED, receiver, "its ends were forgotten", now)
        return count

    def receivers(self) -> dict[str, ReceiverState]:
        """Return what each receiver that a job ever named has got."""
        row = job_webhooks.c
        failing = sa.and_(row.delivered_at.is_(None), sa.or_(row.payload.is_not(None), row.error.is_not(None)))
        columns = (
            row.receiver,
            sa.func.max(row.delivered_at, type_=row.delivered_at.type).label("delivered_at"),
            sa.func.count(sa.case((sa.and_(failing, row.next_at.is_not(None)), 1))).label("pending"),
            sa.func.count(sa.case((sa.and_(failing, row.next_at.is_(None)), 1))).label("given_up"),
            sa.func.max(sa.case((failing, row.error))).label("error"),
        )
        with self._database.read() as connection:
            found = connection.execute(sa.select(*columns).group_by(row.receiver).order_by(row.receiver)).all()
        return {each.receiver: ReceiverState(*each) for each in found}

    def prune(self, *, before: datetime) -> None:
        """Forget the webhooks that were asked for before a time, of jobs that have ended or are gone."""
        row = job_webhooks.c
        open_ = sa.exists().where(jobs.c.id == row.job, jobs.c.finished_at.is_(None))
        old = sa.and_(row.made_at < before, ~open_)
        with self._database.read() as connection:
            if connection.execute(sa.select(row.job).where(old).limit(1)).scalar() is None:
                return
        with self._database.write() as connection:
            connection.execute(sa.delete(job_webhooks).where(old))


def _set(connection: Connection, webhook: PendingWebhook, **values: object) -> bool:
    """Change a row and return True, unless its job was redriven meanwhile and will end once more."""
    same = sa.and_(_is(webhook.job, webhook.receiver), job_webhooks.c.id == webhook.payload["id"])
    return connection.execute(sa.update(job_webhooks).where(same).values(**values)).rowcount > 0


def _is(job: str, receiver: str) -> sa.ColumnElement[bool]:
    return sa.and_(job_webhooks.c.job == job, job_webhooks.c.receiver == receiver)


def _payload(row: Row[Any]) -> dict[str, Any]:
    """Return the end of a job as it is sent; the id is that of this end, also where two workers make it."""
    ended = row.finished_at.isoformat()
    return {
        "id": str(uuid5(NAMESPACE_OID, f"{row.job} {ended}")),
        "type": f"job.{row.state}",
        "timestamp": ended,
        "data": {
            "job": row.job, "kind": row.kind, "state": row.state, "bucket": row.request.get("bucket"),
            "key": row.request.get("key"), "attempts": row.tries, "result": row.result,
            "error": {name: row.cause[name] for name in _SAID if name in row.cause} if row.cause else None,
        },
    }  # fmt: skip


def _undelivered(receiver: str) -> sa.ColumnElement[bool]:
    row = job_webhooks.c
    open_ = sa.select(jobs.c.id).where(jobs.c.id == row.job, jobs.c.finished_at.is_(None))
    return sa.and_(row.receiver == receiver, row.delivered_at.is_(None), ~open_.exists())
