"""Replicate or delete the objects of a page, several at once; all are locked while the page works on them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tasks.delete import KEPT, delete_artifact
from tasks.pages.fresh_copies import FreshCopies, FreshObject, KeyTaken
from tasks.pages.leaving_objects import begin_selected, leave, send_jobs
from tasks.replicate import is_begun, replicate_to
from worker import clock
from worker.artifacts.artifact_copies import ArtifactJob, ReadBackMismatch, Records
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.page_runner import in_another_order, out_of_time, work_on
from worker.artifacts.page_selection import PageObject, seen_by
from worker.artifacts.per_store import DELETED, PLACED, first_of, is_refused
from worker.artifacts.waiting_uploads import closed_stores
from worker.catalogue import Catalogue, Group, OnHold, Page, PageOutcome, SeenVersions
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze
from worker.storage.errors import StorageError
from zot_artifact_client.contract import REPLICATE, ClaimSelection, DeleteRequest, PageRequest, ReplicateRequest

logger = logging.getLogger(__name__)


def write_page(request: PageRequest, job: RunningJob) -> Page:
    """Replicate or repair what a sweep has claimed for this page, or do the verb to the objects of a batch."""
    return _write_selected(request, job) if request.claim is None else _replicate_claimed(request, request.claim, job)


def _replicate_claimed(request: PageRequest, claim: ClaimSelection, job: RunningJob) -> Page:
    """Replicate or repair what the sweep has claimed for this page; what fails is sent as a job of its own."""
    page = job.catalogue.pages.get(job.id)
    if page is None:
        return Page(job.id, None, ())  # it has ended before
    done = _write_selected(request, job)
    _send(done, done.left, claim, job.catalogue)
    return done


def _write_selected(request: PageRequest, job: RunningJob) -> Page:
    """Replicate or delete the objects that no other job writes to; the others leave the page."""
    job.stores.admitting(request.to or ())  # no source is read for targets that take no job
    page, objects = begin_selected(request, job)
    with locked(job, [(each.bucket, each.key) for each in objects]) as granted:
        page = leave(page, [each for each in objects if (each.bucket, each.key) not in granted], job.catalogue)
        mine = [each for each in objects if (each.bucket, each.key) in granted]
        if request.claim is not None:
            mine = _still_begun(request.claim.store, job.catalogue, mine)
        mine = [*in_another_order(mine, job)]
        job.start(sum(each.size for each in mine), f"{request.verb}: {counted(len(mine), 'object')}")
        fresh = _fresh_copies(request, job, mine) if request.verb == REPLICATE.kind else None
        seen = seen_by(job.catalogue.batches.get(job.parent or job.id))
        work = _Writes(request, job, page, fresh, seen)
        most, seconds = job.settings.page.threads, job.settings.page.time.total_seconds()
        in_time = work_on(mine, work.do, work.record, threads=most, seconds=seconds)
    if closed := [*work.closed, *closed_stores({store for _, store in work.refused}, job.stores).values()]:
        raise min(closed, key=lambda error: error.seconds)
    done = leave(work.page, [each for each, _ in work.refused], job.catalogue)
    if not in_time:
        raise out_of_time(job)
    return done


def _still_begun(store: str, catalogue: Catalogue, objects: Sequence[PageObject]) -> list[PageObject]:
    """Return the objects of a sweep whose copies it still wants: not where the artifact or the copy was deleted since.

    Nor where the artifact was replaced: its upload may have named other stores, and the next sweep may claim that.
    """
    artifacts = catalogue.artifacts
    current = artifacts.currents((each.bucket, each.key) for each in objects)
    copies = artifacts.copies_of_all([artifact.id for artifact in current.values()])
    return [
        each for each in objects if each.artifact_id is not None and is_begun(copies.get(each.artifact_id, {}), store)
    ]


def _fresh_copies(request: PageRequest, job: RunningJob, objects: Sequence[PageObject]) -> FreshCopies:
    """Record the copies that are to be written, and return those that need no inspection."""
    artifacts, targets = job.catalogue.artifacts, [job.stores[name] for name in request.to or ()]
    current = artifacts.currents((each.bucket, each.key) for each in objects)
    artifacts.ensure_copies([(artifact, target.name) for artifact in current.values() for target in targets])
    return FreshCopies(job, objects, current, targets)


def send_replications(page: Page, request: PageRequest, catalogue: Catalogue) -> int:
    """Send a job for each object that a dead page of a sweep has left undone, and return how many."""
    assert request.claim is not None
    paths = [f"{each.bucket}/{each.key}" for each in catalogue.artifacts.listed_by_ids(page.open)]
    return _send(page, [*paths, *page.left], request.claim, catalogue)


def _send(page: Page, paths: Sequence[str], claim: ClaimSelection, catalogue: Catalogue) -> int:
    to = (claim.store,)
    wanted = {
        f"replicate {path} {to} {page.claimed_until}": ReplicateRequest(bucket=bucket, key=key, to=to)
        for path in paths
        for bucket, _, key in [path.partition("/")]
    }
    return send_jobs(REPLICATE, wanted, claim.store, catalogue, page.job)


@dataclass(frozen=True, slots=True)
class _Done:
    """What was done to an object. It has no outcome while a store takes no job: the others have done their part."""

    outcome: PageOutcome | None
    records: Records = field(default_factory=Records)


@dataclass(slots=True)
class _Writes:
    """A page that replicates or deletes."""

    request: PageRequest
    job: RunningJob
    page: Page
    fresh: FreshCopies | None
    seen: SeenVersions
    closed: list[Snooze] = field(default_factory=list)
    """Why objects had to wait: they stay in the page."""
    refused: list[tuple[PageObject, str]] = field(default_factory=list)
    """The objects that a store has refused, with the store. They stay in the page if it turns out to refuse all."""

    def do(self, part: Sequence[PageObject]) -> Iterator[_Done]:
        done: set[int] = set()
        for id_, fresh in self._replicate_fresh(part):
            done.add(id_)
            yield fresh
        for each in part:
            if each.id in done:
                continue
            self.job.heartbeat()
            yield self._done(each, self._replicate if self.request.verb == REPLICATE.kind else self._delete)

    def _done(self, each: PageObject, do: Callable[[PageObject, Records], str]) -> _Done:
        records = Records()
        try:
            return _Done(PageOutcome(each.id, each.path, each.size, do(each, records)), records)
        except Snooze as error:
            self.closed.append(error)
            return _Done(None, records)
        except ReadBackMismatch as error:  # another job would only write and read it again
            return _Done(PageOutcome(each.id, each.path, each.size, type(error).__name__, error.message), records)
        except (StorageError, OnHold) as error:  # it is tried again in a job of its own, which tells what is wrong
            if isinstance(error, StorageError) and is_refused(error):
                self.refused.append((each, error.store or ""))
                return _Done(None, records)
            return _Done(PageOutcome.leaves(each.id, each.path, each.size), records)

    def _replicate_fresh(self, part: Sequence[PageObject]) -> Iterator[tuple[int, _Done]]:
        """Yield the objects that were replicated without asking first, or failed at it.

        The others have to be asked for one by one.
        """
        if self.fresh is None or {each.store for each in self.closed} >= {*(self.request.to or ())}:
            return
        try:
            for fresh, data in self.fresh.read(part):
                with suppress(KeyTaken):
                    yield fresh.object.id, self._done(fresh.object, partial(self._write_fresh, fresh, data))
        except Snooze as error:  # of a source: another one may take the job
            logger.debug("%s", error)

    def _write_fresh(self, fresh: FreshObject, data: bytes, _: PageObject, records: Records) -> str:
        assert self.fresh is not None
        self.fresh.write(fresh, data, records)
        return "stored"

    def record(self, done: Sequence[_Done]) -> None:
        lost: dict[str, set[str]] = {}
        for store, names in (pair for each in done for pair in each.records.not_kept.items()):
            lost.setdefault(store, set()).update(names)
        group = Group(
            [each.outcome for each in done if each.outcome is not None],
            [row for each in done for row in each.records.verdicts],
            [copy for each in done for copy in each.records.finished],
            [copy for each in done for copy in each.records.deleted],
            [artifact for each in done for artifact in each.records.tombstoned],
            {store: sorted(names) for store, names in lost.items()},
        )
        self.page = self.job.catalogue.pages.record(self.page, group, now=clock.now())

    def _replicate(self, each: PageObject, records: Records) -> str:
        work = ArtifactJob(self.job, self.job.catalogue.artifact(each.bucket, each.key), records)
        return first_of(PLACED, [copy.outcome for copy in replicate_to(work, self.request.to or ())])

    def _delete(self, each: PageObject, records: Records) -> str:
        wanted = DeleteRequest(
            bucket=each.bucket,
            key=each.key,
            stores=self.request.stores,
            allow_last=self.request.allow_last,
            by=self.request.by,
            reason=self.request.reason,
        )
        own = {each.artifact_id} if self.request.lines is None else self.seen  # a line names a key and no version
        artifact = self.job.catalogue.artifacts.current(each.bucket, each.key)
        if artifact and artifact.id not in own:
            return KEPT
        done = delete_artifact(wanted, self.job, artifact, records)
        words: list[str] = [copy.outcome for copy in done.copies]
        if done.purge_after is not None and not done.unchanged:
            words = [DELETED[0]]
        return first_of(DELETED, words)
