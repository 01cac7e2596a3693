"""Findings: deviations from the record, opened and resolved in the transaction that records why."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from statistics import median
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker.catalogue.bulk import by_bucket, one_of, upserts
from worker.catalogue.compiled_statements import Asked, Prepared
from worker.catalogue.database import Queries
from worker.catalogue.records import BAD, GOOD, Artifact, Copy, FindingKind, VerdictRow
from worker.catalogue.tables import CURRENT, artifacts, canaries, copies, findings
from worker.catalogue.types import Text, without_nul
from worker.storage import Verdict
from worker.storage.keys import CANARY_BUCKET

logger = logging.getLogger(__name__)

COPY_KINDS = frozenset({
    FindingKind.SUSPECT, FindingKind.CORRUPT, FindingKind.MISSING, FindingKind.SIZE_MISMATCH, FindingKind.UNREADABLE,
})  # fmt: skip
"""The kinds that are about the bytes of one copy."""
_DAMAGE = {FindingKind(state) for state in BAD} | {FindingKind.SUSPECT}
_OF_COPIES = COPY_KINDS | {FindingKind.CANARY, FindingKind.METADATA}
_FEW = 500
"""Open findings that one search by a range of keys returns at most; where there are more, each key is searched."""
_LOGGED = 20
_PRUNED = 1000
_TEXT = 500

_PATH = attrgetter("bucket", "key")
_OPEN = findings.c.resolved_at.is_(None)
_PLACE = (findings.c.bucket, findings.c.key)
_KEYED = (
    findings.c.bucket == "", findings.c.key == sa.bindparam("of", type_=Text()),
    findings.c.kind == sa.bindparam("what"),
)  # fmt: skip
_SLIM = sa.select(
    findings.c.id, findings.c.kind, findings.c.bucket, findings.c.key, findings.c.version, findings.c.store
).where(_OPEN)


def _bound(name: str) -> "sa.Tuple":
    return sa.tuple_(sa.bindparam(f"{name}_bucket", type_=Text()), sa.bindparam(f"{name}_key", type_=Text()))


_BETWEEN = Prepared(
    _SLIM.where(sa.tuple_(*_PLACE) >= _bound("low"), sa.tuple_(*_PLACE) <= _bound("high")).limit(_FEW + 1)
)
_RESOLVE = (
    sa.update(findings)
    .where(findings.c.id == sa.bindparam("finding"), _OPEN)
    .values(resolved_at=sa.bindparam("at"), how=sa.bindparam("by"))
)
_ACT = (
    sa.update(findings)
    .where(
        findings.c.bucket == sa.bindparam("of_bucket"), findings.c.key == sa.bindparam("of_key"),
        findings.c.store == sa.bindparam("of_store"), _OPEN,
    )
    .values(acted_at=sa.bindparam("at"), action=sa.bindparam("what"), job=sa.bindparam("by"))
)  # fmt: skip
_HAND_OVER = (
    sa.update(findings)
    .where(
        findings.c.bucket == sa.bindparam("of_bucket"), findings.c.key == sa.bindparam("of_key"),
        findings.c.store == sa.bindparam("of_store"), findings.c.job == sa.bindparam("of_job"), _OPEN,
    )
    .values(acted_at=sa.bindparam("at"), job=sa.bindparam("by"))
)  # fmt: skip
_other = copies.alias("other")
_LOST = sa.select(artifacts.c.bucket, artifacts.c.key, artifacts.c.version).where(
    sa.exists().where(_other.c.artifact_id == artifacts.c.id, _other.c.state.in_(BAD)),
    ~sa.exists().where(_other.c.artifact_id == artifacts.c.id, _other.c.state.in_(GOOD)),
    ~sa.exists().where(
        findings.c.bucket == artifacts.c.bucket, findings.c.key == artifacts.c.key, _OPEN,
        findings.c.version == artifacts.c.version, findings.c.kind == FindingKind.LOST,
    ),
    artifacts.c.bucket != CANARY_BUCKET,
    *CURRENT,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewFinding:
    """A finding to open, or to see once more. What does not apply is empty, and `version` 0.

    `evidence`: a few short values that JSON has.
    """

    kind: FindingKind
    store: str = ""
    bucket: str = ""
    key: str = ""
    version: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FindingRecord:
    """A finding as the catalogue has it; what does not apply is None.

    `action` and `job`: what was begun to resolve it, at `acted_at`. `how`: what resolved it, at `resolved_at`.
    """

    id: int
    kind: FindingKind
    store: str | None
    bucket: str | None
    key: str | None
    version: int | None
    opened_at: datetime
    last_seen_at: datetime
    acted_at: datetime | None
    action: str | None
    job: str | None
    resolved_at: datetime | None
    how: str | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    note: str | None
    evidence: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """Return what the finding is about: an artifact, a delete, a webhook, a store or the catalogue."""
        if self.bucket is not None:
            return f"{self.bucket}/{self.key}"
        if self.kind is FindingKind.DELETE_WAITING:
            return f"delete {self.key}"
        if self.kind is FindingKind.WEBHOOK_UNDELIVERED:
            return f"webhook {self.key}"
        return f"store {self.store}" if self.store else "the catalogue"


@dataclass(frozen=True, slots=True)
class FindingCount:
    """The open findings of one kind in one store. `since`: when the first of them was opened."""

    kind: FindingKind
    store: str | None
    count: int
    acknowledged: int
    acted: int
    since: datetime


@dataclass(frozen=True, slots=True)
class FindingHistory:
    """The findings of one kind within some time. The seconds are from open to resolved."""

    opened: int
    resolved: int
    median_seconds: float | None
    longest_seconds: float | None


class Findings(Queries):
    """The findings. At most one is open for a kind and a place: a copy, an artifact, an object or a store."""

    def see(self, found: Sequence[NewFinding], *, now: datetime) -> None:
        """Open findings, or record that open ones were seen once more."""
        if found:
            with self._database.write() as connection:
                see(connection, found, now)

    def see_store(self, kind: FindingKind, store: str, evidence: Mapping[str, Any] | None, *, now: datetime) -> None:
        """Open or update the finding of one kind on a store; without evidence resolve it."""
        with self._database.read() as connection:
            there = connection.execute(_of_store(kind, store)).scalar()
        if evidence is None and there is None:
            return
        with self._database.write() as connection:
            if evidence is not None:
                see(connection, [NewFinding(kind, store, evidence=evidence)], now)
            else:
                resolve_store(connection, kind, store, "no longer so", now)

    def end_suspicion(self, store: str, bucket: str, key: str, *, now: datetime) -> None:
        """Resolve that a copy is suspect: it was replaced or deleted before it was read a second time."""
        with self._database.write() as connection:
            found = _open_at(connection, {(bucket, key)})
            ids = [row.id for row in found if (row.store, row.kind) == (store, FindingKind.SUSPECT)]
            _resolve(connection, dict.fromkeys(ids, "replaced before the second read"), now)

    def has_wrong_metadata(self, artifact: Artifact, store: str) -> bool:
        """Return whether the finding is open that a copy of this version has right bytes and wrong metadata."""
        row = findings.c
        query = sa.select(row.id).where(
            _OPEN, row.bucket == artifact.bucket, row.key == artifact.key, row.store == store,
            row.kind == FindingKind.METADATA, row.version == artifact.version,
        )  # fmt: skip
        with self._database.read() as connection:
            return connection.execute(query).scalar() is not None

    def resolve(self, ids: Iterable[int], how: str, *, now: datetime) -> None:
        """Resolve open findings by their ids."""
        with self._database.write() as connection:
            _resolve(connection, dict.fromkeys(ids, how), now)

    def act(self, places: Mapping[tuple[str, str, str], str], action: str, *, now: datetime) -> None:
        """Record what was begun about the open findings of copies, by store, bucket and key; the values are jobs."""
        if places:
            with self._database.write() as connection:
                note_action(connection, places, action, now)

    def hand_over(self, job: str, store: str, to: Mapping[tuple[str, str], str], *, now: datetime) -> None:
        """Record which other jobs do from now on what a job had begun about copies, by bucket and key."""
        values = [
            {"of_store": store, "of_bucket": bucket, "of_key": key, "of_job": job, "by": other, "at": now}
            for (bucket, key), other in to.items()
        ]
        if values:
            with self._database.write() as connection:
                connection.execute(_HAND_OVER, values)

    def orphans_of(self, job: str, store: str) -> list[FindingRecord]:
        """Return the open findings of orphans in a store that a job was begun about."""
        mine = sa.and_(findings.c.kind == FindingKind.ORPHAN, findings.c.store == store, findings.c.job == job)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(findings).where(_OPEN, mine).order_by(findings.c.id)).all()
        return [_record_of(row) for row in rows]

    def see_lost(self, stores: Sequence[str], *, now: datetime, limit: int) -> int:
        """Open what is lost and has no finding yet, and return how many artifacts are lost in all, `limit` at most.

        Verdicts open these findings by themselves; this finds what another change left without a good copy.
        """
        bad = sa.select(copies.c.artifact_id).where(copies.c.store.in_(stores), copies.c.state.in_(BAD))
        with self._database.read() as connection:
            lost = connection.execute(_LOST.where(artifacts.c.id.in_(bad)).limit(limit)).all()
        if lost:
            with self._database.write() as connection:
                _see_lost(connection, [tuple(row) for row in lost], now)
        count = sa.select(findings.c.id).where(_OPEN, findings.c.kind == FindingKind.LOST).limit(limit).subquery()
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(count)).scalar_one()

    def acknowledge(self, id_: int, *, by: str, note: str, now: datetime) -> FindingRecord | None:
        """Record that a person knows of a finding; it stays open. Return it, or None if there is none."""
        change = sa.update(findings).where(findings.c.id == id_)
        values = {"acknowledged_at": now, "acknowledged_by": without_nul(by[:_TEXT]), "note": without_nul(note[:_TEXT])}
        with self._database.write() as connection:
            connection.execute(change.values(**values))
        return self.get(id_)

    def get(self, id_: int) -> FindingRecord | None:
        """Return one finding, open or resolved."""
        if not 0 < id_ < 2**63:
            return None
        with self._database.read() as connection:
            row = connection.execute(sa.select(findings).where(findings.c.id == id_)).one_or_none()
        return _record_of(row) if row else None

    def page(
        self,
        *,
        kind: FindingKind | None = None,
        store: str | None = None,
        resolved: bool = False,
        after: int = 0,
        limit: int = 100,
    ) -> list[FindingRecord]:
        """Return findings by id, after the one given: the open ones, or with `resolved` all."""
        query = sa.select(findings).where(findings.c.id > after).order_by(findings.c.id).limit(limit)
        if not resolved:
            query = query.where(_OPEN)
        if kind is not None:
            query = query.where(findings.c.kind == kind)
        if store is not None:
            query = query.where(findings.c.store == store)
        with self._database.read() as connection:
            return [_record_of(row) for row in connection.execute(query)]

    def history(self, *, since: datetime) -> dict[FindingKind, "FindingHistory"]:
        """Return how many findings were opened since a time, by kind, and how long those took that are resolved."""
        row = findings.c
        query = sa.select(row.kind, row.opened_at, row.resolved_at).where(row.opened_at > since)
        opened: dict[FindingKind, int] = {}
        took: dict[FindingKind, list[float]] = {}
        with self._database.read() as connection:
            for kind, began, ended in connection.execution_options(yield_per=1000).execute(query):
                opened[FindingKind(kind)] = opened.get(FindingKind(kind), 0) + 1
                if ended is not None:
                    took.setdefault(FindingKind(kind), []).append((ended - began).total_seconds())
        return {
            kind: FindingHistory(
                count, len(took.get(kind, [])), median(took[kind]) if kind in took else None,
                max(took[kind]) if kind in took else None,
            )
            for kind, count in opened.items()
        }  # fmt: skip

    def last_resolved(self, limit: int) -> list[FindingRecord]:
        """Return the findings that were resolved last, the latest first."""
        query = sa.select(findings).where(findings.c.resolved_at.is_not(None)).order_by(findings.c.resolved_at.desc())
        with self._database.read() as connection:
            return [_record_of(row) for row in connection.execute(query.limit(limit))]

    def counts(self) -> list[FindingCount]:
        """Return the open findings counted by kind and store: from the index alone."""
        row = findings.c
        query = (
            sa.select(
                row.kind, row.store, sa.func.count(), sa.func.count(row.acknowledged_at), sa.func.count(row.acted_at),
                sa.func.min(row.opened_at, type_=row.opened_at.type),
            )
            .where(_OPEN)
            .group_by(row.kind, row.store)
        )  # fmt: skip
        with self._database.read() as connection:
            return [
                FindingCount(FindingKind(kind), store or None, *rest)
                for kind, store, *rest in connection.execute(query)
            ]

    def prune(self, *, before: datetime) -> int:
        """Forget some findings that were resolved before a time; return how many. An open one is never forgotten."""
        old = sa.select(findings.c.id).where(findings.c.resolved_at < before).limit(_PRUNED)
        with self._database.read() as connection:
            ids = list(connection.execute(old).scalars())
        if ids:
            with self._database.write() as connection:
                connection.execute(sa.delete(findings).where(findings.c.id.in_(ids)))
        return len(ids)


# What other changes of the catalogue do to findings, within their transactions


def note_verdicts(connection: Connection, verdicts: Sequence[VerdictRow], now: datetime, around: Asked) -> None:
    """Open what verdicts found bad or could not read; resolve what they found right, or wrong in another way.

    `around`: what `ask_around` asked about these keys.
    """
    open_ = _open_at(connection, set(map(_PATH, verdicts)), around)
    verified = Verdict.VERIFIED
    if not open_ and all(each.verdict == verified and not each.has_wrong_metadata for each in verdicts):
        return
    last = {(each.store, each.bucket, each.key, each.version): each for each in verdicts}
    resolved: dict[int, str] = {}
    for row in open_:
        verdict = last.get((row.store, row.bucket, row.key, row.version))
        if verdict is not None and row.kind in _OF_COPIES and (how := _settles(verdict, row.kind)):
            resolved[row.id] = how
        elif row.kind == FindingKind.LOST:
            good = (each for each in last.values() if each.verdict == Verdict.VERIFIED)
            of = next((e for e in good if (e.bucket, e.key, e.version) == (row.bucket, row.key, row.version)), None)
            if of is not None:
                resolved[row.id] = f"the copy in {of.store} was verified by job {of.job}"
    _resolve(connection, resolved, now)
    bad = [each for each in last.values() if each.verdict in BAD]
    unread = [each for each in last.values() if each.verdict == Verdict.UNREADABLE]
    see(connection, [_finding_of(each, FindingKind(each.verdict)) for each in [*bad, *unread]], now)
    see(connection, [_metadata_finding(each) for each in last.values() if each.has_wrong_metadata], now)
    if bad:
        see_lost_among(connection, {(each.bucket, each.key) for each in bad}, now)


def note_writes(connection: Connection, written: Collection[tuple[Artifact, str]], now: datetime) -> None:
    """Resolve the findings about copies that were written, and about versions that were replaced by that."""
    versions = {(store, of.bucket, of.key): of.version for of, store in written}
    newest = {(of.bucket, of.key): (of.version, store) for of, store in written}
    resolved: dict[int, str] = {}
    for row in _open_at(connection, set(newest)):
        if (here := versions.get((row.store, row.bucket, row.key))) is not None:
            resolved[row.id] = "written" if row.version in {here, 0} else f"replaced by version {here}"
        elif row.kind in {FindingKind.LOST, FindingKind.UNDER_REPLICATED}:
            version, store = newest[row.bucket, row.key]
            if row.version < version:
                resolved[row.id] = f"replaced by version {version}"
            elif row.kind == FindingKind.LOST and row.version == version:
                resolved[row.id] = f"written to {store}"
    _resolve(connection, resolved, now)


def note_deletes(connection: Connection, deleted: Sequence[Copy], how: str, now: datetime) -> None:
    """Resolve the findings about copies that are not wanted any more."""
    if connection.execute(sa.select(findings.c.id).where(_OPEN).limit(1)).scalar() is None:
        return
    of = {copy.artifact_id for copy in deleted}
    rows = connection.execute(
        sa.select(artifacts.c.id, artifacts.c.bucket, artifacts.c.key, artifacts.c.version).where(
            artifacts.c.id.in_(of)
        )
    )
    paths = {row.id: (row.bucket, row.key, row.version) for row in rows}
    gone = {(copy.store, *paths[copy.artifact_id]) for copy in deleted}
    found = _open_at(connection, {(bucket, key) for _, bucket, key, _ in gone})
    ids = [row.id for row in found if (row.store, row.bucket, row.key, row.version) in gone]
    _resolve(connection, dict.fromkeys(ids, how), now)


def note_tombstones(connection: Connection, deleted: Sequence[Artifact], now: datetime) -> None:
    """Resolve what was wrong with artifacts that were deleted as a whole."""
    last = {(of.bucket, of.key): of.version for of in deleted}
    whole = {FindingKind.LOST, FindingKind.UNDER_REPLICATED}
    found = (row for row in _open_at(connection, set(last)) if row.kind in whole)
    ids = [row.id for row in found if row.version <= last[row.bucket, row.key]]
    _resolve(connection, dict.fromkeys(ids, "deleted"), now)


def note_action(connection: Connection, places: Mapping[tuple[str, str, str], str], action: str, now: datetime) -> None:
    """Record what was begun about the open findings of these copies, by store, bucket and key; the values are jobs."""
    values = [
        {"of_store": store, "of_bucket": bucket, "of_key": key, "by": job, "what": action, "at": now}
        for (store, bucket, key), job in places.items()
    ]
    if values:
        connection.execute(_ACT, values)


def see(connection: Connection, found: Sequence[NewFinding], now: datetime) -> None:
    """Open findings, or record that open ones were seen once more."""
    if not found:
        return
    found = _as_canaries(connection, found)
    rows = [
        {"kind": each.kind, "store": each.store, "bucket": each.bucket, "key": each.key, "version": each.version,
         "opened_at": now, "last_seen_at": now, "evidence": dict(each.evidence)}
        for each in found
    ]  # fmt: skip
    connection.execute(_UPSERTS[connection.dialect.name], rows)


def _as_canaries(connection: Connection, found: Sequence[NewFinding]) -> Sequence[NewFinding]:
    """Return findings in which those about canaries that were damaged on purpose have their own kind."""
    keys = [each.key for each in found if each.bucket == CANARY_BUCKET]
    if not keys:
        return found
    row = canaries.c
    query = sa.select(row.store, row.key).where(row.key.in_(keys), row.closed_at.is_(None))
    damaged = {(row.store, row.key) for row in connection.execute(query)}
    return [
        replace(each, kind=FindingKind.CANARY)
        if each.bucket == CANARY_BUCKET and each.kind in _DAMAGE and (each.store, each.key) in damaged
        else each
        for each in found
    ]


def resolve_store(connection: Connection, kind: FindingKind, store: str, how: str, now: datetime) -> None:
    """Resolve the finding of one kind on a store, if one is open."""
    found = connection.execute(_of_store(kind, store)).scalars()
    _resolve(connection, dict.fromkeys(found, how), now)


def resolve_key(connection: Connection, kind: FindingKind, key: str, how: str, now: datetime) -> None:
    """Resolve the finding of one kind that has a key and no bucket, if one is open."""
    found = connection.execute(sa.select(findings.c.id).where(_OPEN, *_KEYED), {"of": key, "what": kind}).scalars()
    _resolve(connection, dict.fromkeys(found, how), now)


def _of_store(kind: FindingKind, store: str) -> sa.Select[Any]:
    return sa.select(findings.c.id).where(
        _OPEN, findings.c.bucket == "", findings.c.key == "", findings.c.store == store, findings.c.kind == kind
    )


def _settles(verdict: VerdictRow, kind: str) -> str | None:
    """Return how a verdict on a copy resolves an open finding of this kind on the same copy, None if it does not."""
    if kind == FindingKind.METADATA:
        known = verdict.verdict in BAD or verdict.stored_sha256 == verdict.expected_sha256
        return f"found {verdict.verdict} by job {verdict.job}" if known else None
    if verdict.verdict == Verdict.VERIFIED:
        return f"verified by job {verdict.job}"
    if kind == FindingKind.CANARY:
        return None  # its damage is known, in whatever way it is found
    if verdict.verdict in {kind, Verdict.UNVERIFIABLE}:
        return None
    unread = {Verdict.UNREADABLE: FindingKind.SUSPECT, Verdict.ARCHIVED: FindingKind.UNREADABLE}
    if unread.get(Verdict(verdict.verdict), kind) != kind:
        return None  # it says nothing about the bytes
    return f"found {verdict.verdict} by job {verdict.job}"


def _finding_of(verdict: VerdictRow, kind: FindingKind) -> NewFinding:
    evidence = {
        "verdict": verdict.verdict, "job": verdict.job, "expected_sha256": verdict.expected_sha256,
        "found_sha256": verdict.found_sha256, "found_size": verdict.found_size,
        "detail": without_nul(verdict.detail[:_TEXT]) if verdict.detail else None,
    }  # fmt: skip
    return NewFinding(
        kind, verdict.store, verdict.bucket, verdict.key, verdict.version,
        {name: value for name, value in evidence.items() if value is not None},
    )  # fmt: skip


def _metadata_finding(verdict: VerdictRow) -> NewFinding:
    said = (
        f"the store keeps SHA-256 {verdict.stored_sha256} beside them"
        if verdict.stored_sha256
        else ("the store keeps no SHA-256 beside them any more")
    )
    evidence = {
        "job": verdict.job, "expected_sha256": verdict.expected_sha256, "stored_sha256": verdict.stored_sha256,
        "detail": f"the bytes are right, {said}",
    }  # fmt: skip
    return NewFinding(
        FindingKind.METADATA, verdict.store, verdict.bucket, verdict.key, verdict.version,
        {name: value for name, value in evidence.items() if value},
    )  # fmt: skip


def see_lost_among(connection: Connection, paths: Collection[tuple[str, str]], now: datetime) -> None:
    """Record the current versions under these keys that have no good copy and no finding yet."""
    lost: list[tuple[str, str, int]] = []
    for bucket, keys in by_bucket(paths):
        found = connection.execute(_LOST.where(artifacts.c.bucket == bucket, one_of(artifacts.c.key, keys)))
        lost += [tuple(row) for row in found]
    _see_lost(connection, lost, now)


def _see_lost(connection: Connection, lost: Sequence[tuple[str, str, int]], now: datetime) -> None:
    see(connection, [NewFinding(FindingKind.LOST, "", *of) for of in lost], now)
    for bucket, key, version in lost[:_LOGGED]:
        logger.critical("%s/%s version %d is lost: no copy of it is good", bucket, key, version)
    if len(lost) > _LOGGED:
        logger.critical("%d more artifacts are lost: `zot-artifacts findings --kind lost`", len(lost) - _LOGGED)


def _open_at(connection: Connection, paths: Collection[tuple[str, str]], around: Asked | None = None) -> list[Row[Any]]:
    """Return the open findings about these keys; most often that is one search in an empty index.

    `around`: what `ask_around` asked about them, if that was asked before.
    """
    if not paths:
        return []
    found: list[Row[Any]] = (around or ask_around(connection, paths)).all()
    if len(found) > _FEW:
        found = []
        for bucket, keys in by_bucket(paths):
            found.extend(connection.execute(_SLIM.where(findings.c.bucket == bucket, one_of(findings.c.key, keys))))
    return [row for row in found if (row.bucket, row.key) in paths]


def ask_around(connection: Connection, paths: Collection[tuple[str, str]]) -> Asked:
    """Ask for the open findings about a few keys, which are not none, and those between them."""
    low, high = min(paths), max(paths)
    return _BETWEEN.ask(connection, low_bucket=low[0], low_key=low[1], high_bucket=high[0], high_key=high[1])


def _resolve(connection: Connection, how: Mapping[int, str], now: datetime) -> None:
    values = [{"finding": id_, "by": text[:_TEXT], "at": now} for id_, text in how.items()]
    if values:
        connection.execute(_RESOLVE, values)


def _record_of(row: Row[Any]) -> FindingRecord:
    values: dict[str, Any] = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name
    del values["told"]  # it is for alarms alone
    for name in ("store", "bucket", "key", "version"):
        values[name] = values[name] or None
    return FindingRecord(**values | {"kind": FindingKind(row.kind)})


_UPSERTS = upserts(
    findings, ["bucket", "key", "store", "kind", "version"],
    lambda new: {"last_seen_at": new.last_seen_at, "evidence": new.evidence},
    index_where=sa.text("resolved_at IS NULL"),
)  # fmt: skip
