"""End cancelled jobs: waiting ones here, running ones at their next chunk."""

import logging
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery
from pydantic import ValidationError

from worker import clock
from worker.catalogue import JobRecord
from worker.context import Context
from worker.jobs.outbox import Outbox
from worker.limits.snooze import Snooze
from worker.storage.errors import StorageError
from zot_artifact_client.cancellation import CANCEL_REQUESTS, CANCEL_TTL, add_requests
from zot_artifact_client.contract import REPLICATE, SWEEP_RECOVER, TASKS, UPLOAD, JobState

logger = logging.getLogger(__name__)

CleanUp = Callable[[Context, JobRecord], None]

_CALLED = "zot-artifacts:cancelling:called"
"""The Redis key that is there while `recover` has been called and has not looked yet, so that one call is enough."""
_CALLED_FOR = 30
_AT_ONCE = 10_000
_WRITERS = {UPLOAD.kind, REPLICATE.kind}


def request_cancel(app: Celery, ids: list[str]) -> bool:
    """Ask for the end of jobs, and have those that wait looked after now. False where no Redis keeps the results."""
    client = _redis(app)
    if client is None:
        return False
    add_requests(client, ids)
    if client.set(_CALLED, 1, ex=_CALLED_FOR, nx=True):
        app.send_task(SWEEP_RECOVER.name, queue=SWEEP_RECOVER.queue.value, expires=_CALLED_FOR, ignore_result=True)
    return True


def cancel_waiting_jobs(context: Context, app: Celery, clean_up: CleanUp) -> int:
    """End all cancelled jobs that no worker is running; return how many.

    `clean_up` does for a job's request what its task does at its end.
    """
    client = _redis(app)
    if client is None:
        return 0
    try:
        client.delete(_CALLED)  # first: a later request starts another run
        client.zremrangebyscore(CANCEL_REQUESTS, "-inf", clock.now().timestamp() - CANCEL_TTL)
        ids = [id_.decode() for id_ in client.zrange(CANCEL_REQUESTS, 0, _AT_ONCE - 1)]
        ended = 0
        for id_ in ids:
            if client.zscore(CANCEL_REQUESTS, id_) is None:
                continue  # the cancellation was withdrawn since
            record = _end(context, app, id_)
            if record is not None:
                clean_up(context, record)
                _tell(app, record)
                ended += 1
            if record is not None or _has_ended(context, id_):
                client.zrem(CANCEL_REQUESTS, id_)
    except redis.RedisError as error:
        logger.warning("cancelled jobs are not looked after for now: Redis: %s", type(error).__name__)
        return 0
    return ended


def end_writes(context: Context, job: JobRecord) -> None:
    """End the writes in parts that an ended job has left and no other will go on with.

    Earlier attempts may have begun them, also to other stores. What a store keeps back now, a sweep ends later.
    """
    if job.kind not in _WRITERS:
        return
    bucket, key = job.request["bucket"], job.request["key"]
    for transfer in context.catalogue.transfers.abandoned(f"{bucket}/{key}"):
        try:
            store = context.stores[transfer.store]
            context.admission.check(store.name)
            store.abort_upload(bucket, key, transfer.token)
        except (StorageError, Snooze) as error:
            logger.warning("%s: parts of %s stay for now: %s", transfer.store, transfer.path, error)
        else:
            context.catalogue.transfers.forget(transfer)


def cause(id_: str) -> dict[str, Any]:
    """Return what the ledger says of a job that was cancelled."""
    return {"type": "Cancelled", "message": f"job {id_} was cancelled"}


def _end(context: Context, app: Celery, id_: str) -> JobRecord | None:
    """End a job and return it; None if it has ended, or runs and finds out by itself, or is not known yet."""
    ended = _end_new(context, app, id_) or context.catalogue.job_admin.cancel(id_, cause(id_), clock.now())
    if ended is None:
        return None
    end_writes(context, ended)
    logger.info("job %s was cancelled while it waited", id_)
    return ended


def _has_ended(context: Context, id_: str) -> bool:
    found = context.catalogue.ledger.get(id_)
    return found is not None and JobState(found.state).terminal


def _end_new(context: Context, app: Celery, id_: str) -> JobRecord | None:
    """End a job that no worker has taken over, if its sender has left its request beside its message."""
    sent = Outbox(app).find(id_)
    spec = TASKS.get(sent.name) if sent is not None else None
    if sent is None or spec is None:
        return None
    try:
        request = spec.request.read(sent.payload).payload()
    except ValidationError:
        return None  # it will be refused
    return context.catalogue.job_admin.cancel_new(id_, spec.kind, request, cause(id_), clock.now())


def _tell(app: Celery, job: JobRecord) -> None:
    Outbox(app).taken(job.id)
    try:
        if app.backend.get_state(job.id) != "REVOKED":  # once: a second word might reach who waits for a new begin
            app.backend.mark_as_revoked(job.id, cause(job.id)["message"])
    except (redis.RedisError, RuntimeError) as error:  # RuntimeError: Celery's own retries are used up
        logger.warning("job %s: that it was cancelled cannot be shown: %s", job.id, type(error).__name__)


def _redis(app: Celery) -> Any:
    client = getattr(app.backend, "client", None)
    return client if isinstance(client, redis.Redis) else None
