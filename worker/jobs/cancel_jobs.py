"""Cancel jobs: waiting ones in this process, running ones at their next chunk."""

import logging
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery
from pydantic import ValidationError

from worker import clock
from worker.catalogue import CatalogueUnavailable, JobRecord
from worker.context import Context
from worker.jobs.interrupt_signal import at_most
from worker.jobs.outbox import Outbox
from worker.jobs.result_backend import fenced_request
from worker.jobs.unacked import correct_times
from worker.limits.shared_redis import redis_of_celery
from worker.limits.snooze import Snooze
from worker.storage.errors import StorageError
from zot_artifact_client.cancellation import CANCEL_REQUESTS, CANCEL_TTL, MAX_CANCEL_REQUESTS, add_requests
from zot_artifact_client.contract import JOB_ID, REPLICATE, SWEEP_RECOVER, TASKS, UPLOAD, JobState
from zot_artifact_client.outgoing_messages import Outgoing

logger = logging.getLogger(__name__)

CleanUp = Callable[[Context, JobRecord], None]

_CALLED = "zot-artifacts:cancelling:called"
"""The Redis key that exists while a recovery was requested and has not begun, so that one request is enough."""
_CALLED_FOR = 30
_PAGE = 1000
_ABORT_SECONDS = 5.0
"""Seconds that a store has to abort an upload: a store that does not answer must hold no process and no other job."""
_WRITERS = {UPLOAD.kind, REPLICATE.kind}


def request_cancel(app: Celery, ids: list[str], start: Callable[[], bool] = lambda: False) -> bool:
    """Request that jobs are cancelled, and start a recovery for the waiting ones; False without Redis for results.

    Args:
        app: the worker's application.
        ids: of the jobs.
        start: cancels the waiting jobs in another way than by a recovery, and returns whether it does.
    """
    client = redis_of_celery(app)
    if client is None:
        return False
    add_requests(client, ids)
    call_recovery(app, client, start)
    return True


def call_recovery(app: Celery, client: Any, start: Callable[[], bool]) -> None:
    """Start a recovery, which cancels the waiting jobs to cancel, unless one was started and has not begun."""
    if client.set(_CALLED, 1, ex=_CALLED_FOR, nx=True) and not start():
        expires = clock.SKEW.total_seconds()  # by the clock of another machine
        app.send_task(SWEEP_RECOVER.name, queue=SWEEP_RECOVER.queue.value, expires=expires, ignore_result=True)


def cancel_waiting_jobs(context: Context, app: Celery, clean_up: CleanUp) -> int:
    """Cancel the waiting jobs that are to be cancelled; return how many.

    The requests are looked up in pages, so that those for unknown ids cost a few round trips. The request for a job
    that cannot be cancelled is kept, and stops no other one. `clean_up` runs the `at_end` of a job's task.
    """
    client = redis_of_celery(app)
    if client is None:
        return 0
    cancelled = 0
    try:
        client.delete(_CALLED)  # removed first, so that a later request starts another recovery
        correct_times(client, CANCEL_REQUESTS)
        # Clients write the times: one whose clock is a day behind must not lose its requests.
        client.zremrangebyscore(CANCEL_REQUESTS, "-inf", clock.now().timestamp() - 2 * CANCEL_TTL)
        client.zremrangebyrank(CANCEL_REQUESTS, 0, -MAX_CANCEL_REQUESTS - 1)
        names = client.zrange(CANCEL_REQUESTS, 0, -1)
        garbage = [name for name in names if not JOB_ID.fullmatch(name.decode(errors="replace"))]
        if garbage:
            logger.error("%d requests to cancel name no job: removed", len(garbage))
            client.zrem(CANCEL_REQUESTS, *garbage)
        ids = [name.decode() for name in names if name not in set(garbage)]
        for first in range(0, len(ids), _PAGE):
            cancelled += _cancel_page(context, app, client, ids[first : first + _PAGE], clean_up)
    except redis.RedisError as error:
        logger.warning("waiting jobs are not cancelled for now: Redis: %s", type(error).__name__)
    return cancelled


def _cancel_page(context: Context, app: Celery, client: Any, ids: list[str], clean_up: CleanUp) -> int:
    states = context.catalogue.ledger.states(ids)
    sent = Outbox(app).find_all([id_ for id_ in ids if states.get(id_) in {None, JobState.REFUSED}])
    ended = [id_ for id_, state in states.items() if state.terminal and id_ not in sent]
    cancelled = 0
    for id_ in ids:
        if id_ in ended or (id_ not in states and id_ not in sent):
            continue
        if client.zscore(CANCEL_REQUESTS, id_) is None:
            continue  # the request was withdrawn meanwhile
        try:
            record = _cancel(context, id_, sent.get(id_))
            if record is not None:
                clean_up(context, record)
                _publish_cancelled(app, record)
        except (CatalogueUnavailable, redis.RedisError):
            raise
        except Exception:
            logger.exception("job %s: not cancelled for now", id_)
            continue
        if record is not None:
            ended.append(id_)
            cancelled += 1
    if ended:
        client.zrem(CANCEL_REQUESTS, *ended)
    return cancelled


def end_writes(context: Context, job: JobRecord) -> None:
    """Abort the multipart uploads of an ended job that no other job will resume.

    Earlier attempts may have begun them, also in other stores. An upload that a store does not abort now is aborted by
    a sweep.
    """
    if job.kind not in _WRITERS:
        return
    bucket, key = job.request["bucket"], job.request["key"]
    for transfer in context.catalogue.transfers.abandoned(f"{bucket}/{key}"):
        try:
            store = context.stores[transfer.store]
            context.admission.check(store.name)
            with at_most(_ABORT_SECONDS):
                store.abort_upload(bucket, key, transfer.token)
        except (StorageError, Snooze, TimeoutError) as error:
            logger.warning("%s: parts of %s stay for now: %s", transfer.store, transfer.path, error)
        else:
            context.catalogue.transfers.forget(transfer)


def cause(id_: str) -> dict[str, Any]:
    """Return the error of a cancelled job, for the ledger."""
    return {"type": "Cancelled", "message": f"job {id_} was cancelled"}


def _cancel(context: Context, id_: str, sent: Outgoing | None) -> JobRecord | None:
    """Cancel a job and return it; None if it has ended, or runs and is cancelled by its own worker."""
    ended = _cancel_new(context, sent) if sent is not None else None
    ended = ended or context.catalogue.job_admin.cancel(id_, cause(id_), clock.now())
    if ended is None:
        return None
    end_writes(context, ended)
    logger.info("job %s was cancelled while it waited", id_)
    return ended


def _cancel_new(context: Context, sent: Outgoing) -> JobRecord | None:
    """Cancel a job that no worker has taken, by the request in its outbox."""
    spec = TASKS.get(sent.name)
    if spec is None:
        return None
    try:
        request = spec.request.read(sent.payload).payload()
    except ValidationError:
        return None  # its message will be rejected
    cancelled = cause(sent.job_id)
    return context.catalogue.job_admin.cancel_new(sent.job_id, spec.kind, request, cancelled, clock.now())


def _publish_cancelled(app: Celery, job: JobRecord) -> None:
    try:
        if app.backend.get_state(job.id) != "REVOKED":  # not twice: a client may wait for the end of a redrive
            app.backend.mark_as_revoked(job.id, cause(job.id)["message"], request=fenced_request(job))
        Outbox(app).taken(job.id)  # after that: `republish_results` knows by it that no end is stored
    except (redis.RedisError, RuntimeError) as error:  # RuntimeError: Celery's own retries are used up
        logger.warning("job %s: its cancellation is not published for now: %s", job.id, type(error).__name__)
