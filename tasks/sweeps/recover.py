"""Recover: send again the open jobs without a heartbeat, so that a killed worker costs a minute and not a day."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import redis
from celery import Celery, Task, shared_task

from tasks.batch import end_batch_items
from tasks.page import split_dead_pages
from worker import clock
from worker.catalogue import CatalogueError, CatalogueUnavailable, JobRecord
from worker.context import Context, current
from worker.counted import counted
from worker.intake.catalogue_of_broker import OtherCatalogue, check_owner_in, note_broker_in, note_file_in
from worker.intake.delayed import make_due
from worker.jobs.cancel_jobs import cancel_waiting_jobs
from worker.jobs.outbox import Outbox, redis_of_broker
from worker.jobs.redis_keys_of_wrong_type import move_wrong_types
from worker.jobs.republish_results import republish_results, uncompared
from worker.jobs.send_sweep_pages import UNSEEN, resume
from worker.jobs.task import MORE_DELAY, TRANSIENT_BROKER_ERRORS, clean_up
from worker.limits.catalogue_outage import note_catalogue
from worker.limits.check_pauses import mirror_queues
from worker.limits.shared_redis import redis_of_celery
from worker.limits.snooze import LONGEST_PAUSE
from worker.metric_counters import RESENT
from worker.settings import Settings
from zot_artifact_client.contract import KINDS, SWEEP_RECOVER, SWEEP_WEBHOOKS, SweepRecoverResult

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
_WEBHOOKS_KEPT = timedelta(days=30)
_WEBHOOK_RUNS_KEPT = timedelta(days=1)
"""How long runs of the sweep of webhooks stay in the ledger, which gets one each few seconds."""


def recover(context: Context, app: Celery) -> SweepRecoverResult:
    """Send again the jobs whose message Redis lost, and the jobs whose worker died.

    Waiting jobs that are to be cancelled are cancelled first. A step that fails is logged, and stops no other one.

    Raises:
        CatalogueUnavailable: the catalogue cannot be read or written. Nothing more is sent: no worker could record that
            it has taken a job, and each turn would send one more message for it.
        OtherCatalogue: the broker belongs to another one. Nothing is sent to it, and none of its jobs is sent again.
    """
    sweep, ledger = context.settings.sweep.recover, context.catalogue.ledger
    _step("keys in Redis", lambda: move_wrong_types(app))
    _step("owner of the broker", lambda: _check_owner(context, app))
    _step("pauses", lambda: _mirror_pauses(context, app))
    ledger.check_writable()
    began = clock.now()  # a job to cancel whose lease ends after that is cancelled by the next run, and not sent again
    cancelled = _step("cancellations", lambda: cancel_waiting_jobs(context, app, clean_up))
    _step("batches", lambda: end_batch_items(context, app))
    _step("pages", context.catalogue.pages.remove_ended)
    _step("dead pages", lambda: split_dead_pages(context))
    _step("result backend", lambda: republish_results(context, app, clean_up))
    kept = partial(uncompared, context, app)
    messages = _step("outbox", lambda: Outbox(app).resend(ledger.known, sweep.after, kept=kept))
    messages += _step("pages of sweeps", lambda: _resend_pages(context, app))
    _step("snoozed jobs", lambda: _start_snoozed(context, app))
    jobs = _step("overdue jobs", lambda: _resend_overdue(context, app, began))
    RESENT.add("message lost", count=messages)
    RESENT.add("job silent", count=jobs)
    _step("removed webhooks", lambda: _see_removed_webhooks(context))
    _step("old approvals and webhooks", lambda: _prune_approvals_and_webhooks(context))
    _step("old jobs and findings", lambda: _prune_history(context))
    return SweepRecoverResult(messages=messages, jobs=jobs, cancelled=cancelled)


def _step(name: str, work: Callable[[], int | None]) -> int:
    """Do one step, and return its count; 0 if it failed, which is logged."""
    try:
        return work() or 0
    except (CatalogueUnavailable, OtherCatalogue):
        raise
    except TRANSIENT_BROKER_ERRORS as error:  # it restarts, and the next run does it
        logger.warning("recover: the step %s waits for the broker: %s", name, type(error).__name__)
        return 0
    except Exception:
        logger.exception("recover: the step %s failed; the others continue", name)
        return 0


def _check_owner(context: Context, app: Celery) -> None:
    """Record again which catalogue the broker belongs to, which Redis may have lost, and that both are used."""
    with redis_of_broker(app) as client:
        if client is not None:
            check_owner_in(client, context.settings, context.catalogue.identity)
            note_broker_in(client, app.conf.broker_url, context.catalogue.brokers)
            note_file_in(client, context.catalogue)


def _mirror_pauses(context: Context, app: Celery) -> None:
    """Copy the pauses of queues to Redis again, which may have lost them."""
    client = redis_of_celery(app)
    if client is None:
        return
    try:
        mirror_queues(client, context.catalogue.pauses.all())
    except redis.RedisError as error:
        logger.warning("paused queues are not copied to Redis for now: %s", type(error).__name__)


def _resend_pages(context: Context, app: Celery) -> int:
    """Send the pages that sweeps have planned and whose messages were lost with Redis, or never sent.

    Until they are done they count as open pages, so that later sweeps plan fewer. Where the broker cannot tell which
    messages it has, they get a due time, as those that are planned with it.
    """
    pages, messages, now = context.catalogue.pages, Outbox(app), clock.now()
    waiting = pages.sweeps_with_waiting_pages(before=now - context.settings.sweep.recover.after)
    if waiting and messages.lost([]) is None:
        for sweep in waiting:
            pages.set_due(sweep, now + UNSEEN)
        return 0
    return sum(resume(sweep, pages.planned_by(sweep), messages) for sweep in waiting)


def _start_snoozed(context: Context, app: Celery) -> None:
    """Let the jobs start that wait for a store whose circuit breaker has closed, by `sweep.probe` before its time.

    Each starts by its own message. With a broker that is no Redis, workers keep these in memory until they are due.
    """
    for store in (each for each in context.settings.stores if context.admission.breaker(each).closed_lately()):
        jobs = context.catalogue.ledger.snoozed_for(store)
        with redis_of_broker(app) as client:
            if jobs and client is not None and (made := make_due(client, jobs)):
                logger.info("store %s takes jobs again: %s that waited for it are due", store, counted(made, "job"))


def _resend_overdue(context: Context, app: Celery, now: datetime) -> int:
    settings = context.settings
    overdue = context.catalogue.ledger.overdue(
        now=now,
        again=settings.sweep.recover.again,
        lease=settings.jobs.lease,
        limit=_AT_ONCE,
        delay=_longest_delay(settings),
        unseen=UNSEEN,
    )
    sent = 0
    for job in overdue:
        sent += _step(f"job {job.id}", partial(_send, app, job))
    return sent


def _longest_delay(settings: Settings) -> timedelta:
    """Return the longest time that a started job waits; what is due later was written by a clock ahead."""
    return max(settings.longest_wait + MORE_DELAY, LONGEST_PAUSE) + 2 * settings.jobs.lease


def _send(app: Celery, job: JobRecord) -> int:
    spec = KINDS[job.kind]
    logger.warning("job %s: no heartbeat since it was due at %s: sent again", job.id, job.due_at)
    queue = job.queue or spec.queue.value
    options = {"ignore_result": True} if job.id.startswith(f"{job.parent}.") else {}  # a batch reads the ledger
    app.send_task(spec.name, kwargs=dict(job.request), task_id=job.id, parent_id=job.parent, queue=queue, **options)
    return 1


def _see_removed_webhooks(context: Context) -> None:
    """Report ends that wait for a receiver which was removed: the sweep that delivers sends to configured ones only.

    That sweep does not run at all where the settings have no webhook.
    """
    settings = context.settings
    seen = context.catalogue.job_webhooks.see_removed(
        settings.webhooks, now=clock.now(), give_up=settings.job_webhooks.give_up
    )
    for name, count in seen.items():
        logger.error(
            "webhook %s: the settings do not have it, and the ends of %d more jobs wait for it; add it again, or "
            "`zot-artifacts webhooks forget %s`", name, count, name,
        )  # fmt: skip


def _prune_approvals_and_webhooks(context: Context) -> None:
    now = clock.earliest()  # the server of the catalogue may be ahead, or this machine
    context.catalogue.delete_approvals.close_ended(now=clock.now())
    context.catalogue.delete_approvals.prune(before=now - context.settings.delete.approval_window)
    # The sweep that delivers them does not run where the settings have no webhook, and requests may still name some.
    context.catalogue.job_webhooks.prune(before=now - _WEBHOOKS_KEPT)
    context.catalogue.ledger.prune_sweeps(SWEEP_WEBHOOKS.kind, before=now - _WEBHOOK_RUNS_KEPT, limit=_AT_ONCE)


def _prune_history(context: Context) -> None:
    """Remove what is older than the settings say; a clock that is ahead for an hour removes nothing early."""
    keep, retention = context.settings.jobs.keep, context.settings.findings.retention
    context.catalogue.findings.prune(before=_certain(context, "clock-findings", retention) - retention)
    if keep is not None:
        context.catalogue.ledger.prune(before=_certain(context, "clock-jobs", keep) - keep, limit=_AT_ONCE)


def _certain(context: Context, kept: str, hold: timedelta) -> datetime:
    return clock.not_ahead(context.settings.run_dir / kept, hold)


@shared_task(name=SWEEP_RECOVER.name, bind=True, ignore_result=True)
def recover_task(task: Task) -> dict[str, int]:
    """Recover, every few seconds. It writes no row in the ledger: there would soon be more of these than of jobs."""
    try:
        done = recover(current(), task.app)
    except (CatalogueError, OtherCatalogue) as error:
        note_catalogue(task.app, task.request.hostname, error=error if isinstance(error, CatalogueError) else None)
        logger.warning("jobs are not recovered for now: %s", error)
        return {}
    note_catalogue(task.app, task.request.hostname, error=None)
    return done.model_dump(mode="json")
