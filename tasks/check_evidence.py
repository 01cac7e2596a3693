"""Check evidence: compare what stores say about the copies of an artifact, without a read, with what was recorded."""

from worker import clock
from worker.artifacts.check_evidence import check_copy
from worker.artifacts.per_store import for_each_store
from worker.catalogue import RecordedEvidence
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, child_id, send_child
from worker.storage.errors import NotFound
from zot_artifact_client.contract import (
    EVIDENCE,
    VERIFY,
    CopyEvidence,
    EvidenceRequest,
    EvidenceResult,
    Queue,
    VerifyRequest,
)


def evidence(request: EvidenceRequest, job: RunningJob) -> EvidenceResult:
    """Ask each store for size, version tag, digest and checksums of the good copies, and record what they say.

    It is recorded apart from verdicts and moves no time of verification. A copy that differs or is absent is read in
    full by a job of its own.

    Raises:
        NotFound: the artifact is not in the catalogue, or has no good copy in a store that was named.
        UnknownStore: naming the stores there are.
        TransientError, Snooze: a store does not answer, or takes no job now; the others were asked.
    """
    artifact = job.catalogue.artifact(request.bucket, request.key)
    good = {name: copy for name, copy in job.catalogue.artifacts.copies(artifact).items() if copy.state.good}
    names = [name for name in good if name in job.stores]
    if request.stores is not None:
        names = [job.stores[name].name for name in request.stores]
    if lacking := [name for name in names if name not in good]:
        raise NotFound(f"{artifact.path} has no good copy in {', '.join(lacking)}; it has one in: {', '.join(good)}")

    def check(name: str) -> CopyEvidence:
        copy, digest = good[name], artifact.digest
        known = RecordedEvidence(
            copy.id, artifact.key, artifact.version, digest.size, digest.sha256, copy.tag, copy.evidence, copy.read_at
        )
        found = check_copy(job.stores[name], artifact.bucket, known)
        job.catalogue.evidence_checks.record([found], now=clock.now())
        sent = None
        if found.is_bad:
            sent = child_id(f"{job.id} {name}")
            verify = VerifyRequest(bucket=artifact.bucket, key=artifact.key, stores=(name,), version=artifact.version)
            send_child(VERIFY, verify, id_=sent, parent=job.id, queue=Queue.INTERACTIVE)
        return CopyEvidence(store=name, outcome=found.outcome, compared=found.compared, detail=found.detail, job=sent)

    return EvidenceResult(
        **artifact.facts,
        copies=tuple(for_each_store(names, check)),
    )


evidence_task = artifact_task(EVIDENCE, writes=False)(evidence)
