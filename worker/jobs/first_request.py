"""Compare a request with the job that the ledger has under its id: the first request with an id is the job."""

import logging
from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis import RedisError

from worker.catalogue import JobRecord, Ledger
from worker.jobs.outbox import Outbox
from worker.jobs.result_backend import publish_end
from zot_artifact_client.contract import JobState, is_batch_job
from zot_artifact_client.idempotency_conflicts import idempotency_mismatch

logger = logging.getLogger(__name__)

_WHERE_STAGED = ("source", "staged")


def first_request(ledger: Ledger, job_id: str, kind: str, request: Mapping[str, Any]) -> JobRecord | None:
    """Return the job that the ledger has under an id, None if it is free for this request.

    Raises:
        IdempotencyMismatch: it is the job of another request.
    """
    record = ledger.get(job_id)
    if record is None or record.state == JobState.REFUSED:  # a rejected message leaves its id to a valid request
        return None
    if record.kind != kind or not is_same(record.request, request):
        raise idempotency_mismatch([job_id])
    return record


def is_same(first: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Return whether two requests are the same; of staged bytes, whose digest they name, the place does not count."""
    if first.get("staged"):
        first, request = (_without_place(each) for each in (first, request))
    return first == request


def _without_place(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in _WHERE_STAGED}


def tell_first_request(app: Celery, first: JobRecord, queue: str | None) -> None:
    """Tell the client of another request with this id which job the id names, where Redis does not know it any more.

    The digest of that job's request replaces the one that the client has recorded, and the end of the job is stored
    again, with that digest. `queue`: the one that the other request came from.
    """
    outbox, ended = Outbox(app), JobState(first.state).terminal
    if not is_batch_job(first.id, first.parent):  # no client has the id of one
        try:
            outbox.keep_digest(first)
            if ended:
                publish_end(app, first)
        except (RedisError, OperationalError, OSError) as error:
            logger.warning("job %s: the client of another request is not told: %s", first.id, type(error).__name__)
            return
    if ended:  # an open job leaves the outbox with its own end
        outbox.taken(first.id, queue)
