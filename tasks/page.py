"""Page: do one verb to many objects in one job, which is the part of a batch or of a sweep that is done at once."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from shlex import quote
from typing import Any, TypeVar
from uuid import NAMESPACE_OID, uuid5

from celery import current_app

from tasks.delete import KEPT, delete_artifact
from tasks.plan_listed_pages import lines_of
from tasks.replicate import is_begun, replicate_to
from worker import clock
from worker.artifacts.artifact_copies import ArtifactJob, ReadBackMismatch, Records
from worker.artifacts.batch_lists import ListedAdoption, ListedFile
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.page_adopt import AdoptPage, ObjectToAdopt
from worker.artifacts.page_replicate import FreshCopies, FreshObject
from worker.artifacts.page_runner import in_another_order, out_of_time, work_on
from worker.artifacts.page_selection import PageObject, open_objects, seen_by
from worker.artifacts.page_upload import UploadPage, stores_of
from worker.artifacts.page_verify import ObjectToVerify, VerifyPage
from worker.artifacts.per_store import DELETED, PLACED, first_of, is_refused
from worker.artifacts.read_budget import take
from worker.artifacts.verification_log_head import WrittenLog
from worker.artifacts.wait_for_delete_approval import check_page
from worker.artifacts.waiting_uploads import closed_stores
from worker.catalogue import (
    AHEAD,
    Artifact,
    BudgetState,
    Catalogue,
    CatalogueError,
    Group,
    OnHold,
    Page,
    PageCopy,
    PageOutcome,
    SeenVersions,
    Share,
)
from worker.context import Context
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.jobs.send_sweep_pages import BROKER_ERRORS
from worker.jobs.task import artifact_task, send_child
from worker.limits.snooze import Snooze, seconds_to_pause
from worker.settings import Settings
from worker.settings.budgets import Prices
from worker.settings.section_models import PageSettings
from worker.storage.errors import StorageError
from zot_artifact_client.contract import (
    ADOPT,
    BATCH,
    PAGE,
    REPLICATE,
    UPLOAD,
    VERIFY,
    AdoptRequest,
    ClaimSelection,
    DeleteRequest,
    PageFailure,
    PageRequest,
    PageResult,
    Queue,
    ReplicateRequest,
    TaskSpec,
    VerifyRequest,
)
from zot_artifact_client.tracing import trace_headers

logger = logging.getLogger(__name__)
SentT = TypeVar("SentT", AdoptRequest, ReplicateRequest)

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
    if request.verb == UPLOAD.kind:
        done = _upload_listed(request, job)
    elif request.verb == ADOPT.kind:
        done = _adopt_selected(request, job)
    elif request.verb == VERIFY.kind and request.claim is not None:
        done = _verify_claimed(request.claim, job)
    elif request.verb == VERIFY.kind:
        done = _verify_selected(request, job)
    elif request.claim is not None:
        done = _replicate_claimed(request, request.claim, job)
    else:
        done = _write_selected(request, job)
    if request.verb in {VERIFY.kind, ADOPT.kind}:
        job.after_end.append(WrittenLog(job.settings.broker_file.parent, job.catalogue).note_later())
    return _result(request, done)


def _begin(request: PageRequest, job: RunningJob) -> tuple[Page, list[PageObject]]:
    """Return the progress of the page, and its objects without an outcome; those too large for a page leave it."""
    pages = job.catalogue.pages
    found = pages.get(job.id)
    objects = open_objects(request, found, job, job.parent or job.id)
    found = found or pages.begin(job.id, [each.id for each in objects])
    small: list[PageObject] = []
    others: list[PageObject] = []
    for each in objects:
        fits = each.artifact_id is not None and each.size <= job.settings.page.large
        (small if fits else others).append(each)
    return _leave(found, others, job.catalogue), small


def _leave(found: Page, objects: Sequence[PageObject] | Sequence[PageCopy], catalogue: Catalogue) -> Page:
    """Record that objects leave the page; a batch sends their jobs when it counts the page."""
    if not objects:
        return found
    left = [PageOutcome.leaves(each.id, each.path, each.size) for each in objects]
    return catalogue.pages.record(found, Group(left), now=clock.now())


# Upload


def _upload_listed(request: PageRequest, job: RunningJob) -> Page:
    """Upload the files of some lines of an upload list."""
    for name in request.stores or ():
        job.stores[name]  # raises UnknownStore
    pages, files = job.catalogue.pages, lines_of(request, ListedFile, job, job.id)
    found = pages.get(job.id)
    if found is None:
        job.stores.admitting({name for of in stores_of(request, files, job) for name in of})
        found = pages.begin(job.id, range(len(files)))
    job.start(sum(files[number].size for number in found.open), f"uploading {counted(len(found.open), 'file')}")
    return UploadPage(job, found, request).run(files)


# Adopt


def _adopt_selected(request: PageRequest, job: RunningJob) -> Page:
    """Adopt the objects of some lines of a list, or the orphans that a sweep has found for this page."""
    [name] = request.stores or ((request.claim.store,) if request.claim else ())
    store, pages = job.stores[name], job.catalogue.pages
    store.admit()
    if request.claim is not None:
        objects = _orphans(request, request.claim, job.catalogue, job.id)
    else:
        lines = enumerate(lines_of(request, ListedAdoption, job, job.id))
        objects = [
            _to_adopt(id_, line.bucket, line.key, line.size, request, store=name, sha256=line.sha256)
            for id_, line in lines
        ]
    found = pages.get(job.id) or pages.begin(job.id, [each.id for each in objects])
    done = AdoptPage(job, found, store).run(objects)
    if request.claim is not None:
        _send_adoptions([each for each in objects if each.path in done.left], name, job.catalogue, job.id)
    return done


def _to_adopt(
    id_: int, bucket: str, key: str, size: int, request: PageRequest, *, store: str, sha256: str | None = None
) -> ObjectToAdopt:
    wanted = AdoptRequest(bucket=bucket, key=key, store=store, sha256=sha256, first_read=request.first_read)
    return ObjectToAdopt(id_, size, wanted)


def _orphans(request: PageRequest, claim: ClaimSelection, catalogue: Catalogue, page: str) -> list[ObjectToAdopt]:
    """Return the objects whose findings name the job of the page."""
    return [
        _to_adopt(
            each.id, each.bucket or "", each.key or "", int(each.evidence.get("listed_size") or 0), request,
            store=claim.store,
        )
        for each in catalogue.findings.orphans_of(page, claim.store)
    ]  # fmt: skip


def _send_adoptions(objects: Sequence[ObjectToAdopt], store: str, catalogue: Catalogue, page: str) -> int:
    wanted = {f"adopt {store} {each.path} {page}": each.request for each in objects}
    return _send_jobs(ADOPT, wanted, store, catalogue, page)


def _send_jobs(
    spec: TaskSpec[SentT, Any], requests: Mapping[str, SentT], store: str, catalogue: Catalogue, page: str
) -> int:
    """Send jobs, by what their ids are made of, for objects of a page of a sweep; sending again is idempotent.

    The findings about the objects name these jobs from then on.
    """
    jobs: dict[tuple[str, str], str] = {}
    for name, request in requests.items():
        jobs[request.bucket, request.key] = id_ = str(uuid5(NAMESPACE_OID, name))
        send_child(spec, request, id_=id_, parent=page, queue=Queue.SWEEP)
    catalogue.findings.hand_over(page, store, jobs, now=clock.now())
    return len(jobs)


# Verify


def _verify_claimed(claim: ClaimSelection, job: RunningJob) -> Page:
    """Claim copies of a store that are due, unless an earlier attempt has claimed them, and verify them."""
    name = claim.store
    store, pages = job.stores[name], job.catalogue.pages
    store.admit()  # what is claimed and not read keeps other pages away from it
    found = pages.get(job.id)
    if found is None:
        found = claim_copies(claim, job)
    small, large, released = _fitting(pages.claimed_copies(found), job.settings.page)
    if released:
        found = pages.release(found, [copy.id for copy in released])
    _send_verifications(found, large)  # they stay claimed; sending again is idempotent
    found = _leave(found, large, job.catalogue)
    job.start(sum(copy.size for copy in small), f"verifying {counted(len(small), 'copy')} in {name}")
    objects = [ObjectToVerify(copy.id, copy.path, copy.size, (copy,)) for copy in small]
    work = VerifyPage(job, found, objects)
    done = work.run()
    if work.in_time:
        return done
    logger.warning("%s: page %s ran for %s; %d copies stay due", name, job.id, job.settings.page.time, len(done.open))
    return pages.release(done, done.open)


def claim_copies(claim: ClaimSelection, job: RunningJob) -> Page:
    """Claim the copies of a page: as many as the planner has counted, due or not; without a count, those that are due.

    What the budget of the store does not allow is released. Its share is counted in the transaction of the claim.
    """
    settings, sweep, now = job.settings, job.settings.sweep.verify, clock.now()
    share = partial(_share, claim.store, settings, now) if claim.store in settings.budgets else None
    return job.catalogue.pages.claim_due(
        job.id, claim.store, period=sweep.period_of(claim.store), first_read=sweep.first_read_of(claim.store), now=now,
        until=now + sweep.claim, limit=min(sweep.page, claim.most or sweep.page), ahead=AHEAD if claim.most else 1,
        share=share,
    )  # fmt: skip


def _share(
    name: str, settings: Settings, now: datetime, state: BudgetState, claimed: Sequence[PageCopy]
) -> tuple[BudgetState, Share]:
    """Return the state of the budget of a store after a page has taken its share, and which copies that is.

    A copy that no day or month has room for is due again later. Otherwise it is the longest overdue one at each claim,
    and keeps all others from being read.
    """
    budget, prices, verify = settings.budgets[name], settings.prices.get(name, Prices()), settings.sweep.verify
    never = [copy for copy in claimed if not budget.can_hold(copy.size, prices)]
    for copy in never:
        logger.error(
            "%s: %s is not verified: its %d bytes are more than budgets.%s allows in a whole day or month; "
            "raise it, or run `zot-artifacts verify %s`",
            name, copy.path, copy.size, name, quote(copy.path),
        )  # fmt: skip
    copies = [copy for copy in claimed if budget.can_hold(copy.size, prices)]
    sizes = [copy.size for copy in copies]
    state, allowed = take(state, sizes, budget, prices, now, every=verify.every)
    read = {copy.id for copy in copies[:allowed]}
    return state, Share(read, [copy.id for copy in never], now + verify.period_of(name) / 10)


def _fitting(copies: Sequence[PageCopy], most: PageSettings) -> tuple[list[PageCopy], list[PageCopy], list[PageCopy]]:
    """Return the copies that the page reads, those that are too large for any page, and those that are too many."""
    small: list[PageCopy] = []
    large: list[PageCopy] = []
    released: list[PageCopy] = []
    total = 0
    for copy in copies:
        if copy.size > most.large:
            large.append(copy)
        elif small and total + copy.size > most.size:
            released.append(copy)
        else:
            small.append(copy)
            total += copy.size
    return small, large, released


def _send_verifications(found: Page, copies: Sequence[PageCopy]) -> int:
    for copy in copies:
        wanted = VerifyRequest(bucket=copy.bucket, key=copy.key, stores=(copy.store,), version=copy.version)
        id_ = uuid5(NAMESPACE_OID, f"verify {copy.id} {found.claimed_until}")
        send_child(VERIFY, wanted, id_=str(id_), parent=found.job, queue=Queue.SWEEP)
    return len(copies)


def _verify_selected(request: PageRequest, job: RunningJob) -> Page:
    found, selected = _begin(request, job)
    copies = job.catalogue.pages.copies_of([each.artifact_id for each in selected if each.artifact_id is not None])
    paths = [(each.bucket, each.key) for each in selected] if job.fence > 1 else []  # at a first attempt there are none
    before = job.catalogue.pages.verdicts_by(job.id, paths)
    objects, leaving = [], []
    for each in selected:
        assert each.artifact_id is not None
        of = copies.get(each.artifact_id, [])
        if request.stores is not None:
            of = [copy for copy in of if copy.store in request.stores]
        complete = request.stores is None or len(of) == len(request.stores)
        if not of or not complete or any(copy.store not in job.stores for copy in of):
            leaving.append(each)
            continue
        known = {copy.id: before.get((copy.store, copy.bucket, copy.key, copy.version)) for copy in of}
        words = {id_: word for id_, word in known.items() if word is not None}
        objects.append(ObjectToVerify(each.id, each.path, each.size, of, words))
    found = _leave(found, leaving, job.catalogue)
    job.start(sum(each.size * len(each.copies) for each in objects), f"verifying {counted(len(objects), 'object')}")
    work = VerifyPage(job, found, objects)
    done = work.run()
    if not work.in_time:
        raise out_of_time(job)
    return done


# Replicate and delete


@dataclass(frozen=True, slots=True)
class _Done:
    """What was done to an object. It has no outcome while a store takes no job: the others have done their part."""

    outcome: PageOutcome | None
    records: Records = field(default_factory=Records)


class _AskFirst(Exception):
    """Something is under the key of an object."""


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
                with suppress(_AskFirst):
                    yield fresh.object.id, self._done(fresh.object, partial(self._write_fresh, fresh, data))
        except Snooze as error:  # of a source: another one may take the job
            logger.debug("%s", error)

    def _write_fresh(self, fresh: FreshObject, data: bytes, _: PageObject, records: Records) -> str:
        assert self.fresh is not None
        if not self.fresh.write(fresh, data, records):
            raise _AskFirst
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
        work = ArtifactJob(self.job, self.job.artifact(each.bucket, each.key), records)
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
        newer: list[Artifact] = []

        def is_own(found: Artifact) -> bool:
            newer.extend([found] if found.id not in own else [])
            return not newer

        done = delete_artifact(wanted, self.job, records, wanted=is_own)
        if newer:
            return KEPT
        words: list[str] = [copy.outcome for copy in done.copies]
        if done.purge_after is not None and not done.unchanged:
            words = [DELETED[0]]
        return first_of(DELETED, words)


def _replicate_claimed(request: PageRequest, claim: ClaimSelection, job: RunningJob) -> Page:
    """Replicate or repair what the sweep has claimed for this page; what fails is sent as a job of its own."""
    found = job.catalogue.pages.get(job.id)
    if found is None:
        return Page(job.id, None, ())  # it has ended before
    done = _write_selected(request, job)
    _send_replications(done, done.left, claim, job.catalogue)
    return done


def _send_replications(found: Page, paths: Sequence[str], claim: ClaimSelection, catalogue: Catalogue) -> int:
    to = (claim.store,)
    wanted = {
        f"replicate {path} {to} {found.claimed_until}": ReplicateRequest(bucket=bucket, key=key, to=to)
        for path in paths
        for bucket, _, key in [path.partition("/")]
    }
    return _send_jobs(REPLICATE, wanted, claim.store, catalogue, found.job)


def _write_selected(request: PageRequest, job: RunningJob) -> Page:
    """Replicate or delete the objects that no other job writes to; the others leave the page."""
    job.stores.admitting(request.to or ())  # no source is read for targets that take no job
    found, objects = _begin(request, job)
    with locked(job, [(each.bucket, each.key) for each in objects]) as granted:
        found = _leave(found, [each for each in objects if (each.bucket, each.key) not in granted], job.catalogue)
        mine = [each for each in objects if (each.bucket, each.key) in granted]
        if request.claim is not None:
            mine = _still_begun(request.claim.store, job.catalogue, mine)
        mine = [*in_another_order(mine, job)]
        job.start(sum(each.size for each in mine), f"{request.verb}: {counted(len(mine), 'object')}")
        fresh = _fresh_copies(request, job, mine) if request.verb == REPLICATE.kind else None
        seen = seen_by(job.catalogue.batches.get(job.parent or job.id))
        work = _Writes(request, job, found, fresh, seen)
        most, seconds = job.settings.page.threads, job.settings.page.time.total_seconds()
        in_time = work_on(mine, work.do, work.record, threads=most, seconds=seconds)
    if closed := [*work.closed, *closed_stores({store for _, store in work.refused}, job.stores).values()]:
        raise min(closed, key=lambda error: error.seconds)
    done = _leave(work.page, [each for each, _ in work.refused], job.catalogue)
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
        if request.verb == VERIFY.kind:
            sent += _send_verifications(found, catalogue.pages.claimed_copies(found))
        elif request.verb == ADOPT.kind:
            objects = _orphans(request, request.claim, catalogue, found.job)
            undone = [each for each in objects if each.id in found.open or each.path in found.left]
            sent += _send_adoptions(undone, request.claim.store, catalogue, found.job)
        else:
            paths = [f"{each.bucket}/{each.key}" for each in catalogue.artifacts.listed_by_ids(found.open)]
            sent += _send_replications(found, [*paths, *found.left], request.claim, catalogue)
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
