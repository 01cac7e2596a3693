"""Evidence checks: what stores say about copies without a read, compared with what was recorded at their write."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.catalogue.bulk import upserts
from worker.catalogue.database import Queries
from worker.catalogue.key_ranges import following
from worker.catalogue.records import GOOD
from worker.catalogue.tables import artifacts, copies, evidence_checks

EVIDENCE_OUTCOMES = ("agrees", "differs", "absent", "unknown")
"""The outcomes of a comparison; `unknown` where the store did not answer."""
_PAGE = 1000
_RECORDED = (
    sa.select(
        copies.c.id, artifacts.c.key, artifacts.c.version, artifacts.c.size, artifacts.c.sha256, copies.c.tag,
        copies.c.evidence, copies.c.read_at,
    )
    .join(copies, copies.c.artifact_id == artifacts.c.id)
    .where(artifacts.c.bucket == sa.bindparam("of"), copies.c.store == sa.bindparam("at"), copies.c.state.in_(GOOD))
    .order_by(artifacts.c.key, artifacts.c.version)
    .limit(_PAGE)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RecordedEvidence:
    """A good copy, and what is recorded of it: its digest, its version tag and the evidence from its write."""

    copy_id: int
    key: str
    version: int
    size: int
    sha256: str
    tag: str | None
    evidence: Mapping[str, Any]
    read_at: datetime | None


@dataclass(frozen=True, slots=True)
class EvidenceCheck:
    """The last comparison of a copy with what its store says; no byte of it was read.

    `outcome`: one of `EVIDENCE_OUTCOMES`. `source`: what told it, `stat`, `listing`, `inventory` or `checksum_report`.
    `compared`: the names of what was compared.
    """

    copy_id: int
    source: str
    outcome: str
    compared: str = ""
    detail: str | None = None
    checked_at: datetime | None = None

    @property
    def is_bad(self) -> bool:
        """Return whether the store tells of another object than was recorded, or of none: a full read decides."""
        return self.outcome in {"differs", "absent"}


@dataclass(frozen=True, slots=True)
class EvidenceSummary:
    """How many copies of a store had their last check without a read with each outcome, and when the oldest was."""

    outcomes: Mapping[str, int]
    oldest_at: datetime


class EvidenceChecks(Queries):
    """One row for each copy, with its own clock. They never move a time of verification, see promise 3."""

    def recorded(
        self, store: str, bucket: str, prefix: str = "", after: str = "", *, since: datetime | None = None
    ) -> Iterator[RecordedEvidence]:
        """Yield the good copies of a store in a bucket by key, one for each key.

        `since`: without those that were found to agree since that time.
        """
        left = [] if since is None else [~_agreed(since)]
        while True:
            query = _RECORDED.where(*following(prefix, after), *left)
            with self._database.read() as connection:
                rows = connection.execute(query, {"of": bucket, "at": store}).all()
            last = {row.key: row for row in rows}  # the newest version of a key is the last one
            yield from (RecordedEvidence(*row) for row in last.values())
            if len(rows) < _PAGE:
                return
            after = rows[-1].key

    def count_agreed(self, store: str, bucket: str, prefix: str = "", *, since: datetime) -> int:
        """Return how many copies `recorded` leaves out that were found to agree since that time."""
        rows = _RECORDED.where(*following(prefix, ""), _agreed(since)).with_only_columns(artifacts.c.key)
        query = sa.select(sa.func.count()).select_from(rows.order_by(None).limit(None).distinct().subquery())
        with self._database.read() as connection:
            return connection.execute(query, {"of": bucket, "at": store}).scalar_one()

    def record(self, checks: Sequence[EvidenceCheck], *, now: datetime) -> None:
        """Record the last check of each copy, in one transaction."""
        rows = [
            {"copy_id": each.copy_id, "checked_at": now, "source": each.source, "outcome": each.outcome,
             "compared": each.compared[:200], "detail": each.detail and each.detail[:500]}
            for each in checks
        ]  # fmt: skip
        if rows:
            with self._database.write() as connection:
                connection.execute(_UPSERTS[connection.dialect.name], rows)

    def of(self, copy_ids: Sequence[int]) -> dict[int, EvidenceCheck]:
        """Return the last check of each of these copies that has one."""
        row = evidence_checks.c
        query = sa.select(row.copy_id, row.source, row.outcome, row.compared, row.detail, row.checked_at)
        with self._database.read() as connection:
            found = connection.execute(query.where(row.copy_id.in_(copy_ids))).all()
        return {each.copy_id: EvidenceCheck(*each) for each in found}

    def by_store(self) -> dict[str, EvidenceSummary]:
        """Return a summary of the last checks in each store that has some; it reads them all."""
        check = evidence_checks.c
        oldest = sa.func.min(check.checked_at, type_=check.checked_at.type)
        query = (
            sa.select(copies.c.store, check.outcome, sa.func.count(), oldest)
            .join(copies, copies.c.id == check.copy_id)
            .group_by(copies.c.store, check.outcome)
            .order_by(copies.c.store, check.outcome)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {
            store: EvidenceSummary(
                {outcome: count for name, outcome, count, _ in rows if name == store},
                min(at for name, _, _, at in rows if name == store),
            )
            for store in dict.fromkeys(name for name, *_ in rows)
        }


def _agreed(since: datetime) -> sa.ColumnElement[bool]:
    """Return the condition of a copy that was found to agree since a time."""
    check = evidence_checks.c
    return sa.exists().where(check.copy_id == copies.c.id, check.outcome == "agrees", check.checked_at >= since)


_CHANGED = ("checked_at", "source", "outcome", "compared", "detail")
_UPSERTS = upserts(evidence_checks, ["copy_id"], lambda new: {name: new[name] for name in _CHANGED})
