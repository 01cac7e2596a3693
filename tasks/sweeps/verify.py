"""Sweep verify: send as many pages as there are copies whose verification is due."""

import logging
from collections.abc import Sequence

from celery import current_app

from worker import clock
from worker.artifacts.kept_tombstones import keep_tombstones
from worker.artifacts.log_signature import BadKeyFile, LogKeys
from worker.artifacts.overdue_or_unconfigured import see_stores
from worker.artifacts.read_budget import LATE, forecast_of, pace_of
from worker.artifacts.read_budget import plan as plan_reads
from worker.artifacts.store_holds import hold_missing
from worker.artifacts.verification_log_head import see_head
from worker.catalogue import FindingKind
from worker.context import JobContext
from worker.jobs.outbox import Outbox
from worker.jobs.planned_pages import Messages, plan, resume
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.snooze import Snooze
from worker.settings.budgets import Prices
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
    due: dict[str, int] = {}
    pages: list[PageRequest] = []
    for store in stores:
        job.check()
        due[store], wanted = _due(context, store)
        room = max(0, min(len(wanted), context.settings.page.in_flight) - open_[store])
        for copies in wanted[:room]:
            claim = ClaimSelection(store=store, most=copies if store in context.settings.budgets else None)
            pages.append(PageRequest(verb="verify", claim=claim))
    plan(context.catalogue, job.id, pages, messages)
    _keep_heads(context, job, stores)
    return _result(due, pages)


def _keep_heads(context: JobContext, job: RunningJob, stores: Sequence[str]) -> None:
    """Have every store keep the head of the log, with what the pages of the last sweep have added, and the deletes."""
    keys = LogKeys.of(context.settings.verification_log)
    for name in stores:
        job.check()
        try:
            context.stores[name].admit()
            fault = see_head(context.unlimited_stores[name], context.catalogue, keys)
            keep_tombstones(context.unlimited_stores[name], context.catalogue, context.settings.spool_dir)
            hold_missing(context.catalogue, context.unlimited_stores[name])
        except (StorageError, Snooze, BadKeyFile) as error:
            logger.warning("the head of the verification log, or the deletes, are not kept in %s: %s", name, error)
        else:
            if fault:
                logger.error("store %s: %s", name, fault)


def _due(context: JobContext, store: str) -> tuple[int, list[int]]:
    """Return how many copies of a store are due, and how many each page claims of those that the budget allows now."""
    sweep, page, now = context.settings.sweep.verify, context.settings.page, clock.now()
    most_due, period = sweep.batch or page.in_flight * sweep.page, sweep.period_of(store)
    claims = context.catalogue.sweep_claims
    count = claims.count_due(store, period=period, now=now, limit=most_due)
    _see_pace(context, store, count)
    if not count:
        return 0, []
    size = claims.mean_size(store, period=period, now=now, largest=page.large)
    per_page = max(1, min(sweep.page, page.size // max(size, 1)))
    allowed = min(count, _allowed(context, store, count, size))
    return count, [min(per_page, allowed - start) for start in range(0, allowed, per_page)]


def _allowed(context: JobContext, store: str, count: int, size: int) -> int:
    """Return how many of the due copies the pages read until the next run: all of them in a store without a budget."""
    settings, now = context.settings, clock.now()
    budget, sweep, budgets = settings.budgets.get(store), settings.sweep.verify, context.catalogue.budgets
    if budget is None:
        return count
    claims, period = context.catalogue.sweep_claims, sweep.period_of(store)
    late = claims.overdue(store, period=period * LATE, now=now)
    return plan_reads(
        budgets.get(store, now=now), due=count, late=late, oldest=claims.oldest(store),
        copies=budgets.totals(store, now=now)[0], mean=size, period=period, every=sweep.every,
        budget=budget, prices=settings.prices.get(store, Prices()), now=now,
    )  # fmt: skip


def _see_pace(context: JobContext, store: str, count: int) -> None:
    """Open a finding if not all copies of a store can be read within its period, and resolve it if they can."""
    period, now = context.settings.sweep.verify.period_of(store), clock.now()
    told = [pace_of(context.catalogue, store, count, period=period, now=now).warning]
    if (ahead := forecast_of(context.settings, context.catalogue, store, now=now)) is not None:
        told.append(ahead.warning)
    told.append(_too_large(context, store))
    detail = "; ".join(filter(None, told))
    if detail:
        logger.warning("%s", detail)
    context.catalogue.findings.see_store(FindingKind.TOO_SLOW, store, {"detail": detail} if detail else None, now=now)


def _too_large(context: JobContext, store: str) -> str | None:
    """Return that a store has an object that its budget never allows to be read, and the way out; or None."""
    budget, largest = context.settings.budgets.get(store), None
    if budget is not None and (budget.bytes_per_day is not None or budget.cost_per_month is not None):
        largest = context.catalogue.budgets.largest(store)
    if budget is None or largest is None or budget.can_hold(largest[1], context.settings.prices.get(store, Prices())):
        return None
    path, size = largest
    return (
        f"{store}: {path} has {size:,} bytes, more than budgets.{store} allows in a whole day or month: the sweep "
        f"never reads it; raise the budget, or run `zot-artifacts verify {path}`"
    )


def _result(due: dict[str, int], pages: Sequence[PageRequest]) -> SweepVerifyResult:
    sent = {store: sum(page.claim is not None and page.claim.store == store for page in pages) for store in due}
    return SweepVerifyResult(claimed=due, pages=sent)


sweep_verify_task = artifact_task(SWEEP_VERIFY, writes=False)(sweep_verify)
