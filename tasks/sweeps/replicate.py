"""Sweep replicate: send a job for every copy that the placement rules want and that does not exist."""

from fnmatch import fnmatchcase
from functools import partial
from uuid import NAMESPACE_OID, uuid5

from worker import clock
from worker.catalogue import Artifact
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, send_child
from worker.settings import Settings
from worker.settings.sections import PlacementRule
from zot_artifact_client.contract import (
    REPLICATE,
    SWEEP_REPLICATE,
    Queue,
    ReplicateRequest,
    SweepReplicateRequest,
    SweepReplicateResult,
)


def sweep_replicate(request: SweepReplicateRequest, context: JobContext, job: RunningJob) -> SweepReplicateResult:
    """Claim the copies that a rule wants and that do not exist, up to a limit for each store, and send their jobs.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    sweep, settings = context.settings.sweep.replicate, context.settings
    buckets = context.catalogue.artifacts.buckets()
    claimed = dict.fromkeys(context.unpaused_stores(request.store), 0)
    for rule in settings.placement_rules:
        for bucket in (bucket for bucket in buckets if fnmatchcase(bucket, rule.bucket)):
            for store in (store for store in rule.stores if claimed.get(store, sweep.batch) < sweep.batch):
                now = clock.now()
                until = now + sweep.claim
                absent = context.catalogue.sweep_claims.absent(
                    store,
                    bucket,
                    rule.prefix,
                    wanted=partial(_is_placed_by, rule, settings),
                    now=now,
                    until=until,
                    limit=sweep.batch - claimed[store],
                )
                for artifact in absent:
                    job.check()
                    id_ = uuid5(NAMESPACE_OID, f"replicate {artifact.id} {store} {until}")
                    wanted = ReplicateRequest(bucket=artifact.bucket, key=artifact.key, to=(store,))
                    send_child(REPLICATE, wanted, id_=str(id_), parent=job.id, queue=Queue.SWEEP)
                claimed[store] += len(absent)
    return SweepReplicateResult(claimed={store: count for store, count in claimed.items() if count})


def _is_placed_by(rule: PlacementRule, settings: Settings, artifact: Artifact) -> bool:
    return settings.rule_for(artifact.bucket, artifact.key) is rule


sweep_replicate_task = artifact_task(SWEEP_REPLICATE, writes=False)(sweep_replicate)
