"""Batch: apply one verb to every artifact of a bucket or prefix, or of a key list, in pages of many artifacts each.

The planner of a batch runs in short steps and holds no process between them. Each step counts the outcomes, accepts the
next jobs into the ledger together with its cursor, and only then sends their messages. So a death at any point skips
nothing and repeats nothing: the next step finds a job without a message.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Any

from celery import Celery, current_app

from tasks.delete import KEPT
from tasks.pages.adopt import ADOPTED, ALREADY_THERE
from tasks.pages.verify import WORST_FIRST
from tasks.plan_listed_pages import LINES_OF, begin_listed, count_upload, lines_of, next_listed_pages
from worker import clock
from worker.artifacts import key_lists
from worker.artifacts.batch_lists import ListedAdoption, ListedFile
from worker.artifacts.page_selection import (
    PageObject,
    artifact_object,
    cursor_of,
    limits_of,
    of_lines,
    open_objects,
    seen_by,
    split,
)
from worker.artifacts.per_store import DELETED, PLACED, check_beside_bytes, first_of
from worker.artifacts.sources import remove_staged, remove_staged_directory
from worker.artifacts.wait_for_delete_approval import check_batch
from worker.catalogue import (
    Batch,
    BatchChanges,
    BatchItem,
    BatchItemKind,
    BatchOutcome,
    Catalogue,
    FailedBatchItem,
    NewBatchItem,
    Page,
    PageCounts,
)
from worker.context import Context
from worker.counted import counted
from worker.jobs.cancel_jobs import request_cancel
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import Continue, RunningJob
from worker.jobs.send_sweep_pages import BROKER_ERRORS, UNSEEN, Messages, page_id
from worker.jobs.task import artifact_task
from worker.settings.section_models import PageSettings
from worker.storage.errors import NotFound
from worker.storage.keys import check_bucket
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    PAGE,
    REPLICATE,
    UPLOAD,
    VERIFY,
    AdoptRequest,
    BatchFailure,
    BatchRequest,
    BatchResult,
    DeleteRequest,
    JobState,
    LinesSelection,
    PageRequest,
    PageResult,
    Progress,
    Queue,
    RangeSelection,
    ReplicateRequest,
    Request,
    TaskSpec,
    UploadRequest,
    VerifyRequest,
)
from zot_artifact_client.outgoing_messages import Outgoing

logger = logging.getLogger(__name__)

FAILURES = 100
"""Failures that the result names; the ledger has all of them."""
QUEUE = Queue.SWEEP
"""The queue of the jobs of a batch, so that they delay no interactive job."""
_IDLE = 3
"""How many times longer the next step waits if there was no progress."""
_SOONEST = timedelta(milliseconds=200)
_LATEST_PART = 20
"""The next step waits at least for this part of the time that the batch has taken."""
_SLACK = timedelta(milliseconds=300)
_PAGES_AT_ONCE = 32
"""Pages that one step plans at most: it reads their artifacts."""
_FAILED = "failed"
_WORD = 32
"""Characters of an outcome."""
_NOT_KEPT = "not_kept"
"""The field of the cursor that names what stores do not keep beside the bytes."""


@dataclass(frozen=True, slots=True)
class ObjectJob:
    """An artifact that is a job of its own. `source`: the file that an upload reads.

    `sha256`: the digest that what is adopted must have, if it is known.
    """

    bucket: str
    key: str
    size: int
    source: str = ""
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class PageJob:
    """The request of a page, with the bytes of its objects."""

    request: PageRequest
    size: int


@dataclass(frozen=True, slots=True)
class PlannedJobs:
    """The next jobs of a batch, and the cursor after them."""

    found: Sequence[ObjectJob | PageJob]
    cursor: Mapping[str, Any]
    exhausted: bool


@dataclass(frozen=True, slots=True)
class EndedItem:
    """The outcome of a job of a batch, and the objects that left it."""

    outcome: BatchOutcome
    left: Sequence[ObjectJob] = ()


def batch(request: BatchRequest, job: RunningJob, messages: Messages | None = None) -> BatchResult:
    """Run the next step of a batch: count outcomes, plan as many jobs as may be in flight, end if nothing is left.

    Raises:
        Continue: the batch has not ended.
        NotFound: there is nothing to verify, to replicate or to adopt, or no key list; nothing was done.
        BadKeyList: lines of the list name no artifact; nothing was done.
        InvalidKey, UnknownStore, SourceRefused: nothing was done.
        StorageError, Snooze: the store with the objects to adopt could not be listed; nothing was done.
        NotApproved, WaitsForApproval: a second person has not approved the delete; nothing was done.
    """
    if request.dry_run:
        _check(request, job)
        return count_upload(request, job)
    messages = messages or Outbox(current_app)
    before = _open_batch(request, job)
    items = job.catalogue.batches.in_flight(job.id)
    running = [item for item in items if not item.state.terminal]
    most = request.in_flight or job.settings.batch.in_flight
    ended, left, open_pages = list[EndedItem](), list[ObjectJob](), list[str]()
    for item in items:
        full = len(running) + len(left) >= most  # what has left more pages waits for a later step
        if item.state.terminal and not (full and item.kind == PAGE.kind):
            ended.append(_ended(request, job, item))
            left += ended[-1].left
        elif item.kind == PAGE.kind:
            open_pages.append(item.job)
    objects, size = job.catalogue.pages.progress_of(open_pages)

    planned = _next(request, job, before, room=most - len(running) - len(left))
    new = [
        _new_item(request, before, number, each)
        for number, each in enumerate([*left, *planned.found], before.planned + 1)
    ]
    lost = _lost(messages, running)

    now, every = clock.now(), job.settings.batch.step
    wait = min(every, _rest(before, ended, objects, now)) if ended or planned.found or objects else every * _IDLE
    kind = BatchItemKind(request.verb, QUEUE.value, now + UNSEEN if lost is None else None)
    cursor = _with_not_kept(planned.cursor, [each.outcome.item for each in ended])
    changes = BatchChanges([each.outcome for each in ended], new, cursor, planned.exhausted, now + wait)
    after = job.catalogue.batches.advance(before, kind, changes, now)

    again = {item.job: (item.kind, item.request) for item in lost or ()}
    _send(messages, job, again | {item.job: (item.kind or request.verb, item.request) for item in new})
    job.publish_progress(_progress(request, after, objects, size))
    if after.exhausted and not new and not running:
        return _result(request, job.catalogue, after)
    raise Continue(wait.total_seconds())


def _open_batch(request: BatchRequest, job: RunningJob) -> Batch:
    """Return the batch with what its earlier steps have done; its first step begins it.

    Raises:
        Continue: its next step is not due yet.
        NotApproved, WaitsForApproval: it deletes, and a second person has not approved it.
    """
    before = job.catalogue.batches.get(job.id)
    early = before.next_step_at - _SLACK - clock.now() if before else timedelta()
    if timedelta() < early <= _IDLE * job.settings.batch.step:  # what is later was written by a clock ahead
        raise Continue(None)
    before = before or _begin(request, job)
    if request.verb == DELETE.kind and not before.planned:
        check_batch(request, job, before.total or 0, before.total_bytes or 0)
    return before


def _rest(before: Batch, ended: Sequence[EndedItem], objects: int, now: datetime) -> timedelta:
    """Return in how much time the batch ends at the speed that it has had: no client waits for a step after that."""
    done = before.ended + objects + sum(sum(each.outcome.counts.outcomes.values()) for each in ended)
    taken = max(now - before.begun_at, timedelta())
    if not done or before.total is None:
        return timedelta.max
    return max(taken * max(before.total - done, 0) / done, taken / _LATEST_PART, _SOONEST)


def end_batch_items(context: Context, app: Celery) -> None:
    """Cancel the jobs of batches that were cancelled, failed or dead."""
    for ended in context.catalogue.batches.ended_open():
        ids = [item.job for item in context.catalogue.batches.in_flight(ended) if not item.state.terminal]
        try:
            if ids and not request_cancel(app, ids):
                logger.warning(
                    "batch %s has ended and its jobs continue: to cancel them takes Redis as the result backend", ended
                )
        except BROKER_ERRORS as error:
            logger.warning("batch %s: its jobs are cancelled later: %s", ended, type(error).__name__)
            continue
        context.catalogue.batches.close(ended)
        context.catalogue.batch_lists.remove(ended)  # a dead one has no other end


# Beginning


def _begin(request: BatchRequest, job: RunningJob) -> Batch:
    """Check the whole request before its first effect, and record the batch."""
    _check(request, job)
    now, deletes = clock.now(), request.verb == DELETE.kind
    if request.verb in LINES_OF:
        cursor, total, size = begin_listed(request, job)
    elif request.keys_from is not None:
        job.step("reading the list")
        listed = key_lists.check(request.keys_from, job.settings, job.heartbeat, job=job.id)
        total, size, cursor = listed.count, None, {"offset": 0, "tag": listed.tag}
    else:
        total, size = job.catalogue.artifacts.measure(check_bucket(request.bucket or ""), request.prefix)
        cursor = {"after": ""}
    if request.verb not in LINES_OF:
        cursor |= cursor_of(job.catalogue.artifacts.seen(writing_to=job.stores if deletes else ()))
    if not total and not deletes and request.verb not in LINES_OF:
        where = request.keys_from or f"{request.bucket}/{request.prefix}"
        raise NotFound(f"{where}: there is no artifact there to {request.verb}; `zot-artifacts ls` shows what there is")
    return job.catalogue.batches.begin(job.id, cursor, total=total, total_bytes=size, now=now)


def _check(request: BatchRequest, job: RunningJob) -> None:
    """Raise UnknownStore, which has the nearest name, or PermanentError: a store cannot do what is asked of it."""
    for name in (*(request.to or ()), *(request.stores or ())):
        job.stores[name]
    placed = () if job.settings.placement_rules else job.settings.placement_stores
    check_beside_bytes(request, job.stores, request.stores or placed)  # with rules, each file is checked


# Planning


def _next(request: BatchRequest, job: RunningJob, before: Batch, room: int) -> PlannedJobs:
    if before.exhausted or room <= 0:
        return PlannedJobs((), before.cursor, before.exhausted)
    if request.verb in LINES_OF:
        pages, cursor, exhausted = next_listed_pages(request, job, before, min(room, _PAGES_AT_ONCE))
        return PlannedJobs([PageJob(page, size) for page, size in pages], cursor, exhausted)
    limits = limits_of(job.settings.page, before.total)
    if request.keys_from is not None:
        return _next_lines(request, job, before, room, limits)
    return _next_range(request, job.catalogue, before, room, limits)


def _next_range(
    request: BatchRequest, catalogue: Catalogue, before: Batch, room: int, limits: PageSettings
) -> PlannedJobs:
    most = min(room, _PAGES_AT_ONCE) * limits.objects
    assert request.bucket is not None
    after, seen = before.cursor["after"], seen_by(before)
    artifacts = catalogue.artifacts.listing(request.bucket, request.prefix, after, most, seen=seen)
    found: list[ObjectJob | PageJob] = []
    pages = list(split(map(artifact_object, artifacts), limits))
    for page in pages[:room]:
        until = str(page[-1].end)
        selection = RangeSelection(
            bucket=request.bucket, prefix=request.prefix, after=after, until=until, newest=seen.newest
        )
        found.append(_job_of(page, _page_request(request).model_copy(update={"range": selection})))
        after = until
    if len(pages) <= room:
        return PlannedJobs(
            found, _cursor_after(before, artifacts[-1].key if artifacts else after), len(artifacts) < most
        )
    return PlannedJobs(found, _cursor_after(before, after), exhausted=False)


def _cursor_after(before: Batch, key: str) -> dict[str, Any]:
    return {**before.cursor, "after": key}


def _next_lines(request: BatchRequest, job: RunningJob, before: Batch, room: int, limits: PageSettings) -> PlannedJobs:
    most = min(room, _PAGES_AT_ONCE) * limits.objects
    assert request.keys_from is not None
    offset, tag = before.cursor["offset"], before.cursor["tag"]
    lines = key_lists.page(request.keys_from, job.settings, offset=offset, tag=tag, limit=most, job=before.job)
    found: list[ObjectJob | PageJob] = []
    pages = list(split(of_lines(lines, job.catalogue), limits))
    for page in pages[:room]:
        selection = LinesSelection(file=request.keys_from, offset=offset, end=int(page[-1].end), tag=tag)
        found.append(_job_of(page, _page_request(request).model_copy(update={"lines": selection})))
        offset = int(page[-1].end)
    return PlannedJobs(found, {**before.cursor, "offset": offset}, len(lines) < most and len(pages) <= room)


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


def _new_item(request: BatchRequest, before: Batch, number: int, found: ObjectJob | PageJob) -> NewBatchItem:
    """Return a job of the batch."""
    id_ = page_id(before.job, number)
    if isinstance(found, PageJob):
        return NewBatchItem(number, id_, found.request.payload(), found.size, None, PAGE.kind)
    payload = _REQUESTS[request.verb](request, found).payload()
    writes_to = None if request.verb == VERIFY.kind else f"{found.bucket}/{found.key}"
    return NewBatchItem(number, id_, payload, found.size, writes_to)


def _lost(messages: Messages, running: Sequence[BatchItem]) -> list[BatchItem] | None:
    """Return the jobs whose messages were never sent or were lost; None if the broker cannot tell."""
    waiting = [item for item in running if item.state is JobState.QUEUED and not item.started]
    try:
        lost = messages.lost([item.job for item in waiting])
    except BROKER_ERRORS as error:
        logger.warning("the broker cannot tell which messages it has: %s", type(error).__name__)
        return []
    return None if lost is None else [item for item in waiting if item.job in lost]


def _send(messages: Messages, job: RunningJob, jobs: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    outgoing = [
        Outgoing(_SPECS[kind].name, id_, QUEUE.value, dict(payload), parent=job.id)
        for id_, (kind, payload) in jobs.items()
    ]
    try:
        if outgoing:
            messages.send(outgoing)
    except BROKER_ERRORS as error:
        logger.warning("batch %s: the next step sends its jobs again: %s", job.id, type(error).__name__)


_SPECS: dict[str, TaskSpec[Any, Any]] = {spec.kind: spec for spec in (REPLICATE, VERIFY, DELETE, ADOPT, UPLOAD, PAGE)}
_REQUESTS: dict[str, Callable[[BatchRequest, ObjectJob], Request]] = {
    REPLICATE.kind: lambda asked, at: ReplicateRequest(bucket=at.bucket, key=at.key, to=asked.to or ()),
    VERIFY.kind: lambda asked, at: VerifyRequest(bucket=at.bucket, key=at.key, stores=asked.stores),
    ADOPT.kind: lambda asked, at: AdoptRequest(
        bucket=at.bucket, key=at.key, store=(asked.stores or ("",))[0], first_read=asked.first_read, sha256=at.sha256
    ),
    UPLOAD.kind: lambda asked, at: UploadRequest.read(
        {"bucket": at.bucket, "key": at.key, "source": at.source, "stores": asked.stores, **asked.beside_bytes}
    ),
    DELETE.kind: lambda asked, at: DeleteRequest(
        bucket=at.bucket, key=at.key, stores=asked.stores, allow_last=asked.allow_last, by=asked.by, reason=asked.reason
    ),
}


# Counting


def _ended(request: BatchRequest, job: RunningJob, item: BatchItem) -> EndedItem:
    if item.kind != PAGE.kind:
        return EndedItem(_outcome(request, item, job.catalogue))
    if item.state is JobState.SUCCEEDED:
        result = PageResult.read(item.result or {})
        counts = PageCounts(result.outcomes, result.bytes, result.failed)
        left = _found_left(PageRequest.read(item.request), result.left, job, item)
        return EndedItem(BatchOutcome(item, _FAILED if result.failed else "done", not result.failed, counts), left)
    return _ended_early(job, item)


def _ended_early(job: RunningJob, item: BatchItem) -> EndedItem:
    """Count what a page has recorded that did not succeed; the other objects become jobs of their own.

    One of them may be what ended the page. The objects of a cancelled page count as cancelled.
    """
    page = job.catalogue.pages.get(item.job)
    request = PageRequest.read(item.request)
    objects = _still_open(request, page, job, item)
    outcomes: Counter[str] = Counter(page.outcomes if page else {})
    size, failed = page.bytes if page else 0, len(page.failures) if page else 0
    if item.state is JobState.CANCELLED:
        outcomes[item.state.value] += len(objects)
        counts = PageCounts(outcomes, size + sum(each.size for each in objects), failed + len(objects))
        return EndedItem(BatchOutcome(item, item.state.value, good=False, page=counts))
    left = [*objects, *_found_left(request, page.left if page else (), job, item)]
    return EndedItem(
        BatchOutcome(item, item.state.value, good=not failed, page=PageCounts(outcomes, size, failed)), left
    )


def _still_open(request: PageRequest, page: Page | None, job: RunningJob, item: BatchItem) -> list[ObjectJob]:
    """Return the objects of a page that have no outcome."""
    if request.verb in LINES_OF:
        lines = lines_of(request, LINES_OF[request.verb], job, item.job)
        still = range(len(lines)) if page is None else page.open
        return [_found_line(lines[number]) for number in still]
    return [ObjectJob(each.bucket, each.key, each.size) for each in open_objects(request, page, job, job.id)]


def _found_left(request: PageRequest, left: Sequence[str], job: RunningJob, item: BatchItem) -> list[ObjectJob]:
    """Return the objects that have left a page."""
    if request.verb not in LINES_OF or not left:
        paths = [(bucket, key) for bucket, _, key in (path.partition("/") for path in left)]
        there = job.catalogue.artifacts.currents(paths)
        return [ObjectJob(*path, there[path].digest.size if path in there else 0) for path in paths]
    wanted, found = Counter(left), list[ObjectJob]()
    for line in reversed(lines_of(request, LINES_OF[request.verb], job, item.job)):
        path = f"{line.bucket}/{line.key}"
        if wanted[path]:  # of several lines with a key, the last ones: an earlier one gives way to them
            wanted[path] -= 1
            found.append(_found_line(line))
    return found[::-1]


def _found_line(line: ListedFile | ListedAdoption) -> ObjectJob:
    if isinstance(line, ListedFile):
        return ObjectJob(line.bucket, line.key, line.size, source=line.path)
    return ObjectJob(line.bucket, line.key, line.size, sha256=line.sha256)


def _outcome(request: BatchRequest, item: BatchItem, catalogue: Catalogue) -> BatchOutcome:
    if item.state is not JobState.SUCCEEDED:
        failed = request.verb == ADOPT.kind and item.state in {JobState.FAILED, JobState.DEAD}
        word = str((item.error or {}).get("type", item.state.value))[:_WORD] if failed else item.state.value
        return BatchOutcome(item, word, good=False)
    if request.verb == ADOPT.kind:
        return BatchOutcome(item, ALREADY_THERE if (item.result or {}).get("unchanged") else ADOPTED, good=True)
    copies = (item.result or {}).get("copies", ())
    if request.verb == VERIFY.kind:
        verdict = first_of(WORST_FIRST, [copy["verdict"] for copy in copies] or ["missing"])
        return BatchOutcome(item, verdict, good=verdict == "verified")
    outcomes = [copy["outcome"] for copy in copies]
    if request.verb == DELETE.kind and not copies and not (item.result or {}).get("purge_after"):
        there = catalogue.artifacts.current(item.request["bucket"], item.request["key"])
        return BatchOutcome(item, KEPT if there else "already_gone", good=True)
    return BatchOutcome(item, first_of(DELETED if request.verb == DELETE.kind else PLACED, outcomes), good=True)


def _progress(request: BatchRequest, at: Batch, objects: int, size: int) -> Progress:
    """Return how far the batch is; `objects` and `size` are those that pages have done that still run."""
    failed = f", {at.failed} failed" if at.failed else ""
    done = at.ended + objects
    told = counted(done, "object") if at.total is None else f"{done} of {counted(at.total, 'object')}"
    return Progress(
        bytes_done=at.ended_bytes + size,
        bytes_total=at.total_bytes,
        step=f"{request.verb}: {told}{failed}",
        objects_done=done,
        objects_total=at.total,
    )


def _result(request: BatchRequest, catalogue: Catalogue, at: Batch) -> BatchResult:
    failures = catalogue.batches.failed(at.job, limit=FAILURES)
    unlisted = [BatchFailure(job=at.job, outcome=_FAILED, **each) for each in at.cursor.get("problems", ())]
    named = chain(unlisted, (failure for each in failures for failure in _failures(each)))
    outcomes, refused = Counter(at.outcomes), int(at.cursor.get("refused", 0))
    if refused:
        outcomes[_FAILED] += refused
    return BatchResult(
        verb=request.verb,
        objects=at.ended + refused,
        bytes=at.ended_bytes,
        outcomes=dict(outcomes),
        failed=at.failed + refused,
        failures=tuple(islice(named, FAILURES)),
        not_kept={store: tuple(names) for store, names in at.cursor.get(_NOT_KEPT, {}).items()},
    )


def _with_not_kept(cursor: Mapping[str, Any], ended: Sequence[BatchItem]) -> Mapping[str, Any]:
    """Add what stores do not keep beside the bytes, as the jobs that have ended tell it."""
    told: list[tuple[str, Sequence[str]]] = []
    for result in (item.result for item in ended if item.result):
        told += result.get("not_kept", {}).items()
        of = (result, *result.get("companions", ()))
        told += [
            (copy["store"], copy.get("not_kept", ())) for each in of if isinstance(each, Mapping)
            for copy in each.get("copies", ())
        ]  # fmt: skip
    found: dict[str, list[str]] = dict(cursor.get(_NOT_KEPT, {}))
    for store, names in told:
        if names:
            found[store] = sorted({*found.get(store, ()), *names})
    return {**cursor, _NOT_KEPT: found} if found else cursor


def _failures(failed: FailedBatchItem) -> Iterator[BatchFailure]:
    """Yield the failures of a job, of which a page has several."""
    if "key" in failed.request:
        yield _failure(failed)
        return
    for each in (failed.result or {}).get("failures", ()):
        yield BatchFailure(job=failed.job, **{name: each[name] for name in ("bucket", "key", "outcome", "message")})


def _failure(failed: FailedBatchItem) -> BatchFailure:
    copies = [copy for copy in (failed.result or {}).get("copies", ()) if copy.get("verdict") != "verified"]
    said = "; ".join(f"{copy['store']}: {copy.get('detail') or copy.get('verdict')}" for copy in copies)
    return BatchFailure(
        job=failed.job,
        bucket=failed.request["bucket"],
        key=failed.request["key"],
        outcome=failed.outcome,
        message=str((failed.error or {}).get("message", "")) or said or "it has no copy in any store",
    )


def _at_end(request: BatchRequest, context: Context, job: str) -> None:
    if request.verb in LINES_OF:
        context.catalogue.batch_lists.remove(job)
    if request.verb == UPLOAD.kind:
        remove_staged_directory(context.settings, job)
    elif request.staged and request.keys_from is not None:
        remove_staged(request.keys_from, context.settings, job)
    end_batch_items(context, current_app)


batch_task = artifact_task(BATCH, writes=False, at_end=_at_end)(batch)
