"""Adopt: record an object as a copy that another program wrote, such as the original store."""

import logging

from worker import clock
from worker.artifacts.sanitize_found_metadata import encoded_tags, valid_metadata
from worker.artifacts.stored_digests import RECORDED
from worker.catalogue import Artifact, Finding, FinishedCopy
from worker.catalogue.rebuilding import FIRST_READ, KEPT
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage import ObjectStat, Verdict
from worker.storage.cloud.metadata import set_properties
from worker.storage.errors import Conflict, DigestMismatch, IntegrityError, PermanentError
from worker.storage.integrity.manifest import compute_digests
from worker.storage.keys import check_bucket, check_existing_key
from zot_artifact_client.contract import ADOPT, AdoptRequest, AdoptResult

logger = logging.getLogger(__name__)

GIVEN = "sha256 of the request"


class Unverifiable(PermanentError):
    """No digest is known to compare the object's bytes with."""


class OtherContent(IntegrityError):
    """The artifact is known, with other bytes."""


def adopt(request: AdoptRequest, context: JobContext, job: RunningJob) -> AdoptResult:
    """Read an object in full and record it as a copy of its artifact; the object does not change.

    A read that matched a digest counts as a verification; a first read proves nothing and is recorded as that.

    Raises:
        NotFound: the store has no such object.
        DigestMismatch: the bytes are not those whose digest the store keeps or the request has; nothing was recorded.
        OtherContent: the artifact is known with other bytes; nothing was recorded.
        Unverifiable: there is no digest, and the request does not say `first_read`.
        InvalidKey, UnknownStore: nothing was read.
        Snooze: the store takes no job now.
    """
    check_existing_key(check_bucket(request.bucket), request.key)
    artifacts, store = context.catalogue.artifacts, context.stores[request.store]
    stat = store.stat_object(request.bucket, request.key)
    known = artifacts.current(request.bucket, request.key)
    copy = artifacts.copies(known).get(store.name) if known else None
    as_asked = not known or request.sha256 in {None, known.digest.sha256}
    if known and as_asked and copy and copy.state.good and (copy.tag, known.digest.size) == (stat.version, stat.size):
        return _result(known, store.name, str(copy.evidence.get("adopted", RECORDED)), unchanged=True)
    evidence = _evidence(request, stat, known)
    job.start(stat.size, f"reading from {store.name}")
    what = f"{store.name}: {stat.bucket}/{stat.key}"
    with store.read_object(stat.bucket, stat.key, on_bytes=job.advance) as reader:
        if reader.stat.version != stat.version:
            raise Conflict(f"{what} was written by another program just now")
        beside = {*stat.not_carried, *reader.stat.not_carried}
        digest, manifest = compute_digests(reader, size=stat.size, what=what)  # compared with what the store keeps
    if request.sha256 not in {None, digest.sha256}:
        raise DigestMismatch(f"{what} has SHA-256 {digest.sha256}, the request has {request.sha256}")
    if known and digest != known.digest:
        raise OtherContent(
            f"{store.name}: {known.path} has SHA-256 {digest.sha256}, version {known.version} in the catalogue has "
            f"{known.digest.sha256}: one of the two belongs under another key"
        )
    tags = encoded_tags(store, stat) if "tags" in beside else None
    now = clock.now()
    properties = set_properties(stat.properties) | ({"tags": tags} if tags else {})
    artifact = known or artifacts.record(
        request.bucket, request.key, digest, valid_metadata(stat.metadata), now, manifest=manifest,
        properties=properties,
    ).artifact  # fmt: skip
    if tags:
        beside.discard("tags")
    beside |= {name for name, value in properties.items() if artifact.properties.get(name) != value}
    if any(artifact.metadata.get(name) != value for name, value in stat.metadata.items()):
        beside.add("metadata")
    copy = artifacts.ensure_copy(artifact, store.name)
    finished = FinishedCopy(artifact, store.name, stat.version, {**stat.storage_tags, "adopted": evidence})
    if evidence == FIRST_READ:
        artifacts.finish_copies([finished], now=now)
    else:
        finding = Finding(job.id, store.name, artifact, Verdict.VERIFIED, digest.sha256, digest.size)
        context.catalogue.verifications.record(finding, copy, tag=stat.version, now=now, finished=finished)
    if beside:
        logger.warning(
            "%s: the store keeps %s, which is not recorded and not replicated", what, ", ".join(sorted(beside))
        )
    return _result(artifact, store.name, evidence, not_recorded=tuple(sorted(beside)))


def _evidence(request: AdoptRequest, stat: ObjectStat, known: Artifact | None) -> str:
    """Return what the bytes will be compared with."""
    if stat.sha256:
        return KEPT
    if request.sha256:
        return GIVEN
    if known:
        return RECORDED
    if request.first_read:
        return FIRST_READ
    raise Unverifiable(
        f"{request.store}: {request.bucket}/{request.key} is unverifiable, the store keeps no SHA-256 of it; "
        "to record its bytes as they are, adopt it with `--first-read` (in a request: `first_read`)"
    )


def _result(
    artifact: Artifact, store: str, evidence: str, *, unchanged: bool = False, not_recorded: tuple[str, ...] = ()
) -> AdoptResult:
    return AdoptResult(
        bucket=artifact.bucket,
        key=artifact.key,
        version=artifact.version,
        size=artifact.digest.size,
        sha256=artifact.digest.sha256,
        store=store,
        evidence=evidence,
        unchanged=unchanged,
        not_recorded=not_recorded,
    )


adopt_task = artifact_task(ADOPT, writes=True)(adopt)
