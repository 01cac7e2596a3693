"""Page: do one verb to many objects in one job, which is the part of a batch or of a sweep that is done at once."""

import logging
from collections.abc import Callable, Mapping

from celery import current_app

from tasks.pages.adopt import adopt_page, send_adoptions
from tasks.pages.replicate_and_delete import send_replications, write_page
from tasks.pages.upload import upload_page
from tasks.pages.verify import send_verifications, verify_page
from worker import clock
from worker.artifacts.verification_log.kept_head import WrittenLog
from worker.artifacts.wait_for_delete_approval import check_page
from worker.catalogue import Catalogue, CatalogueError, Page
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.snooze import seconds_to_pause
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    PAGE,
    REPLICATE,
    UPLOAD,
    VERIFY,
    PageFailure,
    PageRequest,
    PageResult,
)
from zot_artifact_client.tracing import trace_headers

logger = logging.getLogger(__name__)
_DO: Mapping[str, Callable[[PageRequest, RunningJob], Page]] = {
    UPLOAD.kind: upload_page,
    ADOPT.kind: adopt_page,
    VERIFY.kind: verify_page,
    REPLICATE.kind: write_page,
    DELETE.kind: write_page,
}
"""By verb, what a page does."""
_SEND_UNDONE: Mapping[str, Callable[[Page, PageRequest, Catalogue], int]] = {
    ADOPT.kind: send_adoptions,
    VERIFY.kind: send_verifications,
    REPLICATE.kind: send_replications,
}
"""By verb of the pages of sweeps, what sends a job of its own for each object that a page has left undone."""
_DEAD_AT_ONCE = 20
"""Dead pages that one run of the recover sweep splits at most."""


def page(request: PageRequest, job: RunningJob) -> PageResult:
    """Do the verb to all objects of the page that have no outcome yet, and return all outcomes.

    An object at which the verb fails leaves the page, as a job of its own: no page waits for its worst object.
    Where a store refuses all that it is asked, no object leaves: the page is snoozed until an operator has acted.

    Raises:
        BadKeyList, SourceRefused, NotFound: the file of the page was changed, or cannot be opened.
        UnknownStore: naming the stores there are.
        NotApproved: it deletes, and no batch has planned it.
        Snooze: a store takes no job now; the outcomes so far are recorded.
    """
    job.stores.snooze_refused(seconds_to_pause(job.snoozed_since or clock.now()))
    check_page(request, job)
    done = _DO[request.verb](request, job)
    if request.verb in {VERIFY.kind, ADOPT.kind}:
        job.after_end.append(WrittenLog(job.settings.run_dir, job.catalogue).note_later())
    return _result(request, done)


def _result(request: PageRequest, done: Page) -> PageResult:
    failures = [
        PageFailure(bucket=bucket, key=key, outcome=each["outcome"], message=each["message"])
        for each in done.failures
        for bucket, _, key in [each["path"].partition("/")]
    ]
    return PageResult(
        verb=request.verb,
        objects=done.objects,
        bytes=done.bytes,
        outcomes=dict(done.outcomes),
        failed=len(failures),
        failures=tuple(failures),
        left=tuple(done.left),
        not_kept={store: tuple(names) for store, names in (done.not_kept or {}).items()},
    )


def split_dead_pages(context: Context) -> int:
    """Send jobs of their own for what dead pages of sweeps have left undone, and return how many.

    One of the objects may be what ended their workers; it ends no other job then.
    """
    sent, catalogue = 0, context.catalogue
    for found, payload in catalogue.pages.dead_of_sweeps(limit=_DEAD_AT_ONCE):
        request = PageRequest.read(payload)
        assert request.claim is not None
        sent += _SEND_UNDONE[request.verb](found, request, catalogue)
        catalogue.pages.remove(found.job)
    return sent


def _at_end(_request: PageRequest, context: Context, job: str) -> None:
    """Have the batch of a page continue at once when all of its jobs have ended, whenever its next step is due."""
    try:
        if (batch := context.catalogue.batches.hasten(job, clock.now())) is None:
            return
        queue = batch.queue or BATCH.queue.value
        current_app.send_task(
            BATCH.name, kwargs=dict(batch.request), task_id=batch.id, parent_id=batch.parent, queue=queue,
            headers=trace_headers(),
        )  # fmt: skip
    except (CatalogueError, *BROKER_ERRORS) as error:
        logger.warning("job %s: its batch continues later: %s", job, error)


page_task = artifact_task(PAGE, writes=False, at_end=_at_end)(page)
