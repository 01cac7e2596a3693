"""Record a rejected message in the ledger and in the result backend."""

import logging

from celery import Task, shared_task

from worker import clock
from worker.catalogue import CatalogueUnavailable
from worker.context import Context, current
from worker.intake.message_filter import RECORD_TASK
from worker.jobs.outbox import Outbox
from zot_artifact_client.contract import JobError, JobState
from zot_artifact_client.errors import JobFailed
from zot_artifact_client.text import bounded

logger = logging.getLogger(__name__)

_WAIT = 5.0
"""Seconds before the ledger is tried again."""


def record(context: Context, job: str, task: str, error: JobError) -> bool:
    """Record a job as refused, and return whether it is. A job that the ledger knows already is not changed."""
    jobs = context.catalogue.ledger
    jobs.reject(job, task, {}, error.model_dump(), clock.now())
    known = jobs.get(job)
    return known is not None and known.state == JobState.REFUSED


def _record(self: Task, job: str, task: str, type_: str, message: str) -> None:
    type_, message = bounded(type_, 64), bounded(message, 1000)
    try:
        if Outbox(self.app).find(job) is not None:
            logger.error("job %s: a rejected message has the id of a job that waits; the job is not changed", job)
            return
        refused = record(current(), job, task, JobError(type=type_, message=message))
    except CatalogueUnavailable as error:
        raise self.retry(exc=error, countdown=_WAIT) from error
    if refused:
        self.backend.mark_as_failure(job, JobFailed(message, type_, JobState.REFUSED.value, 0))


record_rejected_task = shared_task(name=RECORD_TASK, bind=True, max_retries=None, ignore_result=True)(_record)
