"""Verify: read all bytes of an artifact's copies and hold them against the recorded digest."""

from worker.artifacts import copies
from worker.artifacts.per_store import for_each_store
from worker.catalogue import Artifact, Copy
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import NotFound
from zot_artifact_client.contract import VERIFY, CopyVerdict, VerifyRequest, VerifyResult


def verify(request: VerifyRequest, context: Context, job: RunningJob) -> VerifyResult:
    """Read every copy that was asked for to its end, and record one verdict for each.

    A copy that cannot be read has the verdict `unreadable`, and the others are read all the same.

    Raises:
        NotFound: the artifact is not in the catalogue, or has no copy in a store that was named.
        UnknownStore: naming the stores there are.
        Snooze: a store takes no job now; the copies in the others have their verdicts.
    """
    artifact = _artifact(request, context)
    wanted = _copies(request, context, artifact)
    job.start(artifact.digest.size * len(wanted), "verifying")
    seen = for_each_store(wanted, lambda copy: _verify(context, job, artifact, copy))
    return VerifyResult(
        bucket=artifact.bucket,
        key=artifact.key,
        version=artifact.version,
        size=artifact.digest.size,
        sha256=artifact.digest.sha256,
        copies=tuple(verdict for verdict in seen if verdict is not None),
    )


def _verify(context: Context, job: RunningJob, artifact: Artifact, copy: Copy) -> CopyVerdict | None:
    """Return the verdict on a copy; one that this job has found before it waited for another store stands."""
    found = context.catalogue.verifications.by_job(job.id, artifact, copy.store) if job.was_snoozed else None
    if found is not None:
        job.advance(artifact.digest.size)
        return CopyVerdict(store=copy.store, verdict=found[0], sha256=found[1], detail=found[2])
    job.step(f"reading from {copy.store}")
    seen = copies.verify(context, job, artifact, copy)
    if seen is None:
        return None
    return CopyVerdict(store=copy.store, verdict=seen.verdict, sha256=seen.sha256, detail=seen.detail)


def _artifact(request: VerifyRequest, context: Context) -> Artifact:
    if request.version is None:
        return context.artifact(request.bucket, request.key)
    found = context.catalogue.artifacts.version(request.bucket, request.key, request.version)
    if found is None:
        raise NotFound(f"{request.bucket}/{request.key} has no version {request.version} in the catalogue")
    return found


def _copies(request: VerifyRequest, context: Context, artifact: Artifact) -> list[Copy]:
    present = {name: copy for name, copy in context.catalogue.artifacts.copies(artifact).items() if copy.state.present}
    if request.stores is None:
        return list(present.values())
    stores = [context.stores[name].name for name in request.stores]  # a misspelt name is told from an absent copy
    if request.version is None:
        for name in stores:
            if name not in present:
                where = ", ".join(present) or "no store"
                raise NotFound(f"{artifact.path} has no copy in {name!r}; it has one in: {where}")
    return [present[name] for name in stores if name in present]


verify_task = artifact_task(VERIFY, writes=False)(verify)
