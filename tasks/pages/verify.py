"""Verify the copies of a page: each is read once, and one that looks bad a second time at the end of the page."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import attrgetter
from shlex import quote

from tasks.pages.leaving_objects import begin_selected, leave
from worker import clock
from worker.artifacts.page_runner import GROUP, in_another_order, out_of_time, work_on
from worker.artifacts.page_selection import PageObject
from worker.artifacts.per_store import is_refused
from worker.artifacts.read_budget import take
from worker.artifacts.stored_digests import stored_sha256_of
from worker.artifacts.verify_copy import BAD, confirm_verdict, log_verdict, read_again_at, suspicion
from worker.artifacts.waiting_uploads import closed_stores
from worker.catalogue import AHEAD, BudgetState, Catalogue, Page, PageCopy, PageOutcome, Share, VerdictRow
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.jobs.task import child_id, send_child
from worker.limits.snooze import Snooze
from worker.settings import Settings
from worker.settings.budgets import Prices
from worker.settings.section_models import PageSettings
from worker.storage import Verdict, Verification
from zot_artifact_client.contract import VERIFY, ClaimSelection, PageRequest, Queue, VerifyRequest

logger = logging.getLogger(__name__)

_VERIFIED = Verdict.VERIFIED
"""To look a verdict up takes Python 100 ns, and each copy needs it."""
SUPERSEDED = "superseded"
"""The outcome of a copy that was replaced while the page ran: there is no verdict on it."""
WORST_FIRST = ("corrupt", "size_mismatch", "missing", "unreadable", "unverifiable", "archived", "verified", SUPERSEDED)


def verify_page(request: PageRequest, job: RunningJob) -> Page:
    """Verify the copies that the page claims for a sweep, or those of the objects of a batch."""
    return _verify_selected(request, job) if request.claim is None else _verify_claimed(request.claim, job)


def _verify_claimed(claim: ClaimSelection, job: RunningJob) -> Page:
    """Claim copies of a store that are due, unless an earlier attempt has claimed them, and verify them."""
    name = claim.store
    store, pages = job.stores[name], job.catalogue.pages
    store.admit()  # what is claimed and not read keeps other pages away from it
    page = pages.get(job.id) or claim_copies(claim, job)
    small, large, released = _fitting(pages.claimed_copies(page), job.settings.page)
    if released:
        page = pages.release(page, [copy.id for copy in released])
    _send(page, large)  # they stay claimed; sending again is idempotent
    page = leave(page, large, job.catalogue)
    job.start(sum(copy.size for copy in small), f"verifying {counted(len(small), 'copy')} in {name}")
    work = VerifyPage(job, page, [ObjectToVerify(copy.id, copy.path, copy.size, (copy,)) for copy in small])
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


def _verify_selected(request: PageRequest, job: RunningJob) -> Page:
    """Verify the copies of the objects of a batch. Those whose copies cannot all be asked for here leave the page."""
    page, selected = begin_selected(request, job)
    objects, others = _with_copies(request, selected, job)
    page = leave(page, others, job.catalogue)
    job.start(sum(each.size * len(each.copies) for each in objects), f"verifying {counted(len(objects), 'object')}")
    work = VerifyPage(job, page, objects)
    done = work.run()
    if not work.in_time:
        raise out_of_time(job)
    return done


def _with_copies(
    request: PageRequest, selected: Sequence[PageObject], job: RunningJob
) -> "tuple[list[ObjectToVerify], list[PageObject]]":
    """Return the objects with their copies and the verdicts of an earlier attempt, and those that lack a copy here."""
    copies = job.catalogue.pages.copies_of([each.artifact_id for each in selected if each.artifact_id is not None])
    paths = [(each.bucket, each.key) for each in selected] if job.fence > 1 else []  # at a first attempt there are none
    before = job.catalogue.pages.verdicts_by(job.id, paths)
    objects, others = list[ObjectToVerify](), list[PageObject]()
    for each in selected:
        assert each.artifact_id is not None
        of = copies.get(each.artifact_id, [])
        if request.stores is not None:
            of = [copy for copy in of if copy.store in request.stores]
        complete = request.stores is None or len(of) == len(request.stores)
        if not of or not complete or any(copy.store not in job.stores for copy in of):
            others.append(each)
            continue
        known = {copy.id: before.get((copy.store, copy.bucket, copy.key, copy.version)) for copy in of}
        words = {id_: word for id_, word in known.items() if word is not None}
        objects.append(ObjectToVerify(each.id, each.path, each.size, of, words))
    return objects, others


def send_verifications(page: Page, _request: PageRequest, catalogue: Catalogue) -> int:
    """Send a job for each copy that a dead page of a sweep has left undone, and return how many."""
    return _send(page, catalogue.pages.claimed_copies(page))


def _send(page: Page, copies: Sequence[PageCopy]) -> int:
    for copy in copies:
        wanted = VerifyRequest(bucket=copy.bucket, key=copy.key, stores=(copy.store,), version=copy.version)
        id_ = child_id(f"verify {copy.id} {page.claimed_until}")
        send_child(VERIFY, wanted, id_=id_, parent=page.job, queue=Queue.SWEEP)
    return len(copies)


@dataclass(slots=True)
class ObjectToVerify:
    """An object of a page: its copies, and what is known of those that were read. `id` is its id in the page."""

    id: int
    path: str
    size: int
    copies: Sequence[PageCopy]
    words: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    """The verdict on each copy, by the copy's id, with the detail of a bad one."""

    @property
    def outcome(self) -> PageOutcome:
        """Return the worst verdict on any copy, and the details of the bad ones."""
        word, _ = min(self.words.values(), key=_badness) if len(self.words) > 1 else next(iter(self.words.values()))
        if word in {"verified", SUPERSEDED}:
            return PageOutcome(self.id, self.path, self.size, word)
        bad = [(copy.store, *self.words[copy.id]) for copy in self.copies]
        failure = "; ".join(f"{store}: {detail or said}" for store, said, detail in bad if said != "verified")
        return PageOutcome(self.id, self.path, self.size, word, failure)


def _badness(said: tuple[str, str | None]) -> int:
    return WORST_FIRST.index(said[0])


class VerifyPage:
    """A page of copies that are read and compared with the recorded digests."""

    def __init__(self, job: RunningJob, page: Page, objects: Sequence[ObjectToVerify]) -> None:
        self._job = job
        self._recorder = job.catalogue.pages.recorder(page)
        self._all = objects
        self._objects = {copy.id: each for each in objects for copy in each.copies}
        self._closed: dict[str, Snooze] = {}
        """The stores that take no job now."""
        self._suspects: list[PageCopy] = []
        """The copies that looked bad at their first read."""
        self._refused: list[tuple[PageCopy, Verification]] = []
        """The reads that a store has refused; it may turn out to refuse all."""
        self._time = job.settings.page.time.total_seconds()
        self.in_time = True
        """Whether there was time for all copies."""

    def run(self) -> Page:
        """Read all copies without a verdict and record one for each; return the page after that.

        Raises:
            Snooze: a store takes no job now; the copies that were read have their verdicts.
        """
        objects = in_another_order(self._all, self._job)
        copies = [copy for each in objects for copy in each.copies if copy.id not in each.words]
        copies.sort(key=attrgetter("store"))  # stable: keys stay in order
        threads, begin = self._threads_for(copies)
        read_all = partial(work_on, threads=threads, begin=begin, reads_only=True, seconds=self._time)
        with self._recorder:
            self.in_time = read_all(copies, self._read, self._record_first)
            self._record_refused()
            order = {id_: number for number, id_ in enumerate(self._objects)}
            self._suspects.sort(key=lambda copy: order[copy.id])
            # They have time of their own, so that a page of bad copies ends some of them whatever that takes.
            self.in_time &= read_all(self._suspects, self._read_again, self._record)
        if self._closed:
            raise min(self._closed.values(), key=lambda error: error.seconds)
        return self._recorder.page

    def _threads_for(self, copies: Sequence[PageCopy]) -> tuple[int, int]:
        """Return how many threads read these copies, at most and at first."""
        kinds = [self._job.stores[name].capabilities for name in {copy.store for copy in copies}]
        threads, ahead = self._job.settings.page.threads, min((kind.reads_ahead for kind in kinds), default=1)
        # More threads would only take Python's lock from each other, until objects take so long that each one waits.
        # Threads that ask ahead are fewer at first: together they have a request open for each thread allowed.
        return threads, 1 if all(kind.local for kind in kinds) else max(2, threads // ahead)

    def _record_first(self, seen: Sequence[tuple[PageCopy, Verification]]) -> None:
        """Record first reads, but no bad one: such a copy is suspect until its second read."""
        if all(each.verdict is _VERIFIED for _, each in seen):
            self._record(seen)
            return
        self._refused.extend(each for each in seen if is_refused(each[1].error))
        seen = [each for each in seen if not is_refused(each[1].error)]
        self._record([(copy, each) for copy, each in seen if each.verdict not in BAD])
        if bad := [(copy, each) for copy, each in seen if each.verdict in BAD]:
            self._suspects.extend(copy for copy, _ in bad)
            found = [suspicion(copy, copy.store, each, self._job.id) for copy, each in bad]
            self._job.catalogue.findings.see(found, now=clock.now())

    def _record_refused(self) -> None:
        """Record that copies could not be read, but not where a store refuses all that it is asked: it is closed."""
        stores = {copy.store for copy, _ in self._refused} - {*self._closed}
        self._closed |= closed_stores(stores, self._job.stores)
        told = [each for each in self._refused if each[0].store not in self._closed]
        for start in range(0, len(told), GROUP):
            self._record(told[start : start + GROUP])

    def _read(self, part: Sequence[PageCopy]) -> Iterator[tuple[PageCopy, Verification]]:
        for name, copies in groupby(part, attrgetter("store")):
            if name in self._closed:
                continue
            of_store = list(copies)
            wanted = [(copy.bucket, copy.key, copy.digest) for copy in of_store]
            try:
                yield from zip(of_store, self._job.stores[name].verify_objects(wanted), strict=True)
            except Snooze as error:
                if error.store is None:
                    raise
                self._closed[error.store] = error  # the copies in other stores are read
        self._job.advance(sum(copy.size for copy in part))

    def _read_again(self, part: Sequence[PageCopy]) -> Iterator[tuple[PageCopy, Verification | None]]:
        for copy in part:
            self._job.heartbeat()
            yield copy, self._confirm(copy)

    def _confirm(self, copy: PageCopy) -> Verification | None:
        """Read a suspect copy a second time; None if it was replaced meanwhile."""
        artifacts = self._job.catalogue.artifacts
        artifact = artifacts.version(copy.bucket, copy.key, copy.version)
        assert artifact is not None  # the catalogue keeps every version, and every copy
        known = artifacts.copies(artifact)[copy.store]
        seen = confirm_verdict(self._job, artifact, known)
        if seen is not None and seen.verdict not in BAD:
            what = "%s: %s is %s at the second read, and was bad at the first one"
            logger.warning(what, copy.store, copy.path, seen.verdict)
        return seen

    def _record(self, seen: Sequence[tuple[PageCopy, Verification | None]]) -> None:
        if not seen:
            return
        now = clock.now()
        outcomes, verdicts = [], []
        for copy, each in seen:
            of = self._objects[copy.id]
            if each is None:
                self._job.catalogue.findings.end_suspicion(copy.store, copy.bucket, copy.key, now=now)
                of.words[copy.id] = (SUPERSEDED, None)
            else:
                verdicts.append(self._verdict(copy, each, now))
                if each.verdict is _VERIFIED and len(of.copies) == 1:
                    outcomes.append(PageOutcome(of.id, of.path, of.size, "verified"))
                    continue
                of.words[copy.id] = (each.verdict.value, each.detail)
            if len(of.words) == len(of.copies):
                outcomes.append(of.outcome)
        self._recorder.add(outcomes, verdicts, now=now)

    def _verdict(self, copy: PageCopy, seen: Verification, now: datetime) -> VerdictRow:
        retry_at = None
        if seen.verdict is not _VERIFIED:
            log_verdict(copy.store, copy.path, seen)
            retry_at = read_again_at(seen.verdict, self._job.settings.sweep.verify.period_of(copy.store), now)
        return VerdictRow(
            copy.id, self._job.id, copy.store, copy.bucket, copy.key, copy.version, str(seen.verdict),
            copy.sha256, seen.sha256, seen.size, seen.detail, seen.version, retry_at,
            self._stored_sha256(copy, seen), seen.version == copy.tag,
        )  # fmt: skip

    def _stored_sha256(self, copy: PageCopy, seen: Verification) -> str | None:
        if seen.stored_sha256 is None or seen.stored_sha256 == copy.sha256:
            return seen.stored_sha256
        evidence = self._job.catalogue.artifacts.evidence_of(copy.id)
        return stored_sha256_of(self._job.stores, copy, copy.store, evidence, seen)
