"""Sweep replicate: send pages for the copies that are absent where `placement` or its rules want them."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import partial

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
    """Claim the copies that placement wants and that do not exist, up to a limit for each store, and send their pages.

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
    settings, count = context.settings, Counter[str]()
    requests, claimed = list[PageRequest](), list[Claimed]()
    late: list[list[tuple[str, str, str]]] = []
    for store in stores:
        if store not in settings.replicated_to:
            continue
        while room := min(settings.page.objects, settings.sweep.replicate.batch - count[store]):
            job.check()
            found, until = _claim(context, request, store, room)
            if found:
                requests.append(PageRequest(verb="replicate", claim=ClaimSelection(store=store), to=(store,)))
                claimed.append(Claimed([artifact.id for artifact in found], until))
                count[store] += len(found)
                since = _late_since(context)
                late.append([(store, of.bucket, of.key) for of in found if (of.committed_at or until) <= since])
            if len(found) < room:
                break
    pages = plan(context.catalogue, job.id, requests, messages, claimed)
    for page, paths in zip(pages, late, strict=True):
        context.catalogue.findings.act(dict.fromkeys(paths, page), "replicate", now=clock.now())
    return count


def _claim(
    context: JobContext, request: SweepReplicateRequest, store: str, limit: int
) -> tuple[list[Artifact], datetime]:
    now = clock.now()
    until = now + context.settings.sweep.replicate.claim
    absent = context.catalogue.sweep_claims.absent(
        store, request.bucket, request.prefix, wanted=partial(context.settings.wants, store), now=now, until=until,
        limit=limit, late_since=_late_since(context),
    )  # fmt: skip
    return absent, until


def _late_since(context: JobContext) -> datetime:
    """Return the moment before which an artifact was committed whose absent copy is a finding."""
    return clock.now() - context.settings.sweep.replicate.late


sweep_replicate_task = artifact_task(SWEEP_REPLICATE, writes=False)(sweep_replicate)
