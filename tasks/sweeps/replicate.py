"""Sweep replicate: send pages for the copies that jobs have begun and left, and those that placement wants."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice

from celery import current_app

from worker import clock
from worker.catalogue import Artifact
from worker.context import JobContext
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.jobs.send_sweep_pages import Claimed, Messages, plan, resume
from worker.jobs.task import artifact_task
from zot_artifact_client.contract import (
    SWEEP_REPLICATE,
    ClaimSelection,
    PageRequest,
    SweepReplicateRequest,
    SweepReplicateResult,
)


def sweep_replicate(request: SweepReplicateRequest, context: JobContext, job: RunningJob) -> SweepReplicateResult:
    """Claim the copies that jobs have left, or placement wants, up to a limit for each store, and send their pages.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    return sweep(request, context, job, Outbox(current_app))


def sweep(
    request: SweepReplicateRequest, context: JobContext, job: RunningJob, messages: Messages
) -> SweepReplicateResult:
    """Do as `sweep_replicate`, with these messages."""
    stores = context.unpaused_stores(request.store)
    if planned := context.catalogue.pages.planned_by(job.id):  # at an attempt whose worker died
        resume(job.id, planned, messages)
        return SweepReplicateResult(claimed={})
    return SweepReplicateResult(claimed=_plan(request, stores, context, job, messages))


def _plan(
    request: SweepReplicateRequest, stores: Sequence[str], context: JobContext, job: RunningJob, messages: Messages
) -> Counter[str]:
    """Claim copies for pages, and send the pages; return how many copies of each store that is."""
    count = Counter[str]()
    requests, claimed = list[PageRequest](), list[Claimed]()
    open_ = context.catalogue.pages.open_by_store(SWEEP_REPLICATE.kind)
    for store in stores:
        most = max(0, context.settings.page.in_flight - open_[store])
        for found, until in islice(_claims(context, request, store, job, most), most):
            requests.append(PageRequest(verb="replicate", claim=ClaimSelection(store=store), to=(store,)))
            since = _late_since(context)
            late = [(store, of.bucket, of.key) for of in found if (of.committed_at or until) <= since]
            claimed.append(Claimed([artifact.id for artifact in found], until, late))
            count[store] += len(found)
    plan(context.catalogue, job.id, requests, messages, claimed)
    return count


def _claims(
    context: JobContext, request: SweepReplicateRequest, store: str, job: RunningJob, pages: int
) -> Iterator[tuple[Sequence[Artifact], datetime]]:
    """Claim the copies of a store for about so many pages, and yield those of each, with the end of their claim.

    First are those that a job has begun and left, which one search finds; then those that placement wants.
    """
    settings, claims, wanted = context.settings, context.catalogue.sweep_claims, context.settings.wanted_in(store)
    most = settings.page.objects
    room = min(settings.sweep.replicate.batch, pages * most)
    now = clock.now()
    until = now + settings.sweep.replicate.claim
    job.check()
    begun = claims.begun(
        store, request.bucket, request.prefix, wanted=wanted, now=now, until=until, limit=room,
        late_since=_late_since(context),
    )  # fmt: skip
    for first in range(0, len(begun), most):
        yield begun[first : first + most], until
    room -= len(begun)
    while wanted is not None and room:
        job.check()
        now = clock.now()
        until = now + settings.sweep.replicate.claim
        limit = min(most, room)
        found = claims.absent(
            store, request.bucket, request.prefix, wanted=wanted, now=now, until=until, limit=limit,
            late_since=_late_since(context),
        )  # fmt: skip
        if found:
            yield found, until
        if len(found) < limit:
            return
        room -= len(found)


def _late_since(context: JobContext) -> datetime:
    """Return the moment before which an artifact was committed whose absent copy is a finding."""
    return clock.now() - context.settings.sweep.replicate.late


sweep_replicate_task = artifact_task(SWEEP_REPLICATE, writes=False)(sweep_replicate)
