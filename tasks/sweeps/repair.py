"""Sweep repair: send a replication for each bad copy with a good one elsewhere, and for each with wrong metadata."""

import logging
from datetime import datetime, timedelta
from functools import partial
from uuid import NAMESPACE_OID, uuid5

from worker import clock
from worker.catalogue import CopyState
from worker.context import JobContext
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, send_child
from zot_artifact_client.contract import (
    REPLICATE,
    SWEEP_REPAIR,
    Queue,
    ReplicateRequest,
    SweepRepairRequest,
    SweepRepairResult,
)

logger = logging.getLogger(__name__)

_FEW = 20
"""Up to this number, bad copies say nothing about a store, whatever their share is."""
_MOST_LOST = 1000


def sweep_repair(request: SweepRepairRequest, context: JobContext, job: RunningJob) -> SweepRepairResult:
    """Claim copies that can be repaired, up to a limit for each store, and send a replication for each.

    Replicate writes and verifies the new bytes and keeps the bad ones in quarantine. It writes a copy with right bytes
    and wrong metadata again, from its own bytes. A bad copy whose artifact has no good copy is not touched. Of a store
    with too many bad copies nothing is repaired until an operator trusts it again. Stores that are paused are left out,
    and those of `sweep.repair.off`.

    Raises:
        UnknownStore: naming the stores there are.
    """
    sweep, repairs = context.settings.sweep.repair, context.catalogue.repairs
    claimed: dict[str, int] = {}
    for store in context.unpaused_stores(request.store):
        if store in sweep.off or not _is_trusted(context, store):
            continue
        now = clock.now()
        until = now + sweep.claim
        job_of = partial(_job_of, until)
        within = (request.bucket, request.prefix)
        found = repairs.claim(
            store, sources=list(context.stores), now=now, until=until, limit=sweep.batch, job_of=job_of, within=within
        )
        if room := sweep.batch - len(found):
            found += repairs.claim(
                store, sources=[], now=now, until=until, limit=room, job_of=job_of, within=within, metadata=True
            )
        for id_, artifact in found:
            job.check()
            wanted = ReplicateRequest(bucket=artifact.bucket, key=artifact.key, to=(store,))
            send_child(REPLICATE, wanted, id_=id_, parent=job.id, queue=Queue.SWEEP)
        if found:
            claimed[store] = len(found)
    lost = context.catalogue.findings.see_lost(list(context.stores), now=clock.now(), limit=_MOST_LOST)
    if lost:
        logger.critical("lost artifacts: %d: `zot-artifacts findings --kind lost` names them", lost)
    return SweepRepairResult(claimed=claimed, untrusted=tuple(repairs.untrusted()), lost=lost)


def _job_of(until: datetime, copy: int) -> str:
    return str(uuid5(NAMESPACE_OID, f"repair {copy} {until}"))


def _is_trusted(context: JobContext, store: str) -> bool:
    """Return whether a store's copies may be repaired; stop its repairs if too many were found bad."""
    sweep, repairs = context.settings.sweep.repair, context.catalogue.repairs
    if store in repairs.untrusted():
        return False
    now = clock.now()
    states = context.catalogue.artifacts.count_by_state().get(store, {})
    present = sum(count for state, count in states.items() if CopyState(state).present)
    most = min(sweep.suspect_copies, max(_FEW, int(present * sweep.suspect_percent / 100)))
    bad = repairs.count_bad(store, since=now - sweep.window, limit=most + 1)
    if bad <= most:
        return True
    reason = f"more than {most} of its {counted(present, 'copy')} were found bad within {_told(sweep.window)}"
    repairs.distrust(store, reason=reason, now=now)
    logger.error("store %s: its repairs stop: %s; `zot-artifacts stores trust %s` continues them", store, reason, store)
    return False


def _told(window: timedelta) -> str:
    hours = window.total_seconds() / 3600
    return f"{hours:g} h"


sweep_repair_task = artifact_task(SWEEP_REPAIR, writes=False)(sweep_repair)
