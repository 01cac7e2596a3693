"""Verify: read all bytes of an artifact's copies and compare them with the recorded digest."""

from worker.artifacts.lock_artifacts_for_job import names_companions_itself
from worker.artifacts.per_store import for_each_store
from worker.artifacts.verification_log.kept_head import WrittenLog
from worker.artifacts.verify_copy import verify_copy
from worker.catalogue import Artifact, Copy
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import NotFound
from zot_artifact_client.contract import VERIFY, CopyVerdict, VerifyRequest, VerifyResult


def verify(request: VerifyRequest, job: RunningJob) -> VerifyResult:
    """Read every copy that was asked for to its end, and record one verdict for each; the same for its companions.

    A copy that cannot be read has the verdict `unreadable`, and the others are read nevertheless. So has a copy in a
    store that is not configured.

    Raises:
        NotFound: the artifact is not in the catalogue, or has no copy in a store that was named.
        UnknownStore: naming the stores there are.
        Snooze: a store takes no job now; the copies in the others have their verdicts.
    """
    artifact = _find_version(request, job)
    alone = request.version is not None or names_companions_itself(job)
    known = [] if alone else job.catalogue.companions.of(request.bucket, request.key)
    examined = [(artifact, _find_copies(request, job, artifact))]
    examined += [(each, _find_copies(request, job, each, of_companion=True)) for each in known]
    job.start(sum(each.digest.size * len(copies) for each, copies in examined), "verifying")
    try:
        # Each is read, also after one that a store could not be asked about.
        first, *others = for_each_store(examined, lambda each: _verify(job, *each))
    finally:
        job.after_end.append(WrittenLog(job.settings.run_dir, job.catalogue).note_later())
    return first.model_copy(update={"companions": tuple(each for each in others if each.copies)})


def _verify(job: RunningJob, artifact: Artifact, copies: list[Copy]) -> VerifyResult:
    """Read the copies of one artifact."""

    def verify_one(copy: Copy) -> CopyVerdict | None:
        if job.snoozed_since:  # it may have this verdict from before it waited for another store
            before = job.catalogue.verifications.by_job(job.id, artifact, copy.store)
            if before is not None:
                job.advance(artifact.digest.size)
                fault = _metadata_fault(job, artifact, copy.store)
                return CopyVerdict(store=copy.store, verdict=before[0], sha256=before[1], detail=before[2] or fault)
        job.step(f"reading from {copy.store}")
        seen = verify_copy(job, artifact, copy)
        if seen is None:
            return None
        fault = None if seen.stored_sha256 in {None, seen.sha256} else _metadata_fault(job, artifact, copy.store)
        return CopyVerdict(store=copy.store, verdict=seen.verdict, sha256=seen.sha256, detail=seen.detail or fault)

    verdicts = for_each_store(copies, verify_one)
    return VerifyResult(
        **artifact.facts,
        copies=tuple(verdict for verdict in verdicts if verdict is not None),
    )


def _metadata_fault(job: RunningJob, artifact: Artifact, store: str) -> str | None:
    """Return what the open finding `metadata` of a copy means: its digest in the store is wrong; None without one."""
    if not job.catalogue.findings.has_wrong_metadata(artifact, store):
        return None
    return "the bytes are right, the SHA-256 beside them is wrong or lost: `zot-artifacts sweep repair` rewrites it"


def _find_version(request: VerifyRequest, job: RunningJob) -> Artifact:
    if request.version is None:
        return job.catalogue.artifact(request.bucket, request.key)
    found = job.catalogue.artifacts.version(request.bucket, request.key, request.version)
    if found is None:
        raise NotFound(f"{request.bucket}/{request.key} has no version {request.version} in the catalogue")
    return found


def _find_copies(
    request: VerifyRequest, job: RunningJob, artifact: Artifact, *, of_companion: bool = False
) -> list[Copy]:
    present = {name: copy for name, copy in job.catalogue.artifacts.copies(artifact).items() if copy.state.present}
    if request.stores is None:
        return list(present.values())
    # A misspelt name is told from an absent copy, and a store that left the configuration from both.
    stores = [name if name in present else job.stores[name].name for name in request.stores]
    if request.version is None and not of_companion:
        for name in stores:
            if name not in present:
                where = ", ".join(present) or "no store"
                raise NotFound(f"{artifact.path} has no copy in {name!r}; it has one in: {where}")
    return [present[name] for name in stores if name in present]


verify_task = artifact_task(VERIFY, writes=False)(verify)
