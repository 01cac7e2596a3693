"""Adopt: record an object as a copy that another program wrote, such as the original store."""

from worker import clock
from worker.artifacts.adoption import adopted_before, read_to_adopt
from worker.catalogue import Artifact, OtherVersion
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import Conflict
from worker.storage.keys import check_bucket, check_existing_key
from zot_artifact_client.contract import ADOPT, AdoptRequest, AdoptResult


def adopt(request: AdoptRequest, job: RunningJob) -> AdoptResult:
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
    artifacts, store = job.catalogue.artifacts, job.stores[request.store]
    stat = store.stat_object(request.bucket, request.key, as_copy=True)
    known = artifacts.current(request.bucket, request.key)
    copy = artifacts.copies(known).get(store.name) if known else None
    evidence = adopted_before(request, stat, known, copy)
    if known is not None and evidence is not None:
        return _result(known, store.name, evidence, unchanged=True)
    job.start(stat.size, f"reading from {store.name}")
    read = read_to_adopt(request, store, stat, known, job)
    try:
        artifact = job.catalogue.adoptions.record(read.adoption, clock.now())
    except OtherVersion as error:
        raise Conflict(f"{store.name}: {stat.bucket}/{stat.key}: {error}") from error
    return _result(
        artifact, store.name, str(read.adoption.evidence["adopted"]),
        not_recorded=read.not_recorded(artifact), after_delete=read.adoption.is_after_delete(artifact),
    )  # fmt: skip


def _result(
    artifact: Artifact, store: str, evidence: str, *,
    unchanged: bool = False, not_recorded: tuple[str, ...] = (), after_delete: bool = False,
) -> AdoptResult:  # fmt: skip
    return AdoptResult(
        **artifact.facts,
        store=store,
        evidence=evidence,
        unchanged=unchanged,
        not_recorded=not_recorded,
        after_delete=after_delete,
    )


adopt_task = artifact_task(ADOPT, writes=True)(adopt)
