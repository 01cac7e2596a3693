"""Sweep repair: send pages for the bad copies with a good one elsewhere, and for those with wrong metadata."""

import logging
from collections import Counter
from collections.abc import Sequence

from celery import current_app

from worker import clock
from worker.catalogue import count_present
from worker.counted import counted
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.jobs.send_sweep_pages import Messages, PlanOfClaims, resume
from worker.jobs.task import artifact_task
from worker.storage.durations_and_sizes import duration_text
from zot_artifact_client.contract import (
    SWEEP_REPAIR,
    SweepRepairRequest,
    SweepRepairResult,
)

logger = logging.getLogger(__name__)

_FEW = 20
"""Up to this number, bad copies say nothing about a store, whatever their share is."""
_MOST_LOST = 1000


def sweep_repair(request: SweepRepairRequest, job: RunningJob) -> SweepRepairResult:
    """Claim copies that can be repaired, up to a limit for each store, and send pages that replicate them.

    Replicate writes and verifies the new bytes and keeps the bad ones in quarantine. It writes a copy with right bytes
    and wrong metadata again, from its own bytes. A bad copy whose artifact has no good copy is not touched. Of a store
    with too many bad copies nothing is repaired until an operator trusts it again. Stores that are paused are left out,
    and those of `sweep.repair.off`.

    Raises:
        UnknownStore: naming the stores there are.
    """
    messages = Outbox(current_app)
    stores, claimed = job.swept_stores(request.store), Counter[str]()
    if planned := job.catalogue.pages.planned_by(job.id):  # at an attempt whose worker died
        resume(job.id, planned, messages)
    else:
        claimed = _plan(request, stores, job, messages)
    lost = job.catalogue.findings.see_lost(list(job.stores), now=clock.now(), limit=_MOST_LOST)
    if lost:
        logger.critical("lost artifacts: %d: `zot-artifacts findings --kind lost` names them", lost)
    return SweepRepairResult(claimed=claimed, untrusted=tuple(job.catalogue.repairs.untrusted()), lost=lost)


def _plan(request: SweepRepairRequest, stores: Sequence[str], job: RunningJob, messages: Messages) -> Counter[str]:
    """Claim copies for pages, bad ones first, and send the pages; return how many copies of each store that is."""
    sweep, most, count = job.settings.sweep.repair, job.settings.page.objects, Counter[str]()
    plan = PlanOfClaims(job.catalogue, job.id, messages)
    open_ = job.catalogue.pages.open_by_store(SWEEP_REPAIR.kind)
    for store in stores:
        if store in sweep.off or not _is_trusted(job, store):
            continue
        for metadata in (False, True):
            while open_[store] < job.settings.page.in_flight and (room := min(most, sweep.batch - count[store])):
                job.check()
                now = clock.now()
                found = job.catalogue.repairs.claim(
                    store, sources=list(job.stores), now=now, until=now + sweep.claim, limit=room,
                    job=plan.next_id, within=(request.bucket, request.prefix), metadata=metadata,
                    plan=plan.pages_of(store, objects=most, now=now, until=now + sweep.claim),
                )  # fmt: skip
                if found:
                    count[store] += len(found)
                    open_[store] += 1
                if len(found) < room:
                    break
    plan.send()
    return count


def _is_trusted(job: RunningJob, store: str) -> bool:
    """Return whether a store's copies may be repaired; stop its repairs if too many were found bad."""
    sweep, repairs = job.settings.sweep.repair, job.catalogue.repairs
    if store in repairs.untrusted():
        return False
    now = clock.now()
    present = count_present(job.catalogue.artifacts.count_by_state().get(store, {}))
    most = min(sweep.suspect_copies, max(_FEW, int(present * sweep.suspect_percent / 100)))
    bad = repairs.count_bad(store, since=now - sweep.window, limit=most + 1)
    if bad <= most:
        return True
    reason = f"more than {most} of its {counted(present, 'copy')} were found bad within {duration_text(sweep.window)}"
    repairs.distrust(store, reason=reason, now=now)
    logger.error("store %s: its repairs stop: %s; `zot-artifacts stores trust %s` continues them", store, reason, store)
    return False


sweep_repair_task = artifact_task(SWEEP_REPAIR, writes=False)(sweep_repair)
