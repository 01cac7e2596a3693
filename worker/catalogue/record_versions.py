"""Record the versions that jobs write, and which jobs have uploaded each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from worker.catalogue.bulk import by_bucket, one_of
from worker.catalogue.compiled_statements import Prepared
from worker.catalogue.database import CatalogueError
from worker.catalogue.holds import OnHold, check_hold
from worker.catalogue.records import GONE, OPEN_STATES, Artifact, Copy, CopyState, artifact_of, copy_of
from worker.catalogue.tables import artifacts, copies, jobs, manifests
from worker.storage import Digest
from worker.storage.integrity.manifest import Manifest
from zot_artifact_client.contract import BATCH_JOB_ID, with_properties

VERSIONS_OF_KEY = (
    sa.select(artifacts)
    .where(artifacts.c.bucket == sa.bindparam("bucket"), artifacts.c.key == sa.bindparam("key"))
    .order_by(artifacts.c.version.desc())
)
_NEWEST = Prepared(VERSIONS_OF_KEY.limit(1))
_USED_BY = Prepared(
    VERSIONS_OF_KEY.where(
        sa.or_(
            sa.and_(
                artifacts.c.job.concat("") >= sa.bindparam("first"),  # concat: search by key, not by a batch's versions
                artifacts.c.job.concat("") <= sa.bindparam("last"),
            ),
            artifacts.c.reused_by.is_not(None),
        )
    )
)
_REUSE = Prepared(
    sa.update(artifacts).where(artifacts.c.id == sa.bindparam("of")).values(reused_by=sa.bindparam("jobs"))
)
_MOST_REUSES = 4
"""Jobs that are recorded to have uploaded the bytes of a version again: that many may be between two attempts."""
_COPY = Prepared(
    sa.select(copies).where(copies.c.artifact_id == sa.bindparam("of"), copies.c.store == sa.bindparam("at"))
)
_INSERT_VERSION = Prepared(sa.insert(artifacts).returning(artifacts))
_INSERT_VERSIONS = Prepared(sa.insert(artifacts))
_INSERT_MANIFEST = Prepared(sa.insert(manifests))
_NEW_COPY = sa.insert(copies).values(state=CopyState.WRITING, evidence={}, attempts=0, spread=0)
_INSERT_COPIES = Prepared(_NEW_COPY)
_INSERT_COPY = Prepared(_NEW_COPY.returning(copies))
_BEGIN_AGAIN = Prepared(
    sa.update(copies)
    .where(copies.c.id == sa.bindparam("copy"))
    .values(state=CopyState.WRITING, evidence={})
    .returning(copies)
)
_BELONGS_TO_PLACEMENT = Prepared(
    sa.update(artifacts).where(artifacts.c.id == sa.bindparam("of")).values(stores_named=None)
)
_parents = jobs.alias()


class Superseded(CatalogueError):
    """The version that an earlier attempt of a job recorded, or found there, is no longer the newest."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """The content that a page uploads under a key. It has one chunk, so no manifest is recorded beside its digest."""

    bucket: str
    key: str
    digest: Digest
    stores: Sequence[str]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The version that an upload writes. `fresh`: it is new, and no store has it.

    `copies` are those of a fresh version that was recorded alone, by store. Those of a known one may change meanwhile.
    """

    artifact: Artifact
    fresh: bool
    copies: Mapping[str, Copy] = field(default_factory=dict)


_Beside = tuple[dict[str, str], dict[str, str] | None]
"""Metadata and properties, as the columns hold them."""
_Fresh = tuple[int, NewVersion, int, _Beside]
"""A version that is not recorded yet: its place in the page, its content, its number and what is beside its bytes."""


def record_version(
    connection: Connection,
    *,
    bucket: str,
    key: str,
    digest: Digest,
    metadata: Mapping[str, str],
    now: datetime,
    manifest: Manifest | None = None,
    stores: Iterable[str] = (),
    job: str | None = None,
    properties: Mapping[str, str] | None = None,
    replaces_headers: bool = False,
    stores_named: bool = False,
) -> Recorded:
    """Return the newest version if it has this digest, else record a new one; see `Artifacts.record`."""
    row = _NEWEST.first(connection, bucket=bucket, key=key)
    if job is not None and row is not None:
        _check_not_superseded(connection, row, job, digest)
    known, beside = _compare(row, digest, metadata, properties, replaces_headers=replaces_headers)
    if known is not None:
        _note_reuses(connection, [known], job)
        return _use_again(connection, known, stores, stores_named=stores_named)
    if row is not None:
        check_hold(connection, bucket, key)
    artifact = insert_version(
        connection, bucket=bucket, key=key, version=row.version + 1 if row else 1, digest=digest, metadata=beside[0],
        created_at=now, job=job, properties=beside[1], manifest=manifest, stores_named=stores_named,
    )  # fmt: skip
    begun = {store: copy_of(_INSERT_COPY.first(connection, artifact_id=artifact.id, store=store)) for store in stores}
    return Recorded(artifact, fresh=True, copies=begun)


def record_versions(
    connection: Connection,
    versions: Sequence[NewVersion],
    metadata: Mapping[str, str],
    now: datetime,
    *,
    job: str,
    properties: Mapping[str, str] | None = None,
    stores_named: bool = False,
) -> list[Recorded | Superseded | OnHold]:
    """Record versions of different keys; see `Artifacts.record_many`."""
    newest = newest_of(connection, [(each.bucket, each.key) for each in versions])
    recorded: dict[int, Recorded | Superseded | OnHold] = {}
    fresh: list[_Fresh] = []
    reused: list[Row[Any]] = []
    given = _beside(metadata, properties)
    for number, each in enumerate(versions):
        row = newest.get((each.bucket, each.key))
        if row is None:
            fresh.append((number, each, 1, given))
            continue
        known, beside = _compare(row, each.digest, metadata, properties, replaces_headers=True)
        try:
            _check_not_superseded(connection, row, job, each.digest)
            if known is None:
                check_hold(connection, each.bucket, each.key)
        except (Superseded, OnHold) as error:
            recorded[number] = error
            continue
        if known is None:
            fresh.append((number, each, row.version + 1, beside))
        else:
            reused.append(known)
            recorded[number] = _use_again(connection, known, each.stores, stores_named=stores_named)
    _note_reuses(connection, reused, job)
    shared = {"created_at": now, "job": job, "stores_named": stores_named or None}
    recorded |= _insert_versions(connection, fresh, shared)
    return [recorded[number] for number in range(len(versions))]


def _compare(
    newest: Row[Any] | None,
    digest: Digest,
    metadata: Mapping[str, str],
    properties: Mapping[str, str] | None,
    *,
    replaces_headers: bool,
) -> tuple[Row[Any] | None, _Beside]:
    """Return the newest version if its content is uploaded again, and what a new version gets beside its bytes.

    `replaces_headers`: see `Artifacts.record`.
    """
    same = newest if newest is not None and newest.tombstoned_at is None else None
    if same is None or artifact_of(same).digest != digest:
        return None, _beside(metadata, properties)
    before = (same.metadata, same.properties or None)
    beside = (dict(metadata or same.metadata), with_properties(same.properties, properties) or None)
    return same if beside == before or not replaces_headers else None, beside


def _beside(metadata: Mapping[str, str], properties: Mapping[str, str] | None) -> _Beside:
    return dict(metadata), dict(properties or {}) or None


def _use_again(connection: Connection, row: Row[Any], stores: Iterable[str], *, stores_named: bool) -> Recorded:
    artifact = artifact_of(row)
    for store in stores:
        ensure_copy(connection, artifact, store)
    if row.stores_named and not stores_named:
        _BELONGS_TO_PLACEMENT.run(connection, of=row.id)
    return Recorded(artifact, fresh=False)


def insert_version(
    connection: Connection,
    *,
    bucket: str,
    key: str,
    version: int,
    digest: Digest,
    metadata: Mapping[str, str],
    created_at: datetime,
    job: str | None,
    properties: Mapping[str, str] | None,
    manifest: Manifest | None,
    stores_named: bool = False,
) -> Artifact:
    """Record a new version of a key, with the digests of its chunks."""
    row = _INSERT_VERSION.first(
        connection, bucket=bucket, key=key, version=version, job=job, size=digest.size, sha256=digest.sha256,
        metadata=dict(metadata), created_at=created_at, properties=dict(properties) if properties else None,
        stores_named=stores_named or None,
    )  # fmt: skip
    if manifest and len(manifest) > 1:  # the digest of an only chunk is that of the whole
        chunks = {"artifact_id": row.id, "chunk_size": manifest.chunk_size, "digests": manifest.digests}
        _INSERT_MANIFEST.run(connection, **chunks)
    return artifact_of(row)


def replaces_bytes(artifact: Artifact) -> bool:
    """Return whether the bytes of a version replace those of another one: its record has to be durable before that."""
    return artifact.version > 1 and artifact.committed_at is None


def ensure_copy(connection: Connection, artifact: Artifact, store: str) -> Copy:
    """Return the copy of a version in a store, recorded as `writing` if it is new, superseded or deleted."""
    found = find_copy(connection, artifact, store)
    if found is None:
        return copy_of(_INSERT_COPY.first(connection, artifact_id=artifact.id, store=store))
    if found.state in GONE:
        return copy_of(_BEGIN_AGAIN.first(connection, copy=found.id))
    return found


def find_copy(connection: Connection, artifact: Artifact, store: str) -> Copy | None:
    """Return the copy of a version in a store, if one is recorded."""
    row = _COPY.first(connection, of=artifact.id, at=store)
    return copy_of(row) if row else None


def newest_of(connection: Connection, paths: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Row[Any]]:
    """Return the newest version of each key that has one."""
    found: dict[tuple[str, str], Row[Any]] = {}
    query = sa.select(artifacts).order_by(artifacts.c.version)
    for bucket, keys in by_bucket(paths):
        for row in connection.execute(query.where(artifacts.c.bucket == bucket, one_of(artifacts.c.key, keys))):
            found[row.bucket, row.key] = row
    return found


def _insert_versions(connection: Connection, fresh: Sequence[_Fresh], shared: Mapping[str, Any]) -> dict[int, Recorded]:
    if not fresh:
        return {}
    rows = [
        {"bucket": each.bucket, "key": each.key, "version": version, "size": each.digest.size,
         "sha256": each.digest.sha256, "metadata": kept, "properties": properties}
        for _, each, version, (kept, properties) in fresh
    ]  # fmt: skip
    _INSERT_VERSIONS.run_many(connection, rows, **shared)
    ids = _ids_of(connection, [(each.bucket, each.key) for _, each, _, _ in fresh], shared["job"])
    recorded: dict[int, Recorded] = {}
    for number, each, version, (kept, properties) in fresh:
        artifact = Artifact(
            ids[each.bucket, each.key, version], each.bucket, each.key, version, each.digest, kept,
            shared["created_at"], properties=properties or {}, stores_named=bool(shared["stores_named"]),
        )  # fmt: skip
        recorded[number] = Recorded(artifact, fresh=True)
    begun = [
        {"artifact_id": recorded[number].artifact.id, "store": store}
        for number, each, _, _ in fresh
        for store in each.stores
    ]
    _INSERT_COPIES.run_many(connection, begun)
    return recorded


def _ids_of(connection: Connection, paths: Sequence[tuple[str, str]], job: str) -> dict[tuple[str, str, int], int]:
    """Return the ids of the versions of these keys that a job has recorded, by bucket, key and version."""
    row, found = artifacts.c, {}
    query = sa.select(row.bucket, row.key, row.version, row.id)
    query = query.where(row.job.concat("") == job)  # concat: search by key
    for bucket, keys in by_bucket(paths):
        for *name, id_ in connection.execute(query.where(row.bucket == bucket, one_of(row.key, keys))):
            found[tuple(name)] = id_
    return found


def _check_not_superseded(connection: Connection, newest: Row[Any], job: str, digest: Digest) -> None:
    """Raise Superseded if an earlier attempt of the job uploaded a version that was followed by another, or deleted.

    The jobs of a batch count as one: a file that leaves its page is uploaded by a job of its own. If the list of the
    batch names its key twice, its version is the one that has its digest.
    """
    batch = _batch_of(job)
    first, last = (f"{batch}.{'0' * 8}", f"{batch}.{'9' * 8}") if batch else (job, job)
    used = _USED_BY.all(connection, bucket=newest.bucket, key=newest.key, first=first, last=last)
    found = [row for row in used if is_uploaded_by(row, job)]
    if not found:
        return
    own = next((row for row in found if job in _jobs_of(row) or artifact_of(row).digest == digest), found[0])
    what = f"version {own.version} of {own.bucket}/{own.key}, which an earlier attempt of this job uploaded,"
    if own.tombstoned_at is not None:
        raise Superseded(f"{what} was deleted before the job could end")
    if own.id != newest.id:
        raise Superseded(f"{what} was followed by version {newest.version} before the job could end")


def _note_reuses(connection: Connection, rows: Sequence[Row[Any]], job: str | None) -> None:
    """Record that a job uploads the bytes of these versions again, for `_check_not_superseded` at its next attempt."""
    if job is None:
        return
    new = [row for row in rows if not is_uploaded_by(row, job)]
    notes = [{"of": row.id, "jobs": [*(row.reused_by or ()), job][-_MOST_REUSES:]} for row in new]
    _REUSE.run_many(connection, notes)


def is_uploaded_by(row: Row[Any], job: str) -> bool:
    """Return whether a job, or another of its batch, has uploaded a version."""
    batch = _batch_of(job)
    return any(each == job or (batch is not None and _batch_of(each) == batch) for each in _jobs_of(row))


def _jobs_of(row: Row[Any]) -> list[str]:
    """Return the jobs that uploaded a version, as far as they are recorded."""
    return [each for each in (row.job, *(row.reused_by or ())) if each]


def written_by(connection: Connection, rows: Sequence[Row[Any]], unended: sa.ColumnElement[bool]) -> Sequence[Row[Any]]:
    """Return those versions of which a job that uploads them, or its batch, is open or meets `unended`."""
    writers = {row.id: set(_jobs_of(row)) for row in rows}
    names = sorted(set().union(*writers.values()))
    parent_open = sa.exists().where(_parents.c.id == jobs.c.parent, _parents.c.state.in_(OPEN_STATES))
    still = sa.select(jobs.c.id).where(jobs.c.id.in_(names), sa.or_(unended, parent_open))
    found = set(connection.execute(still).scalars())
    return [row for row in rows if writers[row.id] & found]


def _batch_of(job: str) -> str | None:
    found = BATCH_JOB_ID.fullmatch(job)
    return found["batch"] if found else None
