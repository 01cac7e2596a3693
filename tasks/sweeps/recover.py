"""Recover: send again the open jobs without a heartbeat, so that a killed worker costs a minute and not a day."""

import logging
from datetime import timedelta

import redis
from celery import Celery, Task, shared_task

from tasks.batch import UNSEEN, end_batch_items
from worker import clock
from worker.catalogue import CatalogueUnavailable, JobRecord
from worker.context import Context, current
from worker.jobs.cancellation import cancel_waiting_jobs
from worker.jobs.outbox import Outbox
from worker.jobs.task import clean_up
from worker.limits.pauses import mirror_queues
from worker.settings import Settings
from zot_artifact_client.contract import SWEEP_RECOVER, TASKS, SweepRecoverResult

logger = logging.getLogger(__name__)

_AT_ONCE = 1000
_SPECS = {spec.kind: spec for spec in TASKS.values()}


def recover(context: Context, app: Celery) -> SweepRecoverResult:
    """Send again the jobs whose message Redis lost, and the jobs whose worker died.

    Waiting jobs that are to be cancelled are cancelled first.
    """
    sweep, ledger, lease = context.settings.sweep.recover, context.catalogue.ledger, context.settings.jobs.lease
    _mirror_pauses(context, app)
    cancelled = cancel_waiting_jobs(context, app, clean_up)
    end_batch_items(context, app)
    messages = Outbox(app).resend(ledger.known, sweep.after)
    overdue = ledger.overdue(
        now=clock.now(), again=sweep.again, lease=lease, limit=_AT_ONCE, delay=_longest_delay(context.settings)
    )
    for job in overdue:
        _send(app, job)
    if context.settings.jobs.keep is not None:
        ledger.prune(before=clock.now() - context.settings.jobs.keep, limit=_AT_ONCE)
    return SweepRecoverResult(messages=messages, jobs=len(overdue), cancelled=cancelled)


def _longest_delay(settings: Settings) -> timedelta:
    """Return the longest time that a waiting job can be given; what is due later was written by a clock ahead."""
    longest = max(settings.retry.backoff_max, settings.breaker.open_max, UNSEEN, settings.sweep.recover.again)
    return longest + timedelta(hours=1) + 2 * settings.jobs.lease


def _mirror_pauses(context: Context, app: Celery) -> None:
    """Copy the pauses of queues to Redis again, which may have lost them."""
    client = getattr(app.backend, "client", None)
    if not isinstance(client, redis.Redis):
        return
    try:
        mirror_queues(client, context.catalogue.pauses.all())
    except redis.RedisError as error:
        logger.warning("paused queues are not copied to Redis for now: %s", type(error).__name__)


def _send(app: Celery, job: JobRecord) -> None:
    spec = _SPECS[job.kind]
    logger.warning("job %s: no heartbeat since it was due at %s: sent again", job.id, job.due_at)
    queue = job.queue or spec.queue.value
    options = {"ignore_result": True} if job.id.startswith(f"{job.parent}.") else {}  # a batch reads the ledger
    app.send_task(spec.name, kwargs=dict(job.request), task_id=job.id, parent_id=job.parent, queue=queue, **options)


@shared_task(name=SWEEP_RECOVER.name, bind=True, ignore_result=True)
def recover_task(task: Task) -> dict[str, int]:
    """Recover, every few seconds. It writes no row in the ledger: there would soon be more of these than of jobs."""
    try:
        return recover(current(), task.app).model_dump(mode="json")
    except CatalogueUnavailable as error:
        logger.warning("jobs are not recovered for now: %s", error)
        return {}
