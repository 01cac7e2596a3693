"""Plan the next jobs of a batch: pages over a range of keys, or over the lines of a list."""

from collections.abc import Sequence

from tasks.batch_jobs import ObjectJob, PageJob, PlannedJobs
from tasks.plan_listed_pages import LINES_OF, next_listed_pages
from worker.artifacts import key_lists
from worker.artifacts.page_selection import PageObject, artifact_object, limits_of, of_lines, seen_by, split
from worker.catalogue import Batch, Catalogue
from worker.jobs.running_job import RunningJob
from worker.settings.section_models import PageSettings
from zot_artifact_client.contract import BatchRequest, LinesSelection, PageRequest, RangeSelection

PAGES_AT_ONCE = 32
"""Pages that one step plans at most: it reads their artifacts."""


def next_jobs(request: BatchRequest, job: RunningJob, before: Batch, room: int) -> PlannedJobs:
    """Return the jobs that come next, as many as there is room for.

    Raises:
        BadKeyList, SourceRefused, NotFound, AccessDenied: the list was changed, cannot be opened, or is gone.
    """
    if before.exhausted or room <= 0:
        return PlannedJobs((), before.cursor, before.exhausted)
    if request.verb in LINES_OF:
        return next_listed_pages(request, job, before, min(room, PAGES_AT_ONCE))
    limits = limits_of(job.settings.page, before.total)
    if request.keys_from is not None:
        return _next_lines(request, job, before, room, limits)
    return _next_range(request, job.catalogue, before, room, limits)


def _next_range(
    request: BatchRequest, catalogue: Catalogue, before: Batch, room: int, limits: PageSettings
) -> PlannedJobs:
    assert request.bucket is not None
    after, seen, most = before.cursor["after"], seen_by(before), min(room, PAGES_AT_ONCE) * limits.objects
    artifacts = catalogue.artifacts.listing(request.bucket, request.prefix, after, most, seen=seen)
    pages = list(split(map(artifact_object, artifacts), limits))
    jobs: list[ObjectJob | PageJob] = []
    for page in pages[:room]:
        until = str(page[-1].end)
        selection = RangeSelection(
            bucket=request.bucket, prefix=request.prefix, after=after, until=until, newest=seen.newest
        )
        jobs.append(_job_of(page, _page_request(request).model_copy(update={"range": selection})))
        after = until
    return PlannedJobs(jobs, {**before.cursor, "after": after}, len(artifacts) < most and len(pages) <= room)


def _next_lines(request: BatchRequest, job: RunningJob, before: Batch, room: int, limits: PageSettings) -> PlannedJobs:
    assert request.keys_from is not None
    offset, tag, most = before.cursor["offset"], before.cursor["tag"], min(room, PAGES_AT_ONCE) * limits.objects
    lines = key_lists.page(request.keys_from, job.settings, offset=offset, tag=tag, limit=most, job=before.job)
    pages = list(split(of_lines(lines, job.catalogue), limits))
    jobs: list[ObjectJob | PageJob] = []
    for page in pages[:room]:
        end = int(page[-1].end)
        selection = LinesSelection(file=request.keys_from, offset=offset, end=end, tag=tag)
        jobs.append(_job_of(page, _page_request(request).model_copy(update={"lines": selection})))
        offset = end
    return PlannedJobs(jobs, {**before.cursor, "offset": offset}, len(lines) < most and len(pages) <= room)


def _page_request(request: BatchRequest) -> PageRequest:
    """Return what all pages of a batch have in common; each has a selection as well."""
    return PageRequest.model_construct(
        verb=request.verb,
        to=request.to,
        stores=request.stores,
        allow_last=request.allow_last,
        by=request.by,
        reason=request.reason,
    )


def _job_of(page: Sequence[PageObject], request: PageRequest) -> ObjectJob | PageJob:
    """Return the job of a page; one of a single object is a job on that object."""
    if len(page) == 1:
        return ObjectJob(page[0].bucket, page[0].key, page[0].size)
    return PageJob(request, sum(each.size for each in page))
