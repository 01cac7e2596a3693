"""Sweep verify: send a job for every copy whose verification is due."""

from uuid import NAMESPACE_OID, uuid5

from worker import clock
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, send_child
from zot_artifact_client.contract import (
    SWEEP_VERIFY,
    VERIFY,
    Queue,
    SweepVerifyRequest,
    SweepVerifyResult,
    VerifyRequest,
)


def sweep_verify(request: SweepVerifyRequest, context: JobContext, job: RunningJob) -> SweepVerifyResult:
    """Claim the copies that are due, oldest attempt first and up to a limit for each store, and send their jobs.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    sweep = context.settings.sweep.verify
    claimed = {}
    for store in context.unpaused_stores(request.store):
        now = clock.now()
        until = now + sweep.claim
        due = context.catalogue.sweep_claims.due(
            store, period=sweep.period_of(store), now=now, until=until, limit=sweep.batch
        )
        for artifact, copy in due:
            job.check()
            id_ = uuid5(NAMESPACE_OID, f"verify {copy.id} {until}")  # one job a claim
            wanted = VerifyRequest(bucket=artifact.bucket, key=artifact.key, stores=(store,), version=artifact.version)
            send_child(VERIFY, wanted, id_=str(id_), parent=job.id, queue=Queue.SWEEP)
        claimed[store] = len(due)
    return SweepVerifyResult(claimed=claimed)


sweep_verify_task = artifact_task(SWEEP_VERIFY, writes=False)(sweep_verify)
