"""Repairs: copies that can be repaired, and the stores of which too many copies are bad to trust them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from worker.catalogue.database import Queries
from worker.catalogue.findings import NewFinding, note_action, resolve_store, see
from worker.catalogue.key_ranges import begins_with
from worker.catalogue.records import BAD, GOOD, Artifact, FindingKind, artifact_of
from worker.catalogue.sweep_claims import Plan, claim_copies, unclaimed
from worker.catalogue.tables import BAD_VERDICT, CURRENT, artifacts, copies, findings, store_trust, verifications
from worker.storage.keys import CANARY_BUCKET

_other = copies.alias("other")


class Repairs(Queries):
    """The copies and stores, as repairs need them."""

    def claim(
        self,
        store: str,
        *,
        sources: Sequence[str],
        now: datetime,
        until: datetime,
        limit: int,
        job: str,
        within: tuple[str | None, str] = (None, ""),
        metadata: bool = False,
        plan: Plan | None = None,
    ) -> list[Artifact]:
        """Claim bad copies of a store whose artifact has a good copy in another of `sources`.

        Only copies of the current version are claimed. A copy whose artifact is lost is not touched. `job` will repair
        them: their findings name it from now on. `within` is a bucket and a prefix. `metadata`: copies with right bytes
        and wrong metadata beside them are claimed instead; they need no other copy.

        Returns:
            The artifact of each copy.
        """
        if metadata:
            query, still, action = _with_wrong_metadata(store, within), copies.c.state.in_(GOOD), "rewrite metadata"
        else:
            query, still, action = _repairable(store, sources, within), copies.c.state.in_(BAD), "repair"
        query = query.add_columns(copies.c.id.label("copy")).where(unclaimed(now, until)).limit(limit)
        with self._database.read() as connection:
            found = {row.copy: artifact_of(row) for row in connection.execute(query)}
        if not found:
            return []
        with self._database.write() as connection:
            claimed = claim_copies(connection, list(found), still, now=now, until=until)
            repaired = [found[copy] for copy in claimed]
            note_action(connection, {(store, of.bucket, of.key): job for of in repaired}, action, now)
            if plan and repaired:
                plan(connection, repaired)
        return repaired

    def count_wrong_metadata(self, store: str, *, within: tuple[str | None, str] = (None, "")) -> int:
        """Return how many copies of a store have right bytes and wrong metadata, claimed ones included."""
        return self._count(_with_wrong_metadata(store, within))

    def _count(self, wanted: sa.Select[Any]) -> int:
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(wanted.subquery())).scalar_one()

    def count_repairable(
        self, store: str, *, sources: Sequence[str], within: tuple[str | None, str] = (None, "")
    ) -> int:
        """Return how many bad copies of a store have a good one elsewhere, claimed ones included."""
        return self._count(_repairable(store, sources, within))

    def count_bad(self, store: str, *, since: datetime, limit: int) -> int:
        """Return how many copies of a store were found bad since a time, or since `trust`; `limit` at most.

        Copies that have been repaired meanwhile count: many repairs show a store that fails as well as many bad copies.
        """
        with self._database.read() as connection:
            trusted = connection.execute(
                sa.select(store_trust.c.trusted_at).where(store_trust.c.store == store)
            ).scalar()
            row = verifications.c
            found = (
                sa.select(row.bucket, row.key, row.version)
                .where(row.store == store, row.at > max(since, trusted or since), BAD_VERDICT)
                .where(row.bucket != CANARY_BUCKET)
                .distinct()
                .limit(limit)
                .subquery()
            )
            return connection.execute(sa.select(sa.func.count()).select_from(found)).scalar_one()

    def untrusted(self) -> dict[str, str]:
        """Return the stores whose repairs stopped, and why."""
        query = sa.select(store_trust).where(store_trust.c.untrusted_since.is_not(None)).order_by(store_trust.c.store)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {row.store: row.reason for row in rows}

    def distrust(self, store: str, *, reason: str, now: datetime) -> None:
        """Stop the repairs of a store until `trust`."""
        with self._database.write() as connection:
            _put(connection, store, untrusted_since=now, reason=reason)
            see(connection, [NewFinding(FindingKind.STORE_UNTRUSTED, store, evidence={"reason": reason})], now)

    def trust(self, store: str, *, now: datetime) -> bool:
        """Continue repairs and return whether they had stopped; what was found bad before does not count any more."""
        stopped = store in self.untrusted()
        with self._database.write() as connection:
            _put(connection, store, untrusted_since=None, reason=None, trusted_at=now)
            resolve_store(connection, FindingKind.STORE_UNTRUSTED, store, "trusted by an operator", now)
        return stopped


def _put(connection: sa.Connection, store: str, **values: object) -> None:
    if not connection.execute(sa.update(store_trust).where(store_trust.c.store == store).values(**values)).rowcount:
        connection.execute(sa.insert(store_trust).values(store=store, **values))


def _repairable(store: str, sources: Sequence[str], within: tuple[str | None, str]) -> sa.Select[Any]:
    """Return the query of the current artifacts with a bad copy in a store and a good one in another of `sources`."""
    good_elsewhere = sa.exists().where(
        _other.c.artifact_id == copies.c.artifact_id,
        _other.c.store.in_(sources),
        _other.c.state.in_(GOOD),
    )
    return _current_copies(store, within).where(copies.c.state.in_(BAD), good_elsewhere)


def _with_wrong_metadata(store: str, within: tuple[str | None, str]) -> sa.Select[Any]:
    """Return the query of the current artifacts with a good copy in a store whose metadata is known to be wrong."""
    row = findings.c
    known = sa.and_(row.bucket == artifacts.c.bucket, row.key == artifacts.c.key, row.version == artifacts.c.version)
    return (
        _current_copies(store, within)
        .join(findings, known)
        .where(row.kind == FindingKind.METADATA, row.store == store, row.resolved_at.is_(None))
        .where(copies.c.state.in_(GOOD))
    )


def _current_copies(store: str, within: tuple[str | None, str]) -> sa.Select[Any]:
    bucket, prefix = within
    scope = [] if bucket is None else [artifacts.c.bucket == bucket, *begins_with(artifacts.c.key, prefix)]
    return (
        sa.select(artifacts)
        .join(copies, copies.c.artifact_id == artifacts.c.id)
        .where(copies.c.store == store, *CURRENT, *scope)
    )
