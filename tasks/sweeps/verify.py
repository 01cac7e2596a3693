"""Sweep verify: send as many pages as there are copies whose verification is due."""

import logging
from collections.abc import Sequence

from celery import current_app

from worker import clock
from worker.artifacts.log_signature import BadKeyFile, LogKeys
from worker.artifacts.read_pace import pace_of
from worker.artifacts.store_findings import see_stores
from worker.artifacts.verification_log_head import see_head
from worker.context import JobContext
from worker.jobs.outbox import Outbox
from worker.jobs.planned_pages import Messages, plan, resume
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.snooze import Snooze
from worker.storage.errors import StorageError
from zot_artifact_client.contract import (
    SWEEP_VERIFY,
    ClaimSelection,
    PageRequest,
    SweepVerifyRequest,
    SweepVerifyResult,
)

logger = logging.getLogger(__name__)


def sweep_verify(request: SweepVerifyRequest, context: JobContext, job: RunningJob) -> SweepVerifyResult:
    """Count the copies that are due in each store, and send so many pages; each claims its copies when it begins.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
    """
    return sweep(request, context, job, Outbox(current_app))


def sweep(request: SweepVerifyRequest, context: JobContext, job: RunningJob, messages: Messages) -> SweepVerifyResult:
    """Do as `sweep_verify`, with these messages."""
    stores = context.unpaused_stores(request.store)
    planned = context.catalogue.pages.planned_by(job.id)
    if planned:  # at an attempt whose worker died
        resume(job.id, planned, messages)
        return _result(dict.fromkeys(stores, 0), [PageRequest.read(each.request) for each in planned])
    see_stores(context.settings, context.catalogue, clock.now())
    open_ = context.catalogue.pages.open_by_store("verify")
    due, pages = {}, []
    for store in stores:
        job.check()
        due[store], wanted = _due(context, store)
        room = min(wanted - open_[store], context.settings.page.in_flight - open_[store])
        pages += [PageRequest(verb="verify", claim=ClaimSelection(store=store))] * max(room, 0)
    plan(context.catalogue, job.id, pages, messages)
    _keep_heads(context, job, stores)
    return _result(due, pages)


def _keep_heads(context: JobContext, job: RunningJob, stores: Sequence[str]) -> None:
    """Have every store keep the head of the log, with what the pages of the last sweep have added."""
    keys = LogKeys.of(context.settings.verification_log)
    for name in stores:
        job.check()
        try:
            context.stores[name].admit()
            fault = see_head(context.unlimited_stores[name], context.catalogue, keys)
        except (StorageError, Snooze, BadKeyFile) as error:
            logger.warning("the head of the verification log is not kept in %s: %s", name, error)
        else:
            if fault:
                logger.error("store %s: %s", name, fault)


def _due(context: JobContext, store: str) -> tuple[int, int]:
    """Return how many copies of a store are due, and how many pages they fill."""
    sweep, page, now = context.settings.sweep.verify, context.settings.page, clock.now()
    most = sweep.batch or page.in_flight * sweep.page
    claims = context.catalogue.sweep_claims
    count = claims.count_due(store, period=sweep.period_of(store), now=now, limit=most)
    if not count:
        return 0, 0
    if warning := pace_of(context.catalogue, store, count, period=sweep.period_of(store), now=now).warning:
        logger.warning("%s", warning)
    size = claims.mean_size(store, period=sweep.period_of(store), now=now, largest=page.large)
    per_page = max(1, min(sweep.page, page.size // max(size, 1)))
    return count, -(-count // per_page)


def _result(due: dict[str, int], pages: Sequence[PageRequest]) -> SweepVerifyResult:
    sent = {store: sum(page.claim is not None and page.claim.store == store for page in pages) for store in due}
    return SweepVerifyResult(claimed=due, pages=sent)


sweep_verify_task = artifact_task(SWEEP_VERIFY, writes=False)(sweep_verify)
