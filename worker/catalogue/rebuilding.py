"""Record what the stores have: versions and copies from objects, where the catalogue does not know them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker.catalogue.artifacts import FinishedCopy, finish_copies
from worker.catalogue.bulk import one_of
from worker.catalogue.database import Queries
from worker.catalogue.deletions import KeptTombstone, Tombstone, record_tombstone
from worker.catalogue.findings import NewFinding, see
from worker.catalogue.holds import OnHold, check_hold
from worker.catalogue.record_versions import ensure_copy, insert_version
from worker.catalogue.records import Artifact, Copy, FindingKind, VerdictRow, artifact_of, copy_of
from worker.catalogue.tables import artifacts, copies, tombstones
from worker.catalogue.verifications import append_verdicts, prepare_verdicts
from worker.storage import Digest, Verdict
from worker.storage.integrity.manifest import Manifest

KEPT = "sha256 kept by the store"
BELIEVED = "sha256 kept by the store, believed without a read"
_SKEW = timedelta(minutes=5)
"""How far the clocks of a store and of the worker may differ."""
OTHER = "sha256 of another copy"
FIRST_READ = "first read"


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object as its store has it.

    Attributes:
        store: the store.
        tag: its version tag of the bytes.
        size: in bytes.
        modified: when the store says that it was written.
        kept: the digest that the store keeps beside it, or None.
        read: the digest of its bytes, None if they were not read.
        manifest: the digests of its chunks, None if they were not read or do not match `kept`.
        metadata: the metadata that an artifact can have.
        properties: the headers beside it.
        evidence: weaker evidence under the names that the store gives it.
    """

    store: str
    tag: str
    size: int
    modified: datetime
    kept: str | None
    read: str | None = None
    manifest: Manifest | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Return whether its bytes have the digest that the store keeps, or were not read."""
        return self.kept is not None and self.read in {None, self.kept}


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key, and the object that each store has under it and that the catalogue does not know.

    `tombstone`: that of its artifact, as the stores keep it.
    """

    bucket: str
    key: str
    objects: Sequence[FoundObject]
    tombstone: KeptTombstone | None = None


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What the catalogue has under a key: the versions by number, and the copy that each store should have now.

    `in_grace`: it was deleted, and the delete can be undone.
    """

    versions: Sequence[Artifact] = ()
    present: Mapping[str, tuple[Artifact, Copy]] = field(default_factory=dict)
    in_grace: bool = False

    @property
    def current(self) -> Artifact | None:
        """Return the newest committed version, None if it was deleted."""
        newest = next((each for each in reversed(self.versions) if each.committed_at is not None), None)
        return newest if newest is not None and newest.tombstoned_at is None else None

    @property
    def deleted_at(self) -> datetime | None:
        """Return when the artifact was deleted, None if it was not."""
        newest = next((each for each in reversed(self.versions) if each.committed_at is not None), None)
        return newest.tombstoned_at if newest is not None else None


@dataclass(frozen=True, slots=True)
class Rules:
    """What may become a record.

    `first_read`: the bytes of an object of which no store keeps a digest. `newer_since`: objects with the digest that
    their store keeps, written after this time, follow another current version. `grace`: the least time for which a
    delete that is recorded again can be undone, also one that could not be undone before.
    """

    first_read: bool = False
    newer_since: datetime | None = None
    grace: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was recorded about one object: `verified`, `stored`, `corrupt`, `conflict`, `no_digest` or `known`.

    `deleted`: its artifact was deleted after the object was written, and stays deleted.
    """

    store: str
    bucket: str
    key: str
    outcome: str
    detail: str | None = None


class Rebuilding(Queries):
    """What is known under keys, and what is recorded about objects that are not."""

    def known(self, bucket: str, keys: Sequence[str]) -> dict[str, KnownKey]:
        """Return what the catalogue has under keys of a bucket; keys that it does not know are left out."""
        with self._database.read() as connection:
            return _known(connection, bucket, keys)

    def record(self, found: Sequence[FoundKey], rules: Rules, *, job: str, now: datetime) -> list[Rebuilt]:
        """Record the objects of some keys as versions and copies, in one transaction, and what is wrong as findings.

        A recorded digest is that of the store, of another copy or of the catalogue, and never that of bytes which
        differ from it. An object whose bytes differ is a corrupt copy of the version whose digest its store keeps.
        Under a key that the catalogue knows, only copies of its versions are added; other content is a conflict. What
        was written before its artifact was deleted makes that artifact not current again.
        """
        done: list[Rebuilt] = []
        with self._database.write() as connection:
            write = _Write(connection, rules, job, now)
            for bucket in dict.fromkeys(each.bucket for each in found):
                of_bucket = [each for each in found if each.bucket == bucket]
                known = _known(connection, bucket, [each.key for each in of_bucket])
                for each in of_bucket:
                    done += write.record(each, known.get(each.key, KnownKey()))
            write.end()
        return done


def _known(connection: Connection, bucket: str, keys: Sequence[str]) -> dict[str, KnownKey]:
    of = sa.and_(artifacts.c.bucket == bucket, one_of(artifacts.c.key, keys))
    versions: dict[int, Artifact] = {}
    by_key: dict[str, list[Artifact]] = {}
    for row in connection.execute(sa.select(artifacts).where(of).order_by(artifacts.c.version)):
        versions[row.id] = artifact = artifact_of(row)
        by_key.setdefault(row.key, []).append(artifact)
    present: dict[str, dict[str, tuple[Artifact, Copy]]] = {}
    query = sa.select(copies).join(artifacts, artifacts.c.id == copies.c.artifact_id).where(of)
    for row in connection.execute(query.order_by(artifacts.c.version)):
        artifact, copy = versions[row.artifact_id], copy_of(row)
        if copy.state.present:
            present.setdefault(artifact.key, {})[copy.store] = (artifact, copy)
    in_grace = set(
        connection.execute(
            sa.select(tombstones.c.key).where(tombstones.c.bucket == bucket, one_of(tombstones.c.key, keys))
        ).scalars()
    )
    return {key: KnownKey(all_, present.get(key, {}), key in in_grace) for key, all_ in by_key.items()}


class _Write:
    """One transaction."""

    def __init__(self, connection: Connection, rules: Rules, job: str, now: datetime) -> None:
        self._connection = connection
        self._rules = rules
        self._job = job
        self._now = now
        self._finished: list[FinishedCopy] = []
        self._verdicts: list[VerdictRow] = []
        self._findings: list[NewFinding] = []
        self._deleted: list[tuple[Artifact, KeptTombstone]] = []

    def end(self) -> None:
        """Write what was collected: copies first, so that verdicts and findings are about what is there."""
        finish_copies(self._connection, self._finished, self._now)
        append_verdicts(self._connection, prepare_verdicts(self._verdicts, self._now))
        see(self._connection, self._findings, self._now)
        for artifact, kept in self._deleted:
            until = self._now + max(kept.purge_after - kept.deleted_at, self._rules.grace)
            again = Tombstone(
                kept.bucket, kept.key, artifact.version, kept.deleted_at, until, kept.by, kept.reason, kept.job
            )
            record_tombstone(self._connection, artifact, again)

    def record(self, found: FoundKey, known: KnownKey) -> Iterator[Rebuilt]:
        """Record one key."""
        fresh = [each for each in found.objects if self._is_fresh(each, known)]
        for each in found.objects:
            if each not in fresh:
                yield Rebuilt(each.store, found.bucket, found.key, "known")
        if known.deleted_at is not None:
            past = [
                each for each in fresh if _is_past(each, known.deleted_at, {v.digest.sha256 for v in known.versions})
            ]
            yield from self._copies_of_deleted(found, known, past)
            fresh = [each for each in fresh if each not in past]
        digests, first_reads = _digests(fresh, known, self._rules)
        versions = self._versions(found, known, digests, fresh)
        newest = max((each.version for each in [*known.versions, *versions.values()]), default=0)
        for each in fresh:
            sha256 = digests.get(each.store)
            if sha256 is None:
                same = sorted(e.store for e in found.objects if e is not each and e.read and e.read == each.read)
                beside = f"; {', '.join(same)} has the same bytes without one" if same else ""
                detail = (
                    f"the store keeps no SHA-256 of it, and no copy that has one has its bytes{beside}: "
                    "`catalogue rebuild --first-read` records the bytes as they are now"
                )
                yield self._tell(found, each, FindingKind.ORPHAN, "no_digest", detail)
            elif sha256 not in versions:
                current = known.current
                detail = f"its store keeps SHA-256 {each.kept or each.read}, the catalogue has {_told(current)}"
                yield self._tell(found, each, FindingKind.CONFLICT, "conflict", detail)
            else:
                done = self._copy(found, each, versions[sha256], newest, first_read=sha256 in first_reads)
                yield replace(done, outcome="deleted", detail=None) if self._stays_deleted(found, known) else done
        if versions and self._stays_deleted(found, known):
            assert found.tombstone is not None
            self._deleted.append((max(versions.values(), key=lambda each: each.version), found.tombstone))

    def _stays_deleted(self, found: FoundKey, known: KnownKey) -> bool:
        """Return whether an artifact was deleted after its objects were written, and that is not recorded."""
        kept, since = found.tombstone, self._rules.newer_since
        if kept is None or (known.versions and (since is None or kept.deleted_at <= since)):
            return False
        return all(_is_past(each, kept.deleted_at, {kept.sha256}) for each in found.objects)

    def _copies_of_deleted(self, found: FoundKey, known: KnownKey, past: Sequence[FoundObject]) -> Iterator[Rebuilt]:
        """Record objects that were written before their artifact was deleted: as copies, which its purge removes too.

        What no version has, and what is left after the purge, is an orphan.
        """
        versions = {each.digest.sha256: each for each in known.versions}
        for each in past:
            of = versions.get(each.kept or each.read or "")
            if of is not None and known.in_grace:
                done = self._copy(found, each, of, of.version, first_read=False)
                yield replace(done, outcome="deleted")
            else:
                detail = f"its artifact was deleted at {known.deleted_at:%Y-%m-%d %H:%M} UTC, after it was written"
                yield self._tell(found, each, FindingKind.ORPHAN, "deleted", detail)

    def _is_fresh(self, each: FoundObject, known: KnownKey) -> bool:
        if each.store not in known.present:
            return True
        of, _ = known.present[each.store]
        since = self._rules.newer_since
        return since is not None and each.modified > since and each.is_right and each.kept != of.digest.sha256

    def _versions(
        self, found: FoundKey, known: KnownKey, digests: Mapping[str, str | None], fresh: Sequence[FoundObject]
    ) -> dict[str, Artifact]:
        """Return the versions of a key by digest: those that are known, and new ones by the time of their objects.

        A version that was recorded from a cut copy alone has the size of the cut one, and is followed by a right one.
        """
        versions = {each.digest.sha256: each for each in known.versions if each.tombstoned_at is None}
        sizes = {each.read: each.size for each in fresh if each.read is not None}
        cut = {sha256 for sha256, of in versions.items() if sizes.get(sha256, of.digest.size) != of.digest.size}
        versions = {sha256: of for sha256, of in versions.items() if sha256 not in cut}
        groups: dict[str, list[FoundObject]] = {}
        for each in fresh:
            if (sha256 := digests.get(each.store)) is not None and sha256 not in versions:
                groups.setdefault(sha256, []).append(each)
        number = max((each.version for each in known.versions), default=0)
        for sha256, group in sorted(groups.items(), key=lambda each: max(one.modified for one in each[1])):
            if sha256 not in cut and not self._may_follow(found, group, known):
                continue
            number += 1
            versions[sha256] = self._insert(found, number, sha256, group)
        return versions

    def _may_follow(self, found: FoundKey, group: Sequence[FoundObject], known: KnownKey) -> bool:
        if known.current is None:
            return True
        since = self._rules.newer_since
        if since is None or not any(each.is_right and each.modified > since for each in group):
            return False
        try:
            check_hold(self._connection, found.bucket, found.key)
        except OnHold:
            return False
        return True

    def _insert(self, found: FoundKey, number: int, sha256: str, group: Sequence[FoundObject]) -> Artifact:
        best = next((each for each in group if each.read == sha256), None) or next(
            (each for each in group if each.is_right), group[0]
        )
        described = next((each for each in group if each.metadata or each.properties), best)
        return insert_version(
            self._connection, bucket=found.bucket, key=found.key, version=number, digest=Digest(best.size, sha256),
            metadata=described.metadata, created_at=min(self._now, *(each.modified for each in group)), job=self._job,
            properties=described.properties, manifest=best.manifest if best.read == sha256 else None,
        )  # fmt: skip

    def _copy(self, found: FoundKey, each: FoundObject, of: Artifact, newest: int, *, first_read: bool) -> Rebuilt:
        sha256 = of.digest.sha256
        copy = ensure_copy(self._connection, of, each.store)
        how = BELIEVED if each.read is None else KEPT if each.kept == sha256 else OTHER
        if first_read:
            how = FIRST_READ
        evidence = {**each.evidence, "rebuilt": how}
        self._finished.append(FinishedCopy(of, each.store, each.tag, evidence))
        detail = None
        if of.version < newest:
            detail = f"the store has version {of.version}, another one has version {newest}"
        elif each.kept not in {None, sha256}:
            detail = f"the store keeps SHA-256 {each.kept}, its bytes and another copy have {sha256}"
        if detail:
            self._findings.append(self._finding(found, each, FindingKind.CONFLICT, of.version, detail))
        if each.read is None or first_read:
            return Rebuilt(each.store, found.bucket, found.key, "conflict" if detail else "stored", detail)
        good = each.read == sha256
        verdict = Verdict.VERIFIED if good else Verdict.CORRUPT
        told = None if good else f"the bytes have SHA-256 {each.read}, not the recorded {sha256}"
        self._verdicts.append(
            VerdictRow(
                copy.id, self._job, each.store, found.bucket, found.key, of.version, verdict, sha256, each.read,
                each.size, told, each.tag,
            )
        )  # fmt: skip
        outcome = verdict.value if not good or not detail else "conflict"
        return Rebuilt(each.store, found.bucket, found.key, outcome, told or detail)

    def _tell(self, found: FoundKey, each: FoundObject, kind: FindingKind, outcome: str, detail: str) -> Rebuilt:
        self._findings.append(self._finding(found, each, kind, 0, detail))
        return Rebuilt(each.store, found.bucket, found.key, outcome, detail)

    def _finding(self, found: FoundKey, each: FoundObject, kind: FindingKind, version: int, detail: str) -> NewFinding:
        evidence = {"detail": detail, "job": self._job, "listed_size": each.size, "modified": str(each.modified)}
        return NewFinding(kind, each.store, found.bucket, found.key, version, evidence)


def _is_past(each: FoundObject, deleted_at: datetime, digests: Collection[str]) -> bool:
    """Return whether an object was written before its artifact was deleted, as far as clocks can tell.

    Within the time by which clocks may differ, its digest tells it from one that was uploaded after the delete.
    """
    if each.modified <= deleted_at:
        return True
    return each.modified <= deleted_at + _SKEW and (each.kept or each.read) in digests


def _digests(
    fresh: Sequence[FoundObject], known: KnownKey, rules: Rules
) -> tuple[dict[str, str | None], frozenset[str]]:
    """Return by store the digest of the version that its object is a copy of, right or not; None if there is none.

    The second value are those digests that only the bytes read now say.
    """
    right = {each.kept for each in fresh if each.is_right}
    right |= {each.digest.sha256 for each in known.versions if each.tombstoned_at is None}
    digests: dict[str, str | None] = {}
    for each in fresh:
        if each.kept and (each.is_right or each.read not in right):
            digests[each.store] = each.kept
        elif each.read in right:
            digests[each.store] = each.read
    kept = [each for each in fresh if each.store in digests]
    newest = max(kept, key=lambda each: each.modified, default=None)
    first_reads = set()
    for each in fresh:
        if each.store in digests:
            continue
        if known.current is not None:
            digests[each.store] = each.read  # a conflict: no version has these bytes
        elif newest is not None:
            digests[each.store] = digests[newest.store]
        elif rules.first_read and each.read is not None:
            digests[each.store] = each.read
            first_reads.add(each.read)
        else:
            digests[each.store] = None
    return digests, frozenset(first_reads)


def _told(current: Artifact | None) -> str:
    return f"version {current.version} with {current.digest.sha256}" if current else "none"
