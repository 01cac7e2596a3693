"""Batch: apply one verb to every artifact of a bucket or prefix, or of a key list, with one job each.

The planner of a batch runs in short steps and holds no process between them. Each step counts the outcomes, accepts the
next jobs into the ledger together with its cursor, and only then sends their messages. So a death at any point skips
nothing and repeats nothing: the next step finds a job without a message.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import redis
from celery import Celery, current_app
from kombu.exceptions import OperationalError

from worker import clock
from worker.artifacts import key_lists as keylist
from worker.artifacts.sources import remove_staged
from worker.catalogue import Batch, BatchChanges, BatchItem, BatchItemKind, BatchOutcome, FailedBatchItem, NewBatchItem
from worker.context import Context, JobContext
from worker.jobs.cancellation import request_cancel
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import Continue, RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import NotFound
from worker.storage.keys import check_bucket
from zot_artifact_client.contract import (
    BATCH,
    DELETE,
    REPLICATE,
    VERIFY,
    BatchFailure,
    BatchRequest,
    BatchResult,
    DeleteRequest,
    JobState,
    Progress,
    Queue,
    ReplicateRequest,
    TaskSpec,
    VerifyRequest,
    batch_stem,
)
from zot_artifact_client.outbox import Outgoing

logger = logging.getLogger(__name__)

FAILURES = 100
"""Failures that the result names; the ledger has all of them."""
QUEUE = Queue.SWEEP
"""The queue of the jobs of a batch, so that they delay no interactive job."""
_IDLE = 3
"""How many times longer the next step waits if there was no progress."""
_SLACK = timedelta(milliseconds=300)
UNSEEN = timedelta(hours=1)
"""After which a job is sent again where the broker cannot tell whether its message is lost."""
_CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of two workers may differ."""
_BROKER = (redis.RedisError, OperationalError, OSError)
_VERDICTS = ("corrupt", "size_mismatch", "missing", "unreadable", "unverifiable", "verified")
"""The worst first."""
_PLACED = ("repaired", "stored", "already_there")
_DELETED = ("deleted", "already_gone")


class Messages(Protocol):
    """The messages of a batch's jobs on the broker."""

    def send(self, jobs: list[Outgoing]) -> None:
        """Send jobs; sending is idempotent."""
        ...

    def lost(self, ids: list[str]) -> set[str] | None:
        """Return which of these unstarted jobs have no message; None if the broker cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """An artifact of the next page."""

    bucket: str
    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Page:
    """The next artifacts, and the cursor behind them."""

    found: Sequence[Found]
    cursor: Mapping[str, Any]
    exhausted: bool


def batch(request: BatchRequest, context: JobContext, job: RunningJob) -> BatchResult:
    """Run the next step of a batch.

    Raises:
        Continue: the batch has not ended.
        NotFound: there is nothing to verify or to replicate, or no key list; nothing was done.
        BadKeyList: lines of the list name no artifact; nothing was done.
        InvalidKey, UnknownStore, SourceRefused: nothing was done.
    """
    return step(request, context, job, Outbox(current_app))


def step(request: BatchRequest, context: JobContext, job: RunningJob, messages: Messages) -> BatchResult:
    """Count the outcomes, plan as many jobs as may be in flight, and return the summary if nothing is left."""
    before = context.catalogue.batches.get(job.id)
    early = before.next_step_at - _SLACK - clock.now() if before else timedelta()
    if timedelta() < early <= _IDLE * context.settings.batch.step:  # what is later was written by a clock ahead
        raise Continue(None)
    before = before or _begin(request, context, job)
    items = context.catalogue.batches.in_flight(job.id)
    outcomes = [_outcome(request, item) for item in items if item.state.terminal]
    room = (request.in_flight or context.settings.batch.in_flight) - len(items) + len(outcomes)
    page = _next(request, context, before, room)
    now = clock.now()
    wait = context.settings.batch.step * (1 if outcomes or page.found else _IDLE)
    new = [_new(request, before, number, found) for number, found in enumerate(page.found, before.planned + 1)]
    lost = _lost(messages, [item for item in items if item.state is JobState.QUEUED and not item.started])
    kind = BatchItemKind(_SPECS[request.verb].kind, QUEUE.value, now + UNSEEN if lost is None else None)
    changes = BatchChanges(outcomes, new, page.cursor, page.exhausted, now + wait)
    after = context.catalogue.batches.advance(before, kind, changes, now)
    _send(messages, request, job, {item.job: item.request for item in (*(lost or ()), *new)})
    job.publish_progress(_progress(request, after))
    if after.exhausted and after.ended == after.planned:
        return _result(request, context, after)
    raise Continue(wait.total_seconds())


def end_batch_items(context: Context, app: Celery) -> None:
    """Ask all jobs of batches that were cancelled, failed or dead to end."""
    for ended in context.catalogue.batches.ended_open():
        ids = [item.job for item in context.catalogue.batches.in_flight(ended) if not item.state.terminal]
        try:
            if ids and not request_cancel(app, ids):
                logger.warning("batch %s has ended, its jobs go on: no Redis keeps the results", ended)
        except _BROKER as error:
            logger.warning("batch %s: its jobs are ended later: %s", ended, type(error).__name__)
            continue
        context.catalogue.batches.close(ended)


# Beginning


def _begin(request: BatchRequest, context: JobContext, job: RunningJob) -> Batch:
    """Check the whole request before its first effect, and record the batch."""
    for name in (*(request.to or ()), *(request.stores or ())):
        context.stores[name]  # raises UnknownStore with the nearest name
    now = clock.now()
    if request.keys_from is not None:
        job.step("reading the list")
        listed = keylist.check(request.keys_from, context.settings, job.heartbeat, job=job.id)
        total, size, cursor = listed.count, None, {"offset": 0, "tag": listed.tag}
    else:
        total, size = context.catalogue.artifacts.measure(check_bucket(request.bucket or ""), request.prefix)
        cursor = {"after": "", "last": context.catalogue.artifacts.newest_id()}
    if not total and request.verb != DELETE.kind:
        where = request.keys_from or f"{request.bucket}/{request.prefix}"
        raise NotFound(f"{where}: there is no artifact there to {request.verb}; `zot-artifacts ls` shows what there is")
    return context.catalogue.batches.begin(job.id, cursor, total=total, total_bytes=size, now=now)


# Planning


def _next(request: BatchRequest, context: JobContext, before: Batch, room: int) -> Page:
    if before.exhausted or room <= 0:
        return Page((), before.cursor, before.exhausted)
    if request.keys_from is not None:
        return _listed(request.keys_from, context, before, room)
    artifacts = context.catalogue.artifacts.page(
        request.bucket, request.prefix, (request.bucket or "", before.cursor["after"]), room
    )
    # An artifact that is newer than the batch is no part of it, least of all of a delete.
    last, now = before.cursor.get("last"), clock.now() + _CLOCK_SKEW
    there = [
        each
        for each in artifacts
        if (last is None or each.id <= last)  # ids do not depend on clocks; one that was ahead hides no artifact
        and each.committed_at
        and not before.begun_at < each.committed_at <= now
    ]
    cursor = {**before.cursor, "after": artifacts[-1].key} if artifacts else before.cursor
    found = [Found(each.bucket, each.key, each.digest.size) for each in there]
    return Page(found, cursor, exhausted=len(artifacts) < room)


def _listed(name: str, context: JobContext, before: Batch, room: int) -> Page:
    cursor = before.cursor
    lines = keylist.page(name, context.settings, offset=cursor["offset"], tag=cursor["tag"], limit=room, job=before.job)
    sizes = context.catalogue.artifacts.sizes((line.bucket, line.key) for line in lines)
    found = [Found(line.bucket, line.key, sizes.get((line.bucket, line.key), 0)) for line in lines]
    end = lines[-1].end if lines else cursor["offset"]
    return Page(found, {**cursor, "offset": end}, exhausted=len(lines) < room)


def _new(request: BatchRequest, before: Batch, number: int, found: Found) -> NewBatchItem:
    """Return the job for an artifact. Its id is the batch and its number: ids sort in planning order."""
    payload = _REQUESTS[request.verb](request, found).payload()
    holds = None if request.verb == VERIFY.kind else f"{found.bucket}/{found.key}"
    return NewBatchItem(number, f"{batch_stem(before.job)}.{number:08d}", payload, found.size, holds)


def _lost(messages: Messages, waiting: list[BatchItem]) -> list[BatchItem] | None:
    """Return the jobs whose messages were never sent or were lost; None if the broker cannot tell."""
    try:
        lost = messages.lost([item.job for item in waiting])
    except _BROKER as error:
        logger.warning("the broker cannot tell which messages it has: %s", type(error).__name__)
        return []
    return None if lost is None else [item for item in waiting if item.job in lost]


def _send(messages: Messages, request: BatchRequest, job: RunningJob, jobs: Mapping[str, Mapping[str, Any]]) -> None:
    name = _SPECS[request.verb].name
    outgoing = [Outgoing(name, id_, QUEUE.value, dict(payload), parent=job.id) for id_, payload in jobs.items()]
    try:
        if outgoing:
            messages.send(outgoing)
    except _BROKER as error:
        logger.warning("batch %s: the next step sends its jobs again: %s", job.id, type(error).__name__)


_SPECS: dict[str, TaskSpec[Any, Any]] = {spec.kind: spec for spec in (REPLICATE, VERIFY, DELETE)}
_REQUESTS: dict[str, Callable[[BatchRequest, Found], ReplicateRequest | VerifyRequest | DeleteRequest]] = {
    REPLICATE.kind: lambda asked, at: ReplicateRequest(bucket=at.bucket, key=at.key, to=asked.to or ()),
    VERIFY.kind: lambda asked, at: VerifyRequest(bucket=at.bucket, key=at.key, stores=asked.stores),
    DELETE.kind: lambda asked, at: DeleteRequest(
        bucket=at.bucket, key=at.key, stores=asked.stores, allow_last=asked.allow_last
    ),
}


# Counting


def _outcome(request: BatchRequest, item: BatchItem) -> BatchOutcome:
    if item.state is not JobState.SUCCEEDED:
        return BatchOutcome(item, item.state.value, good=False)
    copies = (item.result or {}).get("copies", ())
    if request.verb == VERIFY.kind:
        verdict = _first(_VERDICTS, [copy["verdict"] for copy in copies], "missing")
        return BatchOutcome(item, verdict, good=verdict == "verified")
    outcomes = [copy["outcome"] for copy in copies]
    words = (_PLACED, "already_there") if request.verb == REPLICATE.kind else (_DELETED, "already_gone")
    return BatchOutcome(item, _first(words[0], outcomes, words[1]), good=True)


def _first(order: Sequence[str], words: Sequence[str], without: str) -> str:
    return next((word for word in order if word in words), without)


def _progress(request: BatchRequest, at: Batch) -> Progress:
    failed = f", {at.failed} failed" if at.failed else ""
    of = f" of {at.total}" if at.total is not None else ""
    return Progress(
        bytes_done=at.ended_bytes,
        bytes_total=at.total_bytes,
        step=f"{request.verb}: {at.ended}{of} objects{failed}",
        objects_done=at.ended,
        objects_total=at.total,
    )


def _result(request: BatchRequest, context: JobContext, at: Batch) -> BatchResult:
    failures = context.catalogue.batches.failed(at.job, limit=FAILURES)
    return BatchResult(
        verb=request.verb,
        objects=at.ended,
        bytes=at.ended_bytes,
        outcomes=dict(at.outcomes),
        failed=at.failed,
        failures=tuple(_failure(each) for each in failures),
    )


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
    if request.staged and request.keys_from is not None:
        remove_staged(request.keys_from, context.settings, job)
    end_batch_items(context, current_app)


batch_task = artifact_task(BATCH, writes=False, at_end=_at_end)(batch)
