"""The history of one artifact: all that the catalogue has recorded about it, by time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.database import Queries
from worker.catalogue.tables import (
    artifacts,
    copies,
    evidence_checks,
    findings,
    holds,
    jobs,
    tombstones,
    undeletes,
    verifications,
)
from worker.catalogue.verifications import row_fits
from worker.storage import Verdict

READ = "all bytes read"
NOT_READ = "not all bytes read"
CLAIMED = "what the store says, no byte read"
_READ = {Verdict.VERIFIED, Verdict.CORRUPT}
"""The verdicts after a read of all bytes; a missing copy has none, and of another size tells enough."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was recorded about an artifact.

    `what`: `recorded`, `upload`, `replicate`, `repaired`, `delete` and other jobs that write, `read`, `attempt`,
    `checked`, `finding`, `acted on`, `resolved`, `deleted`, `undeleted` or `held`. `details`: what there is to know
    about it, by name.
    """

    at: datetime
    what: str
    store: str | None = None
    version: int | None = None
    job: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def is_full_read(verdict: str, found_sha256: str | None) -> bool:
    """Return whether a row of the verification log with this verdict and this digest was a read of all bytes."""
    return verdict in _READ or found_sha256 is not None


class History(Queries):
    """What happened to artifacts."""

    def of(self, bucket: str, key: str) -> list[Event]:
        """Return everything about an artifact, the earliest first; nothing if it was never recorded."""
        with self._database.read() as connection:
            found = [event for part in _PARTS for event in part(connection, bucket, key)]
        return sorted(found, key=lambda event: event.at)


def _versions(connection: Connection, bucket: str, key: str) -> Iterator[Event]:
    for row in _rows(connection, artifacts, bucket, key):
        facts = {"size": row.size, "sha256": row.sha256}
        yield Event(row.created_at, "recorded", version=row.version, job=row.job, details=facts)
        if row.tombstoned_at is not None:
            yield Event(row.tombstoned_at, "deleted", version=row.version)


def _reads(connection: Connection, bucket: str, key: str) -> Iterator[Event]:
    for row in _rows(connection, verifications, bucket, key):
        read = is_full_read(row.verdict, row.found_sha256)
        details = {
            "verdict": row.verdict, "evidence": READ if read else NOT_READ, "expected_sha256": row.expected_sha256,
            "found_sha256": row.found_sha256, "found_size": row.found_size, "detail": row.detail,
            "row": row.id, "hash": row.hash, "row_fits_its_hash": row_fits(row),
        }  # fmt: skip
        yield Event(row.at, "read" if read else "attempt", row.store, row.version, row.job, details)


def _checks(connection: Connection, bucket: str, key: str) -> Iterator[Event]:
    query = (
        sa.select(evidence_checks, copies.c.store, artifacts.c.version)
        .join(copies, copies.c.id == evidence_checks.c.copy_id)
        .join(artifacts, artifacts.c.id == copies.c.artifact_id)
        .where(artifacts.c.bucket == bucket, artifacts.c.key == key)
    )
    for row in connection.execute(query):
        details = {
            "outcome": row.outcome, "evidence": CLAIMED, "by": row.source, "compared": row.compared,
            "detail": row.detail,
        }  # fmt: skip
        yield Event(row.checked_at, "checked", row.store, row.version, None, details)


def _jobs(connection: Connection, bucket: str, key: str) -> Iterator[Event]:
    """Yield the jobs that wrote to the artifact: one event for each copy that a job has placed or deleted."""
    for row in connection.execute(sa.select(jobs).where(jobs.c.holds == f"{bucket}/{key}")):
        at, result = row.finished_at or row.started_at or row.created_at, row.result or {}
        placed = result.get("copies")
        if not isinstance(placed, list) or not placed:
            details = {"state": row.state, "error": (row.error or {}).get("message")}
            yield Event(at, row.kind, None, result.get("version"), row.id, details)
            continue
        for each in placed:
            what = "repaired" if each.get("outcome") == "repaired" else row.kind
            details = {"state": row.state, **{name: each.get(name) for name in ("outcome", "source", "quarantined")}}
            yield Event(at, what, each.get("store"), result.get("version"), row.id, details)


def _findings(connection: Connection, bucket: str, key: str) -> Iterator[Event]:
    for row in _rows(connection, findings, bucket, key):
        place = (row.store or None, row.version or None)
        yield Event(row.opened_at, "finding", *place, row.evidence.get("job"), {"kind": row.kind, "finding": row.id})
        if row.acted_at is not None:
            yield Event(row.acted_at, "acted on", *place, row.job, {"kind": row.kind, "action": row.action})
        if row.resolved_at is not None:
            yield Event(row.resolved_at, "resolved", *place, None, {"kind": row.kind, "how": row.how})


def _decisions(connection: Connection, bucket: str, key: str) -> Iterator[Event]:
    for row in _rows(connection, tombstones, bucket, key):
        details = {"by": row.by, "reason": row.reason, "purge_after": row.purge_after}
        yield Event(row.deleted_at, "deleted", None, row.version, row.job, details)
    for row in _rows(connection, undeletes, bucket, key):
        deleted = {"by": row.deleted_by, "reason": row.delete_reason}
        yield Event(row.deleted_at, "deleted", None, row.version, row.job, deleted)
        yield Event(row.undone_at, "undeleted", None, row.version, None, {"by": row.by, "reason": row.reason})
    for row in _rows(connection, holds, bucket, key):
        yield Event(row.held_at, "held", details={"by": row.by, "reason": row.reason})


_PARTS = (_versions, _jobs, _reads, _checks, _findings, _decisions)


def _rows(connection: Connection, table: sa.Table, bucket: str, key: str) -> "sa.Result[Any]":
    return connection.execute(sa.select(table).where(table.c.bucket == bucket, table.c.key == key))
