"""The verification log: append-only, each row chained to the one before it."""

import hashlib
import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker.catalogue.artifacts import FIRST_READS, SPREADS
from worker.catalogue.database import Database
from worker.catalogue.records import Artifact, Copy, CopyState, Finding
from worker.catalogue.tables import copies, verifications
from worker.catalogue.types import without_nul
from worker.storage import Verdict

_FIRST = "0" * 64
_CHAINED = [c.name for c in verifications.c if c.name not in {"id", "hash"}]


class Verifications:
    """The verdict of every verification of a copy."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, finding: Finding, copy: Copy, *, tag: str | None, now: datetime, retry_at: datetime | None = None
    ) -> None:
        """Append a verdict to the log and update the copy, atomically.

        Every verdict moves `last_attempt_at`; only `verified` moves `last_verified_at`. `unreadable` and `unverifiable`
        leave the state as it was: they say nothing about the bytes. `tag` is the store's version tag of the bytes read.
        `retry_at`: when an unreadable copy is read again; it is due as soon as it was before.
        """
        values: dict[str, Any] = {
            "last_attempt_at": now,
            "last_verdict": finding.verdict,
            "next_due_at": retry_at,
            "claimed_until": None,
            "attempts": copies.c.attempts + 1,
        }
        if finding.verdict != Verdict.UNREADABLE:
            values |= {"read_at": now, "spread": FIRST_READS + copies.c.artifact_id % (SPREADS - FIRST_READS)}
        if finding.verdict == Verdict.VERIFIED:
            values |= {"last_verified_at": now, "tag": tag}
        if finding.verdict not in {Verdict.UNREADABLE, Verdict.UNVERIFIABLE}:
            values["state"] = CopyState(finding.verdict)
        with self._database.write() as connection:
            _append(connection, finding, now)
            connection.execute(sa.update(copies).where(copies.c.id == copy.id).values(values))

    def of(self, bucket: str, key: str, limit: int = 100) -> list[dict[str, Any]]:
        """Return the verdicts about an artifact's copies, the latest first."""
        query = (
            sa.select(verifications)
            .where(verifications.c.bucket == bucket, verifications.c.key == key)
            .order_by(verifications.c.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's public name

    def by_job(self, job: str, artifact: Artifact, store: str) -> tuple[str, str | None, str | None] | None:
        """Return verdict, digest and detail of the latest verdict that a job recorded of a copy, or None."""
        row = verifications.c
        query = (
            sa.select(row.verdict, row.found_sha256, row.detail)
            .where(row.bucket == artifact.bucket, row.key == artifact.key, row.version == artifact.version)
            .where(row.job == job, row.store == store)
            .order_by(row.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).one_or_none()
        return tuple(found) if found else None

    def first_broken(self) -> int | None:
        """Walk the chain and return the id of the first row that does not fit the one before it, or None."""
        previous = _FIRST
        query = sa.select(verifications).order_by(verifications.c.id).execution_options(yield_per=1000)
        with self._database.read() as connection, connection.execute(query) as rows:
            for row in rows:
                if row.previous != previous or row.hash != _hash(row):
                    return int(row.id)
                previous = row.hash
        return None


def _append(connection: Connection, finding: Finding, now: datetime) -> None:
    last = sa.select(verifications.c.hash).order_by(verifications.c.id.desc()).limit(1)
    row = {
        "at": now,
        "job": without_nul(finding.job),  # the hash is over what can be read back
        "store": finding.store,
        "bucket": finding.artifact.bucket,
        "key": finding.artifact.key,
        "version": finding.artifact.version,
        "verdict": finding.verdict,
        "expected_sha256": finding.artifact.digest.sha256,
        "found_sha256": finding.found_sha256,
        "found_size": finding.found_size,
        "detail": without_nul(finding.detail[:2000]) if finding.detail else None,
        "previous": connection.execute(last).scalar() or _FIRST,
    }
    connection.execute(sa.insert(verifications).values(**row, hash=_hash_of(row)))


def _hash(row: Row[Any]) -> str:
    return _hash_of({name: getattr(row, name) for name in _CHAINED})


def _hash_of(row: dict[str, Any]) -> str:
    canonical = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
