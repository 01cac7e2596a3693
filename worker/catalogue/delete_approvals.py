"""Requested deletes: those that wait for the approval of a second person, and those that count towards the limit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import CatalogueError, Queries
from worker.catalogue.findings import NewFinding, resolve_key, see
from worker.catalogue.records import ENDED_STATES, FindingKind
from worker.catalogue.tables import delete_requests, jobs
from worker.catalogue.types import without_nul
from zot_artifact_client.contract import JobState

_TEXT = 500
_PRUNED = 1000


class ApprovalState(StrEnum):
    """The state of a requested delete."""

    ALLOWED = "allowed"
    """It was within the limit: it needs no approval, and counts until the window is over."""
    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """Its job ended before a second person decided."""


class CannotDecide(CatalogueError):
    """A delete cannot be approved or rejected; says why."""


@dataclass(frozen=True, slots=True)
class DeleteApproval:
    """A requested delete, who asked for it, and who decided.

    `what`: what it deletes, for people. `decided_from`: the user and machine that the decision came from. `versions`:
    the ids of the versions that a delete of one artifact found, its own and those of companions; None for a batch,
    which keeps what it found itself, and for a delete that was recorded before migration 0034.
    """

    job: str
    state: ApprovalState
    what: str
    objects: int
    bytes: int
    requested_by: str
    reason: str | None
    requested_at: datetime
    expires_at: datetime
    decided_by: str | None = None
    decided_from: str | None = None
    decided_at: datetime | None = None
    note: str | None = None
    versions: Sequence[int] | None = None


class DeleteApprovals(Queries):
    """The requested deletes, by job."""

    def get(self, job: str) -> DeleteApproval | None:
        """Return the delete that a job does, or None if it was never counted."""
        with self._database.read() as connection:
            return _find(connection, job)

    def request(self, wanted: DeleteApproval, *, above: int, window: timedelta) -> DeleteApproval:
        """Record a delete, and return it as it is recorded: allowed or waiting.

        It waits if it and all that the same requester was allowed within `window` are more than `above` objects. A
        delete that is recorded already stays as it is, so that another attempt of its job counts nothing twice. One
        that would have to wait and names no requester is not recorded.
        """
        now = wanted.requested_at
        mine = (
            delete_requests.c.requested_by == wanted.requested_by, delete_requests.c.state == ApprovalState.ALLOWED,
            delete_requests.c.requested_at > now - window,
        )  # fmt: skip
        with self._database.write() as connection:
            if found := _find(connection, wanted.job):
                return found
            counted = sa.select(sa.func.coalesce(sa.func.sum(delete_requests.c.objects), 0)).where(*mine)
            before = int(connection.execute(counted).scalar_one())
            state = ApprovalState.WAITING if before + wanted.objects > above else ApprovalState.ALLOWED
            row = asdict(wanted) | {"state": state}
            for name in ("what", "requested_by", "reason"):
                row[name] = without_nul(row[name][:_TEXT]) if row[name] else row[name]
            if state is ApprovalState.WAITING and not row["requested_by"]:
                return _of(row)
            connection.execute(sa.insert(delete_requests), row)
            if state is ApprovalState.WAITING:
                noun = "object" if wanted.objects == 1 else "objects"
                told = f"{wanted.requested_by} wants to delete {wanted.objects} {noun}: {wanted.what}"
                detail = f"{told}; `zot-artifacts deletes` shows it"
                evidence = {"detail": detail, "before_in_window": before, "expires_at": wanted.expires_at.isoformat()}
                see(connection, [NewFinding(FindingKind.DELETE_WAITING, key=wanted.job, evidence=evidence)], now)
            return _of(row)

    def decide(
        self, job: str, state: ApprovalState, *, by: str, origin: str, note: str | None, now: datetime
    ) -> DeleteApproval:
        """Approve or reject a waiting delete, once, and return it.

        Raises:
            CannotDecide: there is none, it does not wait any more, its job has ended, or `by` is the requester.
        """
        self.close_ended(now=now)
        with self._database.write() as connection:
            found = _find(connection, job)
            if found is None or found.state is ApprovalState.ALLOWED:
                raise CannotDecide(f"no delete {job} needs an approval: `zot-artifacts deletes` lists those that wait")
            if found.state is not ApprovalState.WAITING:
                who = f" by {found.decided_by}" if found.decided_by else ""
                raise CannotDecide(f"delete {job} was {found.state}{who} at {found.decided_at:%Y-%m-%d %H:%M} UTC")
            if by.strip().casefold() == found.requested_by.strip().casefold():
                raise CannotDecide(f"{by} has requested delete {job}: another person has to decide")
            values = {
                "state": state, "decided_by": without_nul(by[:_TEXT]), "decided_at": now,
                "decided_from": without_nul(origin[:_TEXT]), "note": without_nul(note[:_TEXT]) if note else None,
            }  # fmt: skip
            _settle(connection, job, values, f"{state} by {by}", now)
            made = _find(connection, job)
        assert made is not None
        return made

    def close_ended(self, *, now: datetime) -> None:
        """Record which waiting deletes expired or lost their job, and forget allowed ones that count no longer."""
        with self._database.write() as connection:
            _close_ended(connection, now)

    def prune(self, *, before: datetime) -> int:
        """Forget some deletes that were allowed before a time, and return how many. Decisions are never forgotten."""
        old = (
            sa.select(delete_requests.c.job)
            .where(delete_requests.c.state == ApprovalState.ALLOWED, delete_requests.c.requested_at < before)
            .limit(_PRUNED)
        )
        with self._database.write() as connection:
            return connection.execute(sa.delete(delete_requests).where(delete_requests.c.job.in_(old))).rowcount

    def page(self, *, every: bool = False, limit: int = 1000) -> list[DeleteApproval]:
        """Return the deletes that wait, with `every` also those that were decided, the latest first."""
        where = (
            delete_requests.c.state != ApprovalState.ALLOWED
            if every
            else delete_requests.c.state == ApprovalState.WAITING
        )
        query = sa.select(delete_requests).where(where).order_by(delete_requests.c.requested_at.desc()).limit(limit)
        with self._database.read() as connection:
            return [_of(dict(row._mapping)) for row in connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name


def _close_ended(connection: Connection, now: datetime) -> None:
    waiting = (
        sa.select(delete_requests.c.job, delete_requests.c.expires_at, jobs.c.state)
        .outerjoin(jobs, jobs.c.id == delete_requests.c.job)
        .where(delete_requests.c.state == ApprovalState.WAITING)
    )
    for row in connection.execute(waiting).all():
        if row.state is not None and JobState(row.state) in ENDED_STATES:
            end = ApprovalState.WITHDRAWN
        elif row.expires_at <= now:
            end = ApprovalState.EXPIRED
        else:
            continue
        _settle(connection, row.job, {"state": end, "decided_at": now}, end.value, now)


def _settle(connection: Connection, job: str, values: Mapping[str, Any], how: str, now: datetime) -> None:
    mine = sa.and_(delete_requests.c.job == job, delete_requests.c.state == ApprovalState.WAITING)
    connection.execute(sa.update(delete_requests).where(mine).values(**values))
    resolve_key(connection, FindingKind.DELETE_WAITING, job, how, now)


def _find(connection: Connection, job: str) -> DeleteApproval | None:
    row = connection.execute(sa.select(delete_requests).where(delete_requests.c.job == job)).one_or_none()
    return _of(dict(row._mapping)) if row else None  # noqa: SLF001 - SQLAlchemy's public name


def _of(row: Mapping[str, Any]) -> DeleteApproval:
    return DeleteApproval(**{**row, "state": ApprovalState(row["state"])})
