"""Adopt: make an object known that lies in a store and that somebody else wrote, such as the original store."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from worker import clock
from worker.artifacts import copies
from worker.catalogue import Artifact, Finding
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.admission import Gate
from worker.storage import Digest, ObjectStat, Store, Verdict
from worker.storage.errors import IntegrityError, PermanentError, Unavailable
from worker.storage.integrity.manifest import Manifest, compute_digests
from worker.storage.keys import check_bucket, check_key
from zot_artifact_client.contract import ADOPT, AdoptRequest, AdoptResult, Metadata

KEPT = "sha256 kept by the store"
RECORDED = "sha256 in the catalogue"
FIRST_READ = "first read"

_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)


class Unverifiable(PermanentError):
    """No digest is known to hold the object's bytes against."""


class OtherContent(IntegrityError):
    """The artifact is known, with other bytes."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """Where a copy was found, and what its bytes were held against."""

    store: str
    evidence: str


def adopt(request: AdoptRequest, context: Context, job: RunningJob) -> AdoptResult:
    """Read an object in full, and record it as a copy of the artifact that its bytes are, where it lies.

    A read that matched a digest counts as a verification; a first read proves nothing and is recorded as that.

    Raises:
        NotFound: the store has no such object.
        DigestMismatch: the bytes are not those whose digest the store keeps; nothing was recorded.
        OtherContent: the artifact is known with other bytes; nothing was recorded.
        Unverifiable: there is no digest, and the request does not take the first read for one.
        InvalidKey, UnknownStore: nothing was read.
        Snooze: the store takes no job now.
    """
    check_key(check_bucket(request.bucket), request.key)
    with context.gates.enter(context.stores[request.store].name, job) as gate:
        return _adopt(request, context, job, gate)


def _adopt(request: AdoptRequest, context: Context, job: RunningJob, gate: Gate) -> AdoptResult:
    store = context.stores[request.store]
    stat = store.stat_object(request.bucket, request.key)
    known = context.catalogue.artifacts.current(request.bucket, request.key)
    copy = context.catalogue.artifacts.copies(known).get(store.name) if known else None
    if known and copy and copy.state.good and (copy.tag, known.digest.size) == (stat.version, stat.size):
        return _result(known, store, str(copy.evidence.get("adopted", RECORDED)), unchanged=True)
    evidence = _evidence(request, store, stat, known)
    job.start(stat.size, f"reading from {store.name}")
    digest, manifest = _read(store, stat, gate)
    if known and digest != known.digest:
        raise OtherContent(
            f"{store.name}: {known.path} has SHA-256 {digest.sha256}, version {known.version} in the catalogue has "
            f"{known.digest.sha256}: one of the two belongs under another key"
        )
    artifact = known or context.catalogue.artifacts.record(
        request.bucket, request.key, digest, _fitting(stat.metadata), clock.now(), manifest=manifest
    )
    _record_copy(context, job, artifact, stat, Adopted(store.name, evidence))
    return _result(artifact, store, evidence)


def _evidence(request: AdoptRequest, store: Store, stat: ObjectStat, known: Artifact | None) -> str:
    """Return what the bytes will be held against."""
    if stat.sha256:
        return KEPT
    if known:
        return RECORDED
    if request.first_read:
        return FIRST_READ
    raise Unverifiable(
        f"{store.name}: {request.bucket}/{request.key} is unverifiable, the store keeps no SHA-256 of it: if its bytes "
        "are to be trusted as they are, adopt it with `first_read` and the first read becomes the record"
    )


def _read(store: Store, stat: ObjectStat, gate: Gate) -> tuple[Digest, Manifest]:
    """Read an object to its end and return its digests; what the store keeps has been compared by then."""
    what = f"{store.name}: {stat.bucket}/{stat.key}"
    with store.read_object(stat.bucket, stat.key, on_bytes=gate.advance) as reader:
        if reader.stat.version != stat.version:
            raise Unavailable(f"{what} was written by somebody else just now")
        return compute_digests(reader, size=stat.size, what=what)


def _record_copy(context: Context, job: RunningJob, artifact: Artifact, stat: ObjectStat, adopted: Adopted) -> None:
    now = clock.now()
    due = now + copies.first_look(context, adopted.store)
    copy = context.catalogue.artifacts.ensure_copy(artifact, adopted.store)
    evidence = {**stat.storage_tags, "adopted": adopted.evidence}
    context.catalogue.artifacts.finish_copy(
        artifact, adopted.store, tag=stat.version, evidence=evidence, due=due, now=now
    )
    if adopted.evidence != FIRST_READ:
        digest = artifact.digest
        finding = Finding(job.id, adopted.store, artifact, Verdict.VERIFIED, digest.sha256, digest.size)
        context.catalogue.verifications.record(finding, copy, tag=stat.version, now=now, due=due)


def _fitting(found: Mapping[str, str]) -> Mapping[str, str]:
    """Return the metadata that an artifact may have; what somebody else wrote may be anything, and is left there."""
    fitting: dict[str, str] = {}
    for name, value in found.items():
        try:
            fitting |= _METADATA.validate_python({name: value})
        except ValidationError:
            continue
    return dict(list(fitting.items())[:16])


def _result(artifact: Artifact, store: Store, evidence: str, *, unchanged: bool = False) -> AdoptResult:
    return AdoptResult(
        bucket=artifact.bucket,
        key=artifact.key,
        version=artifact.version,
        size=artifact.digest.size,
        sha256=artifact.digest.sha256,
        store=store.name,
        evidence=evidence,
        unchanged=unchanged,
    )


adopt_task = artifact_task(ADOPT, writes=True)(adopt)
