"""Artifact versions and their copies: what is recorded, and the last verdict on each."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from worker import clock
from worker.catalogue.bulk import one_of
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import Queries
from worker.catalogue.findings import note_deletes, note_tombstones, note_writes
from worker.catalogue.holds import OnHold
from worker.catalogue.key_ranges import begins_with, following
from worker.catalogue.record_versions import (
    VERSIONS_OF_KEY,
    NewVersion,
    Recorded,
    Superseded,
    ensure_copy,
    find_copy,
    is_uploaded_by,
    newest_of,
    record_version,
    record_versions,
    replaces_bytes,
    written_by,
)
from worker.catalogue.records import (
    BAD,
    GONE,
    GOOD,
    OPEN_STATES,
    Artifact,
    Copy,
    CopyState,
    ListedArtifact,
    artifact_of,
    copy_of,
)
from worker.catalogue.tables import CURRENT, artifacts, canaries, copies, jobs, manifests, tombstones
from worker.storage import Digest
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest
from worker.storage.keys import CANARY_BUCKET
from zot_artifact_client.contract import JobState

_ABSENT = [state for state in CopyState if not state.present]

_AT_ONCE = 200
_MAY_GO_ON = jobs.c.state.in_([*OPEN_STATES, JobState.DEAD])
"""A dead job, also one of a restored catalogue, may be redriven."""
_PURGED_LATER = sa.exists().where(
    tombstones.c.bucket == artifacts.c.bucket, tombstones.c.key == artifacts.c.key,
    tombstones.c.version >= artifacts.c.version,
)  # fmt: skip
_WRITTEN_BY_JOB = sa.exists().where(jobs.c.holds == artifacts.c.bucket + "/" + artifacts.c.key, _MAY_GO_ON)

FIRST_READS = 12
"""Values of `spread` for copies that were written and not read yet; the further ones are for copies that were read."""
READ_ONCE = 16
"""The first value of `spread` for copies that were read once; those between have been read more often."""
SPREADS = 28

_MOST_UNFINISHED = 10_000
"""Unfinished versions that are told apart, the newest; older ones were given up, or their uploads would have ended."""
_MOST_VERSIONS = 2**31 - 1
"""The largest value of the column; PostgreSQL raises an error for a larger one."""

_LISTED = (artifacts.c.id, artifacts.c.bucket, artifacts.c.key, artifacts.c.size)
_BY_IDS = Prepared(sa.select(*_LISTED).where(one_of(artifacts.c.id, sa.bindparam("ids"))))
_CURRENT = Prepared(VERSIONS_OF_KEY.where(artifacts.c.committed_at.is_not(None)).limit(1))
_COPIES = sa.select(copies).where(copies.c.artifact_id == sa.bindparam("of"))
_COPIES_BY_STORE = Prepared(_COPIES.order_by(copies.c.store))
_FINISH = Prepared(
    sa.update(copies)
    .where(copies.c.artifact_id == sa.bindparam("of"), copies.c.store == sa.bindparam("at"))
    .values(
        state=CopyState.STORED, tag=sa.bindparam("tag"), evidence=sa.bindparam("evidence"),
        read_at=sa.bindparam("written_at"), spread=copies.c.artifact_id % FIRST_READS, last_verified_at=None,
        last_attempt_at=None, last_verdict=None, next_due_at=None, claimed_until=None,
    )
)  # fmt: skip
_TOMBSTONE = Prepared(
    sa.update(artifacts)
    .where(artifacts.c.bucket == sa.bindparam("of"), artifacts.c.key == sa.bindparam("under"))
    .where(artifacts.c.version <= sa.bindparam("last"), artifacts.c.tombstoned_at.is_(None))
    .values(tombstoned_at=sa.bindparam("at"))
)
_DELETE_COPY = Prepared(
    sa.update(copies)
    .where(copies.c.id == sa.bindparam("copy"))
    .values(state=CopyState.DELETED, read_at=None, next_due_at=None, claimed_until=None)
)
_DAMAGED = (
    sa.select(copies.c.store, copies.c.state)
    .join(artifacts, artifacts.c.id == copies.c.artifact_id)
    .join(canaries, sa.and_(canaries.c.store == copies.c.store, canaries.c.key == artifacts.c.key))
    .where(artifacts.c.bucket == CANARY_BUCKET, canaries.c.closed_at.is_(None), copies.c.state.in_(BAD))
)
_COMMIT = Prepared(
    sa.update(artifacts)
    .where(artifacts.c.id == sa.bindparam("of"), artifacts.c.committed_at.is_(None))
    .values(committed_at=sa.bindparam("committed_at"))
)
_SUPERSEDE = Prepared(
    sa.update(copies)
    .where(
        copies.c.store == sa.bindparam("at"), copies.c.state != CopyState.DELETED,
        copies.c.artifact_id.in_(
            sa.select(artifacts.c.id).where(
                artifacts.c.bucket == sa.bindparam("bucket"), artifacts.c.key == sa.bindparam("key"),
                artifacts.c.id != sa.bindparam("of"),
            )
        ),
    )
    .values(state=CopyState.SUPERSEDED, read_at=None, next_due_at=None)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FinishedCopy:
    """A copy that was written completely. `tag` is the store's version tag of it."""

    artifact: Artifact
    store: str
    tag: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeenVersions:
    """The complete versions that the catalogue had at a moment, by their ids: clocks of two machines do not agree.

    `newest`: the last id. `unfinished`: the versions up to it that had no complete copy yet, so that no one saw them.
    """

    newest: int
    unfinished: Collection[int] = ()

    def __contains__(self, id_: int) -> bool:
        return id_ <= self.newest and id_ not in self.unfinished


class Artifacts(Queries):
    """The artifact versions and their copies."""

    # Artifacts

    def current(self, bucket: str, key: str) -> Artifact | None:
        """Return the newest committed version, or None if there is none or it was deleted."""
        with self._database.read() as connection:
            return current_version(connection, bucket, key)

    def version(self, bucket: str, key: str, version: int) -> Artifact | None:
        """Return one version, also one that was deleted or replaced."""
        if version > _MOST_VERSIONS:
            return None
        query = sa.select(artifacts).where(
            artifacts.c.bucket == bucket, artifacts.c.key == key, artifacts.c.version == version
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return artifact_of(row) if row else None

    def record(
        self,
        bucket: str,
        key: str,
        digest: Digest,
        metadata: Mapping[str, str],
        now: datetime,
        *,
        manifest: Manifest | None = None,
        stores: Iterable[str] = (),
        job: str | None = None,
        properties: Mapping[str, str] | None = None,
        replaces_headers: bool = False,
        stores_named: bool = False,
        durable: bool = True,
    ) -> Recorded:
        """Return the newest version if it has this digest, else record a new one with its manifest and copies.

        A version keeps the metadata and properties that it was recorded with. With `replaces_headers`, other ones are a
        new version, although the bytes are the same: given metadata replace all metadata, given headers all headers,
        given tags all tags, and what is empty is kept.

        A version without a complete copy is used again, so that a retry of its `job` records no second one. A version
        that is used again has a note of the `job`: see `Superseded`.

        `stores_named`: `stores` were named by the upload, and are not those of the setting `placement`. A version stays
        so until an upload of the same bytes names none.

        Without `durable`, a power cut may undo the record of a first version, until something else is recorded: the job
        must be in the ledger, so that its next attempt records it again and finds what it has written. A further
        version is durable when this returns, because its bytes replace those of another one.

        Raises:
            Superseded: the version that the job recorded, or found, was followed by another one, or deleted.
            OnHold: the artifact is held, with other content.
        """
        with self._database.write(durable=durable) as connection:
            recorded = record_version(
                connection, bucket=bucket, key=key, digest=digest, metadata=metadata, now=now, manifest=manifest,
                stores=stores, job=job, properties=properties, replaces_headers=replaces_headers,
                stores_named=stores_named,
            )  # fmt: skip
        if not durable and replaces_bytes(recorded.artifact):
            self._database.flush()
        return recorded

    def record_many(
        self,
        versions: Sequence[NewVersion],
        metadata: Mapping[str, str],
        now: datetime,
        *,
        job: str,
        properties: Mapping[str, str] | None = None,
        stores_named: bool = False,
    ) -> list[Recorded | Superseded | OnHold]:
        """Record versions of different keys in one transaction; for each see `record`, whose errors are returned.

        Metadata and properties are those of all; other ones than before are a new version, as with `replaces_headers`.
        A power cut may undo first versions, as in `record` without `durable`.
        """
        with self._database.write(durable=False) as connection:
            recorded = record_versions(
                connection, versions, metadata, now, job=job, properties=properties, stores_named=stores_named
            )
        if any(isinstance(each, Recorded) and replaces_bytes(each.artifact) for each in recorded):
            self._database.flush()
        return recorded

    def manifest(self, artifact: Artifact) -> Manifest | None:
        """Return the digests of a version's chunks, or None if none were recorded."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(manifests).where(manifests.c.artifact_id == artifact.id)).one_or_none()
        if row is not None:
            return Manifest.fits(artifact.digest, row.chunk_size, row.digests)
        if 0 < artifact.digest.size <= CHUNK_SIZE:
            return Manifest(artifact.digest.size, CHUNK_SIZE, bytes.fromhex(artifact.digest.sha256))
        return None

    def tombstone(self, artifact: Artifact, now: datetime) -> None:
        """Record that the artifact was deleted, all its versions with it."""
        with self._database.write() as connection:
            tombstone_all(connection, [artifact], now)

    def page(
        self,
        bucket: str | None = None,
        prefix: str = "",
        after: tuple[str, str] = ("", ""),
        limit: int = 1000,
    ) -> Sequence[Artifact]:
        """Return current artifacts by bucket and key, starting after the one given."""
        query = sa.select(artifacts).where(*CURRENT).order_by(artifacts.c.bucket, artifacts.c.key).limit(limit)
        if bucket is None:
            query = query.where(sa.tuple_(artifacts.c.bucket, artifacts.c.key) > sa.tuple_(*after))
            query = query.where(artifacts.c.bucket != CANARY_BUCKET)
            query = query.where(*begins_with(artifacts.c.key, prefix))
        else:
            query = query.where(artifacts.c.bucket == bucket, *following(prefix, after[1]))
        with self._database.read() as connection:
            return [artifact_of(row) for row in connection.execute(query)]

    def listing(
        self,
        bucket: str,
        prefix: str,
        after: str,
        limit: int,
        *,
        seen: SeenVersions,
        until: str | None = None,
    ) -> list[ListedArtifact]:
        """Return current artifacts of a bucket by key, after a key and up to another one, of the versions in `seen`."""
        row = artifacts.c
        query = sa.select(*_LISTED).where(*CURRENT, row.bucket == bucket, *following(prefix, after, until))
        query = query.where(row.id + 0 <= seen.newest)  # + 0: search by key
        if seen.unfinished:
            query = query.where(~one_of(row.id + 0, sa.bindparam("unfinished")))
        with self._database.read() as connection:
            values = {"unfinished": list(seen.unfinished)} if seen.unfinished else {}
            found = connection.execute(query.order_by(row.key).limit(limit), values).all()
        return [ListedArtifact._make(each) for each in found]

    def listed_by_ids(self, ids: Sequence[int]) -> list[ListedArtifact]:
        """Return the versions of these ids, in the same order, also those that were deleted or replaced."""
        with self._database.read() as connection:
            found = {row[0]: ListedArtifact._make(row) for row in _BY_IDS.tuples(connection, ids=ids)}
        return [found[id_] for id_ in ids if id_ in found]

    def seen(self, *, writing_to: Iterable[str] = ()) -> SeenVersions:
        """Return which versions there are now. Those that are unfinished are told apart if they go to these stores."""
        unfinished = (
            sa.select(artifacts.c.id)
            .join(copies, copies.c.artifact_id == artifacts.c.id)
            .where(copies.c.store.in_(list(writing_to)), copies.c.state == CopyState.WRITING)
            .where(artifacts.c.committed_at.is_(None))
            .distinct()
            .order_by(artifacts.c.id.desc())
            .limit(_MOST_UNFINISHED)
        )
        with self._database.read() as connection:  # of one moment: writers take turns, so ids are in order
            newest = connection.execute(sa.select(sa.func.max(artifacts.c.id))).scalar() or 0
            return SeenVersions(newest, list(connection.execute(unfinished).scalars()))

    def measure(self, bucket: str, prefix: str = "") -> tuple[int, int]:
        """Return how many artifacts `page` lists in all, and their bytes."""
        counted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(artifacts.c.size), 0))
        query = counted.where(*CURRENT, artifacts.c.bucket == bucket, *following(prefix, ""))
        with self._database.read() as connection:
            count, size = connection.execute(query).one()
        return count, int(size)  # PostgreSQL adds up to a Decimal

    def currents(self, paths: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Artifact]:
        """Return the current versions under these keys, of those that there are."""
        with self._database.read() as connection:
            found = {path: current_version(connection, *path) for path in paths}
        return {path: artifact for path, artifact in found.items() if artifact}

    def uploaded_by(self, job: str, paths: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Artifact]:
        """Return the newest versions under these keys, of those that a job, or another of its batch, has uploaded."""
        with self._database.read() as connection:
            newest = newest_of(connection, paths)
        return {path: artifact_of(row) for path, row in newest.items() if is_uploaded_by(row, job)}

    # Copies

    def copies(self, artifact: Artifact) -> dict[str, Copy]:
        """Return the copies of a version by store, by name."""
        with self._database.read() as connection:
            rows = _COPIES_BY_STORE.all(connection, of=artifact.id)
            return {row.store: copy_of(row) for row in rows}

    def copies_of_all(self, artifact_ids: Sequence[int]) -> dict[int, dict[str, Copy]]:
        """Return the copies of several versions, by version and store."""
        found: dict[int, dict[str, Copy]] = {}
        with self._database.read() as connection:
            for row in connection.execute(sa.select(copies).where(copies.c.artifact_id.in_(artifact_ids))).all():
                found.setdefault(row.artifact_id, {})[row.store] = copy_of(row)
        return found

    def version_in_store(self, store: str, bucket: str, key: str) -> tuple[Artifact, Copy] | None:
        """Return the version, and its copy, whose bytes this store should have under this key now."""
        query = (
            sa.select(artifacts, copies.c.id.label("copy_id"))
            .join(copies, copies.c.artifact_id == artifacts.c.id)
            .where(artifacts.c.bucket == bucket, artifacts.c.key == key, copies.c.store == store)
            .where(copies.c.state.not_in(_ABSENT))
            .order_by(artifacts.c.version.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            copy = connection.execute(sa.select(copies).where(copies.c.id == row.copy_id)).one()
            return artifact_of(row), copy_of(copy)

    def copies_by_store(self, bucket: str, key: str) -> dict[str, list[Copy]]:
        """Return by store the copies under this key that may have bytes: of any version, complete or not."""
        query = (
            sa.select(copies)
            .join(artifacts, artifacts.c.id == copies.c.artifact_id)
            .where(artifacts.c.bucket == bucket, artifacts.c.key == key)
            .where(copies.c.state.not_in(GONE))
            .order_by(copies.c.store)
        )
        held: dict[str, list[Copy]] = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                held.setdefault(row.store, []).append(copy_of(row))
        return held

    def unfinished_versions(self, store: str, bucket: str, key: str, *, only_open: bool = False) -> Sequence[Artifact]:
        """Return the versions that a job began to write under this key in this store and has not completed.

        `only_open`: only those whose job is open. One that was cancelled, has failed or is dead completes nothing by
        itself, and what it has overwritten is to be found.
        """
        query = (
            sa.select(artifacts)
            .join(copies, copies.c.artifact_id == artifacts.c.id)
            .where(artifacts.c.bucket == bucket, artifacts.c.key == key)
            .where(copies.c.store == store, copies.c.state == CopyState.WRITING)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            if only_open and rows:
                rows = written_by(connection, rows, jobs.c.state.in_(OPEN_STATES))
        return [artifact_of(row) for row in rows]

    def abandoned(self, store: str, *, before: datetime) -> Iterator[tuple[Artifact, str | None]]:
        """Yield the versions of which a job may have written a copy to this store, which nothing will complete.

        Each has the id of the job that recorded it. They were recorded before this time and are not current, and no job
        that may write to them is open or dead. Versions whose delete can be undone belong to the purge.
        """
        query = (
            sa.select(artifacts)
            .join(copies, copies.c.artifact_id == artifacts.c.id)
            .where(copies.c.store == store, copies.c.state == CopyState.WRITING, artifacts.c.created_at <= before)
            .where(~_PURGED_LATER, artifacts.c.bucket != CANARY_BUCKET)
            .where(~sa.and_(*CURRENT), ~_WRITTEN_BY_JOB)
            .order_by(artifacts.c.id)
            .limit(_AT_ONCE)
        )
        after = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(artifacts.c.id > after)).all()
                spared = {row.id for row in written_by(connection, rows, _MAY_GO_ON)}
            yield from ((artifact_of(row), row.job) for row in rows if row.id not in spared)
            if len(rows) < _AT_ONCE:
                return
            after = rows[-1].id

    def note_late_writes(self, of: Sequence[Artifact], store: str) -> None:
        """Record that a worker may have written these copies after it had lost its lease.

        Those that were deleted or superseded since count as `writing`: the cleanup removes what is there. A version
        that is current stays as it is, so that nothing replicates it to a store from which its copy was deleted.
        """
        ended = sa.select(artifacts.c.id).where(artifacts.c.id.in_([each.id for each in of]), ~sa.and_(*CURRENT))
        late = sa.update(copies).where(copies.c.artifact_id.in_(ended), copies.c.store == store)
        with self._database.unfenced().write() as connection:
            connection.execute(late.where(copies.c.state.in_(GONE)).values(state=CopyState.WRITING))

    def read_again(self, copy: Copy, *, now: datetime) -> None:
        """Make a copy due, so that the next verify sweep reads it. No other job may write to the artifact meanwhile."""
        due = sa.update(copies).where(copies.c.id == copy.id)
        with self._database.write() as connection:
            connection.execute(due.values(next_due_at=now, claimed_until=None))

    def ensure_copy(self, artifact: Artifact, store: str) -> Copy:
        """Return the copy of a version in a store, recorded as `writing` if it is new, superseded or deleted."""
        # Most often the row exists: a read waits for no writer and for no disk.
        with self._database.read() as connection:
            found = find_copy(connection, artifact, store)
        if found and found.state not in GONE:
            return found
        with self._database.write() as connection:
            return ensure_copy(connection, artifact, store)

    def finish_copy(
        self, artifact: Artifact, store: str, *, tag: str, evidence: Mapping[str, Any], now: datetime
    ) -> None:
        """Record that a copy is complete: its version is committed and supersedes the version that the store had."""
        self.finish_copies([FinishedCopy(artifact, store, tag, evidence)], now=now)

    def finish_copies(self, finished: Sequence["FinishedCopy"], *, now: datetime) -> None:
        """Record that copies are complete, in one transaction; see `finish_copy`."""
        if finished:
            with self._database.write_then_flush() as connection:
                finish_copies(connection, finished, now)

    def ensure_copies(self, wanted: Sequence[tuple[Artifact, str]]) -> None:
        """Record copies as `writing` that are new, superseded or deleted, in one transaction; see `ensure_copy`."""
        if wanted:
            with self._database.write() as connection:
                for artifact, store in wanted:
                    ensure_copy(connection, artifact, store)

    def delete_copies(self, deleted: Sequence[Copy]) -> None:
        """Record that copies were deleted on request, in one transaction."""
        if deleted:
            with self._database.write() as connection:
                delete_copies(connection, deleted)

    def buckets(self) -> list[str]:
        """Return the names of all buckets that have ever had an artifact."""
        with self._database.read() as connection:
            return list(connection.execute(sa.select(artifacts.c.bucket).distinct()).scalars())

    def evidence_of(self, copy: int) -> Mapping[str, Any]:
        """Return the weaker evidence that was recorded with a copy, by the copy's id."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(copies.c.evidence).where(copies.c.id == copy)).scalar()
        return found or {}

    def count_by_state(self) -> dict[str, dict[str, int]]:
        """Return the number of copies by store and state; a canary that was damaged on purpose counts as stored."""
        query = sa.select(copies.c.store, copies.c.state, sa.func.count()).group_by(copies.c.store, copies.c.state)
        counts: dict[str, dict[str, int]] = {}
        with self._database.read() as connection:
            for store, state, count in connection.execute(query):
                counts.setdefault(store, {})[state] = count
            damaged = connection.execute(_DAMAGED).all()
        for store, state in damaged:
            stored = counts[store].get(CopyState.STORED, 0) + 1
            counts[store] |= {state: counts[store][state] - 1, CopyState.STORED: stored}
        return {store: {state: n for state, n in states.items() if n} for store, states in counts.items()}

    def oldest_verified(self, store: str) -> datetime | None:
        """Return the oldest last full read among the good copies of a store that were read, None if none was.

        Those that wait for a retry are read one by one, the others in the order of their reads up to a good one.
        """
        # concat: not by the index of states, which does not have that moment
        good = (copies.c.store == store, copies.c.state.concat("").in_(GOOD), copies.c.last_verified_at.is_not(None))
        due = sa.select(copies.c.last_verified_at).where(*good, copies.c.next_due_at.is_(None))
        waits = sa.select(sa.func.min(copies.c.last_verified_at)).where(*good, copies.c.next_due_at.is_not(None))
        with self._database.read() as connection:
            found = [connection.execute(waits).scalar()]
            for spread in range(FIRST_READS, SPREADS):
                first = due.where(copies.c.spread == spread).order_by(copies.c.read_at).limit(1)
                found.append(connection.execute(first).scalar())
        return min((moment for moment in found if moment), default=None)

    def never_verified(self, store: str) -> int:
        """Return how many good copies of a store have never been read fully."""
        never = sa.and_(copies.c.store == store, copies.c.state.in_(GOOD), copies.c.last_verified_at.is_(None))
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).where(never)).scalar_one()


def current_version(connection: Connection, bucket: str, key: str) -> Artifact | None:
    """Return the newest committed version, or None if there is none or it was deleted."""
    row = _CURRENT.first(connection, bucket=bucket, key=key)
    return artifact_of(row) if row and row.tombstoned_at is None else None


def finish_copies(connection: Connection, finished: Sequence[FinishedCopy], now: datetime) -> None:
    """Record that copies are complete; see `Artifacts.finish_copy`."""
    written = [
        {"of": each.artifact.id, "at": each.store, "tag": each.tag, "evidence": dict(each.evidence)}
        for each in finished
    ]
    superseding = [
        {"at": each.store, "bucket": each.artifact.bucket, "key": each.artifact.key, "of": each.artifact.id}
        for each in finished
    ]
    if not finished:
        return
    _FINISH.run_many(connection, written, written_at=now)
    _COMMIT.run_many(connection, [{"of": each.artifact.id} for each in finished], committed_at=now)
    _SUPERSEDE.run_many(connection, superseding)
    note_writes(connection, [(each.artifact, each.store) for each in finished], now)


def tombstone_all(connection: Connection, deleted: Sequence[Artifact], now: datetime) -> None:
    """Record that artifacts were deleted, all their versions with them."""
    if deleted:
        values = [{"of": each.bucket, "under": each.key, "last": each.version} for each in deleted]
        _TOMBSTONE.run_many(connection, values, at=now)
        note_tombstones(connection, deleted, now)


def delete_copies(connection: Connection, deleted: Sequence[Copy]) -> None:
    """Record that copies were deleted on request."""
    if deleted:
        _DELETE_COPY.run_many(connection, [{"copy": copy.id} for copy in deleted])
        note_deletes(connection, deleted, "deleted", clock.now())
