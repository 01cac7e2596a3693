"""Count what the jobs of a batch have done: outcomes, failures, and the objects that have left their pages."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from tasks.batch_jobs import ObjectJob
from tasks.delete import KEPT
from tasks.pages.adopt import ADOPTED, ALREADY_THERE
from tasks.pages.verify import WORST_FIRST
from tasks.plan_listed_pages import LINES_OF, lines_of
from worker.artifacts.batch_lists import ListedAdoption, ListedFile
from worker.artifacts.page_selection import open_objects
from worker.artifacts.per_store import DELETED, PLACED, first_of
from worker.catalogue import (
    ADOPTED_AFTER_DELETE,
    Batch,
    BatchItem,
    BatchOutcome,
    Catalogue,
    FailedBatchItem,
    Page,
    PageCounts,
)
from worker.jobs.running_job import RunningJob
from zot_artifact_client.contract import (
    ADOPT,
    DELETE,
    PAGE,
    VERIFY,
    BatchFailure,
    BatchRequest,
    BatchResult,
    JobState,
    PageRequest,
    PageResult,
)

FAILURES = 100
"""Failures that the result names; the ledger has all of them."""
_FAILED = "failed"
_WORD = 32
"""Characters of an outcome."""
_NOT_KEPT = "not_kept"
"""The field of the cursor that names what stores do not keep beside the bytes."""


@dataclass(frozen=True, slots=True)
class EndedItem:
    """The outcome of a job of a batch, and the objects that left it."""

    outcome: BatchOutcome
    left: Sequence[ObjectJob] = ()


def ended_item(request: BatchRequest, job: RunningJob, item: BatchItem) -> EndedItem:
    """Return what a job of a batch has done that has ended; a page may have left objects undone."""
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
        result = item.result or {}
        word = ADOPTED_AFTER_DELETE if result.get("after_delete") else ADOPTED
        return BatchOutcome(item, ALREADY_THERE if result.get("unchanged") else word, good=True)
    copies = (item.result or {}).get("copies", ())
    if request.verb == VERIFY.kind:
        verdict = first_of(WORST_FIRST, [copy["verdict"] for copy in copies] or ["missing"])
        return BatchOutcome(item, verdict, good=verdict == "verified")
    if request.verb == DELETE.kind and not copies:
        result = item.result or {}
        path = item.request["bucket"], item.request["key"]
        there = not result.get("purge_after") and catalogue.artifacts.current(*path)
        gone = "already_gone" if result.get("unchanged") else "deleted"  # its bytes go after the grace period
        return BatchOutcome(item, KEPT if there else gone, good=True)
    outcomes = [copy["outcome"] for copy in copies]
    return BatchOutcome(item, first_of(DELETED if request.verb == DELETE.kind else PLACED, outcomes), good=True)


def result_of(request: BatchRequest, catalogue: Catalogue, at: Batch) -> BatchResult:
    """Return the result of a batch whose jobs have all ended."""
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


def with_not_kept(cursor: Mapping[str, Any], ended: Sequence[BatchItem]) -> Mapping[str, Any]:
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
