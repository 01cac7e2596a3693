"""Page: do one verb to many objects in one job, which is the part of a batch or of a sweep that is done at once."""

from collections.abc import Sequence
from uuid import NAMESPACE_OID, uuid5

from worker import clock
from worker.artifacts.page_verify import VerifyPage
from worker.catalogue import Group, Page, PageCopy, PageOutcome
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task, send_child
from zot_artifact_client.contract import (
    PAGE,
    VERIFY,
    PageFailure,
    PageRequest,
    PageResult,
    Queue,
    VerifyRequest,
)

FAILURES = 100
"""Failures that the result of a page names."""


def page(request: PageRequest, context: JobContext, job: RunningJob) -> PageResult:
    """Do the verb to all objects of the page that have no outcome yet, and return what became of all of them.

    Raises:
        UnknownStore: naming the stores there are.
        Snooze: a store takes no job now; the outcomes so far are recorded.
    """
    assert request.claim is not None
    return _result(request, _verify_claimed(request.claim.store, context, job))


def _verify_claimed(name: str, context: JobContext, job: RunningJob) -> Page:
    """Claim copies of a store that are due, unless an earlier attempt has claimed them, and verify them."""
    store, pages = context.stores[name], context.catalogue.pages
    store.admit()  # what is claimed and not read keeps other pages away from it
    found = pages.get(job.id)
    if found is None:
        sweep, now = context.settings.sweep.verify, clock.now()
        found = pages.claim_due(
            job.id, name, period=sweep.period_of(name), now=now, until=now + sweep.claim,
            limit=context.settings.page.objects,
        )  # fmt: skip
    copies = pages.claimed_copies(found)
    small, large, released = _fitting(copies, context)
    if released:
        found = pages.release(found, [copy.id for copy in released])
    if large:
        found = _leave(found, large, context, job)
    job.start(sum(copy.digest.size for copy in small), f"verifying {len(small)} copies in {name}")
    return VerifyPage(context, job, found, name).run(small)


def _fitting(copies: Sequence[PageCopy], context: JobContext) -> tuple[list[PageCopy], list[PageCopy], list[PageCopy]]:
    """Return the copies that the page reads, those that are too large for any page, and those that are too many."""
    small: list[PageCopy] = []
    large: list[PageCopy] = []
    released: list[PageCopy] = []
    most, total = context.settings.page, 0
    for copy in copies:
        if copy.digest.size > most.large:
            large.append(copy)
        elif small and total + copy.digest.size > most.size:
            released.append(copy)
        else:
            small.append(copy)
            total += copy.digest.size
    return small, large, released


def _leave(page: Page, copies: Sequence[PageCopy], context: JobContext, job: RunningJob) -> Page:
    """Send a job for each of these copies, which stay claimed; sending again is idempotent."""
    for copy in copies:
        wanted = VerifyRequest(bucket=copy.bucket, key=copy.key, stores=(copy.store,), version=copy.version)
        id_ = uuid5(NAMESPACE_OID, f"verify {copy.id} {page.claimed_until}")
        send_child(VERIFY, wanted, id_=str(id_), parent=job.id, queue=Queue.SWEEP)
    left = [PageOutcome(copy.id, f"{copy.bucket}/{copy.key}", copy.digest.size, "left", left=True) for copy in copies]
    return context.catalogue.pages.record(page, Group(left), now=clock.now())


def _result(request: PageRequest, page: Page) -> PageResult:
    failures = [
        PageFailure(
            bucket=each["path"].partition("/")[0], key=each["path"].partition("/")[2], outcome=each["outcome"],
            message=each["message"],
        )
        for each in page.failures[:FAILURES]
    ]  # fmt: skip
    return PageResult(
        verb=request.verb,
        objects=page.objects,
        bytes=page.bytes,
        outcomes=dict(page.outcomes),
        failed=len(page.failures),
        failures=tuple(failures),
        left=tuple(page.left),
    )


page_task = artifact_task(PAGE, writes=False)(page)
