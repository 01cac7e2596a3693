"""Sweep replication: bring every artifact to the stores that the placement rules name."""

from fnmatch import fnmatchcase
from uuid import NAMESPACE_OID, uuid5

from worker import clock
from worker.catalogue import Artifact
from worker.context import Context
from worker.jobs.child_jobs import send_child
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.settings.sections import PlacementRule
from zot_artifact_client.contract import (
    REPLICATE,
    SWEEP_REPLICATE,
    Queue,
    ReplicateRequest,
    SweepReplicateRequest,
    SweepReplicateResult,
)


def sweep_replicate(request: SweepReplicateRequest, context: Context, job: RunningJob) -> SweepReplicateResult:
    """Claim the copies that a rule wants and that are not there, no more than a batch of each store; send their jobs.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    buckets = context.catalogue.artifacts.buckets()
    claimed = dict.fromkeys(context.swept(request.store), 0)
    for rule in context.settings.placement_rules:
        for bucket in (bucket for bucket in buckets if fnmatchcase(bucket, rule.bucket)):
            for store in (store for store in rule.stores if store in claimed):
                left = context.settings.sweep.replicate.batch - claimed[store]
                claimed[store] += _bring(context, job, rule, bucket, store, left) if left else 0
    return SweepReplicateResult(claimed={store: count for store, count in claimed.items() if count})


def _bring(  # noqa: PLR0917 - a rule, and one bucket and store of it
    context: Context, job: RunningJob, rule: PlacementRule, bucket: str, store: str, limit: int
) -> int:
    now = clock.now()
    until = now + context.settings.sweep.replicate.claim
    absent = context.catalogue.sweep_claims.absent(
        store,
        bucket,
        rule.prefix,
        wanted=lambda artifact: context.settings.rule_for(artifact.bucket, artifact.key) is rule,
        now=now,
        until=until,
        limit=limit,
    )
    for artifact in absent:
        job.check()
        _send(job, artifact, store, str(until))
    return len(absent)


def _send(job: RunningJob, artifact: Artifact, store: str, slot: str) -> None:
    request = ReplicateRequest(bucket=artifact.bucket, key=artifact.key, to=(store,))
    id_ = uuid5(NAMESPACE_OID, f"replicate {artifact.id} {store} {slot}")
    send_child(REPLICATE, request, id_=str(id_), parent=job.id, queue=Queue.SWEEP)


sweep_replicate_task = artifact_task(SWEEP_REPLICATE, writes=False)(sweep_replicate)
