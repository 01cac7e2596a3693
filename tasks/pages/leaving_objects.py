"""Take objects out of a page: each of them becomes a job of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from worker import clock
from worker.artifacts.page_selection import PageObject, open_objects
from worker.catalogue import Catalogue, Group, Page, PageCopy, PageOutcome
from worker.jobs.running_job import RunningJob
from worker.jobs.task import child_id, send_child
from zot_artifact_client.contract import AdoptRequest, PageRequest, Queue, ReplicateRequest, TaskSpec

SentT = TypeVar("SentT", AdoptRequest, ReplicateRequest)


def begin_selected(request: PageRequest, job: RunningJob) -> tuple[Page, list[PageObject]]:
    """Return the progress of the page, and its objects without an outcome; those too large for a page leave it."""
    pages = job.catalogue.pages
    page = pages.get(job.id)
    objects = open_objects(request, page, job, job.parent or job.id)
    page = page or pages.begin(job.id, [each.id for each in objects])
    small: list[PageObject] = []
    others: list[PageObject] = []
    for each in objects:
        fits = each.artifact_id is not None and each.size <= job.settings.page.large
        (small if fits else others).append(each)
    return leave(page, others, job.catalogue), small


def leave(page: Page, objects: Sequence[PageObject] | Sequence[PageCopy], catalogue: Catalogue) -> Page:
    """Record that objects leave the page; a batch sends their jobs when it counts the page."""
    if not objects:
        return page
    left = [PageOutcome.leaves(each.id, each.path, each.size) for each in objects]
    return catalogue.pages.record(page, Group(left), now=clock.now())


def send_jobs(
    spec: TaskSpec[SentT, Any], requests: Mapping[str, SentT], store: str, catalogue: Catalogue, page: str
) -> int:
    """Send jobs, by what their ids are made of, for objects of a page of a sweep; sending again is idempotent.

    The findings about the objects name these jobs from then on.
    """
    jobs: dict[tuple[str, str], str] = {}
    for name, request in requests.items():
        jobs[request.bucket, request.key] = id_ = child_id(name)
        send_child(spec, request, id_=id_, parent=page, queue=Queue.SWEEP)
    catalogue.findings.hand_over(page, store, jobs, now=clock.now())
    return len(jobs)
