"""Batch: apply one verb to every artifact of a bucket or prefix, or of a key list, in pages of many artifacts each.

The planner of a batch runs in short steps and holds no process between them. Each step counts the outcomes, accepts the
next jobs into the ledger together with its cursor, and only then sends their messages. So a death at any point skips
nothing and repeats nothing: the next step finds a job without a message.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from celery import Celery, current_app

from tasks.batch_jobs import ObjectJob, new_item
from tasks.count_outcomes import EndedItem, ended_item, result_of, with_not_kept
from tasks.plan_listed_pages import LINES_OF, begin_listed, count_upload
from tasks.plan_pages import next_jobs
from worker import clock
from worker.artifacts import key_lists
from worker.artifacts.page_selection import cursor_of
from worker.artifacts.per_store import check_beside_bytes
from worker.artifacts.sources import remove_staged, remove_staged_directory
from worker.artifacts.wait_for_delete_approval import check_batch
from worker.catalogue import Batch, BatchChanges, BatchItem, BatchItemKind, NewBatchItem
from worker.context import Context
from worker.counted import counted
from worker.jobs.cancel_jobs import request_cancel
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import Continue, RunningJob
from worker.jobs.send_sweep_pages import UNSEEN, Messages
from worker.jobs.task import artifact_task
from worker.storage.errors import NotFound
from worker.storage.keys import check_bucket
from zot_artifact_client.connection import BROKER_ERRORS
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    DELETE,
    PAGE,
    REPLICATE,
    UPLOAD,
    VERIFY,
    BatchRequest,
    BatchResult,
    JobState,
    Progress,
    Queue,
    TaskSpec,
)
from zot_artifact_client.outgoing_messages import Outgoing

logger = logging.getLogger(__name__)

QUEUE = Queue.SWEEP
"""The queue of the jobs of a batch, so that they delay no interactive job."""
_SPECS: dict[str, TaskSpec[Any, Any]] = {spec.kind: spec for spec in (REPLICATE, VERIFY, DELETE, ADOPT, UPLOAD, PAGE)}
_IDLE = 3
"""How many times longer the next step waits if there was no progress."""
_SOONEST = timedelta(milliseconds=200)
_LATEST_PART = 20
"""The next step waits at least for this part of the time that the batch has taken."""
_SLACK = timedelta(milliseconds=300)


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
    most = request.in_flight or job.settings.batch.in_flight
    seen = _see_jobs(request, job, most)
    planned = next_jobs(request, job, before, room=most - seen.in_flight)
    found = [*seen.left, *planned.jobs]
    new = [new_item(request, before, number, each) for number, each in enumerate(found, before.planned + 1)]
    lost = _lost(messages, seen.running)

    now, every = clock.now(), job.settings.batch.step
    moved = seen.ended or planned.jobs or seen.objects
    wait = min(every, _rest(before, seen, now)) if moved else every * _IDLE
    kind = BatchItemKind(request.verb, QUEUE.value, now + UNSEEN if lost is None else None)
    cursor = with_not_kept(planned.cursor, [each.outcome.item for each in seen.ended])
    changes = BatchChanges([each.outcome for each in seen.ended], new, cursor, planned.exhausted, now + wait)
    after = job.catalogue.batches.advance(before, kind, changes, now)

    _send(messages, request, job, [*(lost or ()), *new])
    job.publish_progress(_progress(request, after, seen))
    if after.exhausted and not new and not seen.running:
        return result_of(request, job.catalogue, after)
    raise Continue(wait.total_seconds())


@dataclass(slots=True)
class _Seen:
    """What the jobs of a batch have done since its last step."""

    running: list[BatchItem]
    """The jobs that have not ended."""
    ended: list[EndedItem] = field(default_factory=list)
    left: list[ObjectJob] = field(default_factory=list)
    """The objects that have left the pages that ended: they are the next jobs."""
    objects: int = 0
    """The objects that pages have done which are not counted yet, and their bytes."""
    size: int = 0

    @property
    def in_flight(self) -> int:
        """Return how many jobs wait or run, with those that are next."""
        return len(self.running) + len(self.left)


def _see_jobs(request: BatchRequest, job: RunningJob, most: int) -> _Seen:
    """Count the jobs that have ended. While `most` are in flight, a page that may have left objects is not counted."""
    items = job.catalogue.batches.in_flight(job.id)
    seen = _Seen([item for item in items if not item.state.terminal])
    open_pages: list[str] = []
    for item in items:
        if item.state.terminal and not (item.kind == PAGE.kind and seen.in_flight >= most):
            seen.ended.append(ended_item(request, job, item))
            seen.left += seen.ended[-1].left
        elif item.kind == PAGE.kind:
            open_pages.append(item.job)
    seen.objects, seen.size = job.catalogue.pages.progress_of(open_pages)
    return seen


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


def _begin(request: BatchRequest, job: RunningJob) -> Batch:
    """Check the whole request before its first effect, and record the batch."""
    _check(request, job)
    now, find = clock.now(), begin_listed if request.verb in LINES_OF else _find_artifacts
    cursor, total, size = find(request, job)
    return job.catalogue.batches.begin(job.id, cursor, total=total, total_bytes=size, now=now)


def _find_artifacts(request: BatchRequest, job: RunningJob) -> tuple[dict[str, Any], int, int | None]:
    """Return the cursor at the first artifact, how many there are, and how many bytes if that is known.

    Raises:
        NotFound: there is none; to delete none is no error.
        BadKeyList: a line of the list names no artifact.
    """
    artifacts, deletes = job.catalogue.artifacts, request.verb == DELETE.kind
    cursor: dict[str, Any] = {"after": ""}
    size: int | None = None
    if request.keys_from is not None:
        job.step("reading the list")
        listed = key_lists.check(request.keys_from, job.settings, job.heartbeat, job=job.id)
        total, cursor = listed.count, {"offset": 0, "tag": listed.tag}
    else:
        total, size = artifacts.measure(check_bucket(request.bucket or ""), request.prefix)
    if not total and not deletes:
        where = request.keys_from or f"{request.bucket}/{request.prefix}"
        raise NotFound(f"{where}: there is no artifact there to {request.verb}; `zot-artifacts ls` shows what there is")
    return cursor | cursor_of(artifacts.seen(writing_to=job.stores if deletes else ())), total, size


def _check(request: BatchRequest, job: RunningJob) -> None:
    """Raise UnknownStore, which has the nearest name, or PermanentError: a store cannot do what is asked of it."""
    for name in (*(request.to or ()), *(request.stores or ())):
        job.stores[name]
    placed = () if job.settings.placement_rules else job.settings.placement_stores
    check_beside_bytes(request, job.stores, request.stores or placed)  # with rules, each file is checked


def _rest(before: Batch, seen: _Seen, now: datetime) -> timedelta:
    """Return in how much time the batch ends at the speed that it has had: no client waits for a step after that."""
    done = before.ended + seen.objects + sum(sum(each.outcome.counts.outcomes.values()) for each in seen.ended)
    taken = max(now - before.begun_at, timedelta())
    if not done or before.total is None:
        return timedelta.max
    return max(taken * max(before.total - done, 0) / done, taken / _LATEST_PART, _SOONEST)


def _lost(messages: Messages, running: Sequence[BatchItem]) -> list[BatchItem] | None:
    """Return the jobs whose messages were never sent or were lost; None if the broker cannot tell."""
    waiting = [item for item in running if item.state is JobState.QUEUED and not item.started]
    try:
        lost = messages.lost([item.job for item in waiting])
    except BROKER_ERRORS as error:
        logger.warning("the broker cannot tell which messages it has: %s", type(error).__name__)
        return []
    return None if lost is None else [item for item in waiting if item.job in lost]


def _send(
    messages: Messages, request: BatchRequest, job: RunningJob, items: Sequence[BatchItem | NewBatchItem]
) -> None:
    outgoing = [
        Outgoing(_SPECS[each.kind or request.verb].name, each.job, QUEUE.value, dict(each.request), parent=job.id)
        for each in items
    ]
    try:
        if outgoing:
            messages.send(outgoing)
    except BROKER_ERRORS as error:
        logger.warning("batch %s: the next step sends its jobs again: %s", job.id, type(error).__name__)


def _progress(request: BatchRequest, at: Batch, seen: _Seen) -> Progress:
    """Return how far the batch is, with the objects that pages have done which still run."""
    failed = f", {at.failed} failed" if at.failed else ""
    done = at.ended + seen.objects
    told = counted(done, "object") if at.total is None else f"{done} of {counted(at.total, 'object')}"
    return Progress(
        bytes_done=at.ended_bytes + seen.size,
        bytes_total=at.total_bytes,
        step=f"{request.verb}: {told}{failed}",
        objects_done=done,
        objects_total=at.total,
    )


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


def _at_end(request: BatchRequest, context: Context, job: str) -> None:
    if request.verb in LINES_OF:
        context.catalogue.batch_lists.remove(job)
    if request.verb == UPLOAD.kind:
        remove_staged_directory(context.settings, job)
    elif request.staged and request.keys_from is not None:
        remove_staged(request.keys_from, context.settings, job)
    end_batch_items(context, current_app)


batch_task = artifact_task(BATCH, writes=False, at_end=_at_end)(batch)
