"""Publish again the ends of jobs that are in the ledger and not in the result backend: a worker was killed."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import redis
from celery import Celery
from celery.states import READY_STATES

from worker import clock
from worker.catalogue import JobRecord
from worker.context import Context
from worker.counted import counted
from worker.jobs.outbox import Outbox
from worker.jobs.result_backend import publish_end, stored_states
from worker.limits.shared_redis import redis_of_celery
from zot_artifact_client.contract import JobState, is_batch_job

logger = logging.getLogger(__name__)

CURSOR = "zot-artifacts:republished-until"
"""The key in the result backend of the time up to which the ends of jobs were compared.

If it does not exist, Redis is new or has lost its data.
"""
_LOST = "zot-artifacts:republishing-all"
"""The key in the result backend that exists from the first to the last run after such a loss."""
_PAGE = 500
_PAGES = 20
"""Most pages of one run. With `sweep.recover` every 15 s, they are enough for 600 jobs that end in each second."""
_OVERLAP = timedelta(minutes=2)
"""The time that a worker has to store the end of a job once the ledger has it."""
_LONGEST = timedelta(days=1)


def republish_results(context: Context, app: Celery, clean_up: Callable[[Context, JobRecord], None]) -> int:
    """Compare the ledger's latest ends with the result backend, and store the ends that are missing there.

    The end of a job is missing if the backend has another state, or if it has none and the outbox still has the job:
    storing the first state removes the job from the outbox, and `uncompared` keeps it there until then. Any other job
    without a state is one whose result is not stored. Jobs of a batch are not compared, because the batch reads the
    ledger. `clean_up` runs the `at_end` of a job's task first, because Celery may take a stored end for the end of the
    delivery.

    If the result backend has lost its data, it gets the ends of all jobs whose results it would still keep, because
    clients wait for them. Jobs that are not in the outbox are not cleaned up again: nearly all of them were cleaned up
    when they ended, and the cleanup sweep removes what the others left.
    """
    client = redis_of_celery(app)
    if client is None:
        return 0
    now = clock.now()
    lost = not client.exists(CURSOR) or bool(client.exists(_LOST))
    since = begun = _since(client, now)
    if lost:
        since = begun = max(since, now - context.settings.jobs.result_expires)
        client.set(_LOST, 1)
    published, after = 0, ""
    for number in count(1):
        ended = context.catalogue.ledger.ended_since(since, after=after, limit=_PAGE)
        unstored, unknown = _unstored(app, client, ended)
        for job in unstored:
            if job.state != JobState.DEAD:  # a dead job needs its source when it is redriven
                clean_up(context, job)
            logger.warning("job %s: its end, %s, was not in the result backend: published again", job.id, job.state)
            publish_end(app, job)
            published += 1
        for job in unknown if lost else ():
            publish_end(app, job)
            published += 1
        if len(ended) < _PAGE:
            since = max(since, now - _OVERLAP)
            client.delete(_LOST)
            break
        since, after = ended[-1].finished_at or since, ended[-1].id
        if number >= _PAGES and since > begun:  # a restored catalogue may have ended any number at one moment
            break
    if lost and published:
        logger.warning(
            "the result backend is new or has lost its data: published the ends of %s in it", counted(published, "job")
        )
    client.set(CURSOR, f"{since.timestamp():.6f}")
    return published


def _unstored(
    app: Celery, client: "redis.Redis", ended: Sequence[JobRecord]
) -> tuple[list[JobRecord], list[JobRecord]]:
    """Return the jobs whose ends are missing, and those whose ends are missing if the backend has lost its data."""
    told = [job for job in ended if not is_batch_job(job.id, job.parent)]
    keys = [app.backend.get_key_for_task(job.id) for job in told]
    states = dict(zip((job.id for job in told), stored_states(client, keys), strict=True))
    absent = [id_ for id_, state in states.items() if state is None]
    lost = Outbox(app).lost(absent) if absent else None
    waiting = set() if lost is None else set(absent) - lost
    # If a refused job is in the outbox, the entry is that of a corrected request with the same id.
    unstored = [
        job
        for job in told
        if job.state != JobState.REFUSED and (job.id in waiting or states[job.id] not in {None, *READY_STATES})
    ]
    return unstored, [job for job in told if states[job.id] is None and job.id not in waiting]


def uncompared(context: Context, app: Celery, ids: list[str]) -> set[str]:
    """Return which of these jobs must stay in the outbox, so that `republish_results` finds a missing end.

    These are open jobs, which may not have stored a state yet, and jobs whose ends are not compared yet.
    """
    client = redis_of_celery(app)
    if not ids or client is None:
        return set()
    return context.catalogue.ledger.open_or_ended_since(ids, _since(client, clock.now()))


def _since(client: Any, now: datetime) -> datetime:
    """Return the time from which on the ends of jobs have to be compared."""
    try:
        kept = datetime.fromtimestamp(float(client.get(CURSOR) or 0), UTC)
    except (ValueError, OverflowError, OSError):
        return now - _LONGEST
    return max(min(kept, now - _OVERLAP), now - _LONGEST)  # a wrong clock may have written a time in the future
