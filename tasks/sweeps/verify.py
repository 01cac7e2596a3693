"""Sweep: start the verification of every copy that is due."""

from uuid import NAMESPACE_OID, uuid5

from worker import clock
from worker.catalogue import Artifact, Copy
from worker.context import Context
from worker.jobs.child_jobs import send_child
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from zot_artifact_client.contract import (
    SWEEP_VERIFY,
    VERIFY,
    Queue,
    SweepVerifyRequest,
    SweepVerifyResult,
    VerifyRequest,
)


def sweep_verify(request: SweepVerifyRequest, context: Context, job: RunningJob) -> SweepVerifyResult:
    """Claim the copies that are due, oldest attempt first and no more than a batch of each store, and send their jobs.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    sweep = context.settings.sweep.verify
    claimed = {}
    for store in context.swept(request.store):
        now = clock.now()
        due = context.catalogue.sweep_claims.due(store, now=now, until=now + sweep.claim, limit=sweep.batch)
        for artifact, copy in due:
            _send(job, artifact, copy)
        claimed[store] = len(due)
    return SweepVerifyResult(claimed=claimed)


def _send(job: RunningJob, artifact: Artifact, copy: Copy) -> None:
    job.check()
    request = VerifyRequest(bucket=artifact.bucket, key=artifact.key, stores=(copy.store,), version=artifact.version)
    slot = uuid5(NAMESPACE_OID, f"verify {copy.id} {copy.next_due_at}")  # a sweep that is repeated sends the same job
    send_child(VERIFY, request, id_=str(slot), parent=job.id, queue=Queue.SWEEP)


sweep_verify_task = artifact_task(SWEEP_VERIFY, writes=False)(sweep_verify)
