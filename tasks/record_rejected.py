"""Record a rejected message in the ledger and in the result backend."""

import logging

from celery import Task, shared_task

from worker import clock
from worker.catalogue import CatalogueError, CatalogueUnavailable, JobRecord
from worker.context import Context, current
from worker.intake.message_filter import RECORD_TASK, rules_for, send_record
from worker.intake.message_rules import check_message
from worker.jobs.outbox import Outbox
from worker.jobs.request_digests import RequestDigests
from worker.jobs.result_backend import fenced_request
from worker.jobs.task import sent_again
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import QUERY_ID, JobError, JobState
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.text_escaping import bounded

logger = logging.getLogger(__name__)

_WAIT = 5.0
"""Seconds before it is tried again."""


def record(context: Context, job: str, task: str, error: JobError) -> JobRecord | None:
    """Record a job as refused and return it; None if the ledger has a job with this id, which is not changed."""
    jobs = context.catalogue.ledger
    jobs.reject(job, task, {}, error.model_dump(), clock.now())
    known = jobs.get(job)
    return known if known is not None and known.state == JobState.REFUSED else None


def _record(self: Task, job: str, task: str, type_: str, message: str) -> None:
    """Record a job as refused, unless a valid message of a job with this id waits somewhere.

    The sender of a rejected message may have copied the id. A client leaves its own message in the outbox; that of
    another program may wait in any queue, so this message passes them all first.
    """
    type_, message = bounded(type_, 64), bounded(message, 1000)
    if QUERY_ID.fullmatch(job):  # a query has no row in the ledger
        self.backend.mark_as_failure(job, JobFailed(message, type_, JobState.REFUSED.value, 0))
        return
    try:
        context = current()
    except CatalogueError as error:  # it is away, newer than this worker, or damaged
        raise sent_again(self, _WAIT, error, has_due=False) from error
    try:
        outbox = Outbox(self.app)
        sent = outbox.message(job)
        own = sent is not None and check_message(sent, rules_for(self.app), clock.now()) is None
        if own or (sent is None and outbox.has_eta(job)):
            logger.error("job %s: a rejected message has the id of a job that waits; the job is not changed", job)
            return
        if sent is None and context.catalogue.ledger.get(job) is None:
            queue = outbox.queue_to_pass(job, (self.request.delivery_info or {}).get("routing_key"))
            if queue is not None:
                send_record(self.app, job, task, error=type_, message=message, queue=queue)
                return
        refused = record(context, job, task, JobError(type=type_, message=message))
        if refused is not None and outbox.message(job) == sent:  # another one, sent meanwhile, may be valid
            RequestDigests(self.app).free(job)  # before its client knows the end, and corrects the request
            failed = JobFailed(message, type_, JobState.REFUSED.value, 0)
            self.backend.mark_as_failure(job, failed, request=fenced_request(refused))
            outbox.taken(job)
    except (CatalogueUnavailable, *BROKER_ERRORS) as error:
        raise sent_again(self, _WAIT, error, has_due=False) from error


record_rejected_task = shared_task(name=RECORD_TASK, bind=True, max_retries=None, ignore_result=True)(_record)
