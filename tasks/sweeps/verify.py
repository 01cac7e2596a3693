"""Sweep verify: send as many pages as there are copies whose verification is due."""

import logging
from collections import Counter
from datetime import datetime
from shlex import quote

from celery import current_app

from worker import clock
from worker.artifacts.overdue_and_unconfigured_findings import see_stores
from worker.artifacts.read_budget import LATE, Backlog, forecast_of, pace_of
from worker.artifacts.read_budget import plan as plan_reads
from worker.artifacts.records_kept_in_stores import keep_records
from worker.catalogue import AHEAD, GRACE, FindingKind
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.jobs.send_sweep_pages import Messages, plan, resume
from worker.jobs.task import artifact_task
from worker.settings.budgets import Budget, Prices
from zot_artifact_client.contract import (
    SWEEP_VERIFY,
    ClaimSelection,
    PageRequest,
    SweepVerifyRequest,
    SweepVerifyResult,
)

logger = logging.getLogger(__name__)
_OPEN = 4
"""The most pages of a store that may be open when the next ones of an even pace are sent."""


def sweep_verify(request: SweepVerifyRequest, job: RunningJob, messages: Messages | None = None) -> SweepVerifyResult:
    """Send pages for the copies of each store that are to be read until the next run; each claims its copies.

    Stores that are paused are left out, and those to which another copy of the catalogue writes.

    Raises:
        UnknownStore: naming the stores there are.
    """
    messages = messages or Outbox(current_app)
    stores = job.unpaused_stores(request.store)
    due = dict.fromkeys(filter(job.is_own, stores), 0)
    if planned := job.catalogue.pages.planned_by(job.id):  # by an attempt whose worker died
        resume(job.id, planned, messages)
        pages = [PageRequest.read(each.request) for each in planned]
    else:
        open_ = job.catalogue.pages.open_by_store(SWEEP_VERIFY.kind)
        pages = []
        for store in due:
            job.check()
            due[store], sizes = _next_pages(job, store, open_[store])
            claims = [ClaimSelection(store=store, most=copies) for copies in sizes]
            pages += [PageRequest(verb="verify", claim=claim) for claim in claims]
        plan(job.catalogue, job.id, pages, messages)
    see_stores(job.settings, job.catalogue, clock.now())  # while the first pages are read
    for store in stores:
        _see_pace(job, store)
    keep_records(job, stores)
    sent = Counter(page.claim.store for page in pages if page.claim is not None)
    return SweepVerifyResult(claimed=due, pages={store: sent[store] for store in due})


def _next_pages(job: RunningJob, store: str, open_: int) -> tuple[int, list[int]]:
    """Return how many copies of a store are due, and how many each page claims that is sent now.

    `open_`: pages of the store that wait or run.
    """
    settings, now = job.settings, clock.now()
    sweep, page = settings.sweep.verify, settings.page
    most = sweep.batch or page.in_flight * sweep.page
    backlog = _backlog(job, store, most, now)
    wanted, urgent = plan_reads(
        backlog, job.catalogue.budgets.get(store, now=now), period=sweep.period_of(store), every=sweep.every, now=now,
        budget=settings.budgets.get(store, Budget()), prices=settings.prices.get(store, Prices()),
    )  # fmt: skip
    wanted = min(wanted, most)
    there = wanted
    if backlog.due < wanted:  # what is due is among what may be read ahead
        there = _count_due(job, store, now, limit=wanted, ahead=AHEAD)
    per_page = max(1, min(sweep.page, page.size // max(backlog.mean, 1)))
    sizes = [min(per_page, there - start) for start in range(0, there, per_page)]
    # A count of what must be read includes what open pages will claim; an even share of the reads does not.
    most_open = len(sizes) if there <= urgent or there < wanted else max(len(sizes), _OPEN)
    return backlog.due, sizes[: max(0, min(most_open, page.in_flight) - open_)]


def _backlog(job: RunningJob, store: str, most: int, now: datetime) -> Backlog:
    """Count what there is to read in a store; of what is due at most `most` copies."""
    sweep, claims, budgets = job.settings.sweep.verify, job.catalogue.sweep_claims, job.catalogue.budgets
    period, first_read = sweep.period_of(store), sweep.first_read_of(store)
    due = _count_due(job, store, now, limit=most)
    usage = budgets.usage(store, now=now)
    mean = claims.mean_size(
        store, period=period, first_read=first_read, now=now, largest=job.settings.page.large, ahead=AHEAD
    )
    needed = budgets.needed(
        store,
        lambda: claims.needed(store, period=period, first_read=first_read, now=now, every=sweep.every),
        age=min(period / 200, max(first_read / 24, period / 1000)),
        now=now,
    )
    return Backlog(
        copies=usage.copies,
        needed=needed,
        due=due,
        retries=claims.count_retries(store, now=now),
        late=claims.overdue(store, period=period * LATE, now=now),
        oldest=claims.oldest(store),
        mean=mean,
    )


def _count_due(job: RunningJob, store: str, now: datetime, *, limit: int, ahead: float = 1) -> int:
    sweep = job.settings.sweep.verify
    period, first_read = sweep.period_of(store), sweep.first_read_of(store)
    return job.catalogue.sweep_claims.count_due(
        store, period=period, first_read=first_read, now=now, limit=limit, ahead=ahead
    )


def _see_pace(job: RunningJob, store: str) -> None:
    """Open a finding if not all copies of a store can be read within its period, and resolve it if they can."""
    period, now = job.settings.sweep.verify.period_of(store), clock.now()
    due = job.catalogue.sweep_claims.overdue(store, period=period * (1 - GRACE), now=now)
    told = [pace_of(job.catalogue, store, due, period=period, now=now).warning]
    if (ahead := forecast_of(job.settings, job.catalogue, store, now=now)) is not None:
        told.append(ahead.warning)
    told.append(_too_large(job, store))
    detail = "; ".join(filter(None, told))
    if detail:
        logger.warning("%s", detail)
    job.catalogue.findings.see_store(FindingKind.TOO_SLOW, store, {"detail": detail} if detail else None, now=now)


def _too_large(job: RunningJob, store: str) -> str | None:
    """Return that a store has an object that its budget never allows to be read, and the way out; or None."""
    budget, prices = job.settings.budgets.get(store, Budget()), job.settings.prices.get(store, Prices())
    if (most := budget.most_of_one(prices)) is None:
        return None
    largest = job.catalogue.budgets.largest(store, above=most)
    if largest is None or budget.can_hold(largest[1], prices):
        return None
    path, size = largest
    return (
        f"{store}: {path} has {size:,} bytes, more than budgets.{store} allows in a whole day or month: the sweep "
        f"never reads it; raise the budget, or run `zot-artifacts verify {quote(path)}`"
    )


sweep_verify_task = artifact_task(SWEEP_VERIFY, writes=False)(sweep_verify)
