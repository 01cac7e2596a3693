"""Sweep replicate: send pages for the copies that jobs have begun and left, and those that placement wants."""

from collections import Counter
from collections.abc import Sequence
from math import ceil

from celery import current_app

from worker import clock
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.jobs.send_sweep_pages import Messages, PlanOfClaims, resume
from worker.jobs.task import artifact_task
from zot_artifact_client.contract import (
    SWEEP_REPLICATE,
    SweepReplicateRequest,
    SweepReplicateResult,
)


def sweep_replicate(request: SweepReplicateRequest, job: RunningJob) -> SweepReplicateResult:
    """Claim the copies that jobs have left, or placement wants, up to a limit for each store, and send their pages.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    messages = Outbox(current_app)
    stores = job.swept_stores(request.store)
    if planned := job.catalogue.pages.planned_by(job.id):  # at an attempt whose worker died
        resume(job.id, planned, messages)
        return SweepReplicateResult(claimed={})
    return SweepReplicateResult(claimed=_plan(request, stores, job, messages))


def _plan(request: SweepReplicateRequest, stores: Sequence[str], job: RunningJob, messages: Messages) -> Counter[str]:
    """Claim copies for pages, and send the pages; return how many copies of each store that is."""
    plan, count = PlanOfClaims(job.catalogue, job.id, messages), Counter[str]()
    open_ = job.catalogue.pages.open_by_store(SWEEP_REPLICATE.kind)
    for store in stores:
        pages = job.settings.page.in_flight - open_[store]
        if pages > 0 and (claimed := _claim(request, store, job, plan, pages=pages)):
            count[store] = claimed
    plan.send()
    return count


def _claim(request: SweepReplicateRequest, store: str, job: RunningJob, plan: PlanOfClaims, *, pages: int) -> int:
    """Claim the copies of a store for up to so many pages, which are planned with them; return how many copies.

    First are those that a job has begun and left, which one search finds; then those that placement wants.
    """
    settings, claims, wanted = job.settings, job.catalogue.sweep_claims, job.settings.wanted_in(store)
    sweep, most, now = settings.sweep.replicate, settings.page.objects, clock.now()
    until, late_since = now + sweep.claim, now - sweep.late
    accept = plan.pages_of(store, objects=most, now=now, until=until, late_since=late_since)
    limit = min(sweep.batch, pages * most)
    job.check()
    claimed = len(
        claims.begun(
            store, request.bucket, request.prefix, wanted=wanted, now=now, until=until, limit=limit,
            late_since=late_since, plan=accept,
        )
    )  # fmt: skip
    pages -= ceil(claimed / most)
    while wanted is not None and pages > 0 and (room := min(most, limit - claimed)):
        job.check()
        found = claims.absent(
            store, request.bucket, request.prefix, wanted=wanted, now=now, until=until, limit=room,
            late_since=late_since, plan=accept,
        )  # fmt: skip
        claimed, pages = claimed + len(found), pages - 1
        if len(found) < room:
            break
    return claimed


sweep_replicate_task = artifact_task(SWEEP_REPLICATE, writes=False)(sweep_replicate)
