"""Verify the copies of a page: each is read once, and one that looks bad a second time at the end of the page."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import attrgetter

from worker import clock
from worker.artifacts.artifact_copies import BAD, ArtifactJob, asked_again_at, suspicion
from worker.artifacts.page_runner import GROUP, in_another_order, work_on
from worker.artifacts.per_store import is_refused
from worker.artifacts.stored_digests import stored_sha256_of
from worker.artifacts.waiting_uploads import closed_stores
from worker.catalogue import Page, PageCopy, PageOutcome, VerdictRow
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze
from worker.storage import Verdict, Verification

logger = logging.getLogger(__name__)

_VERIFIED = Verdict.VERIFIED
"""To look a verdict up takes Python 100 ns, and each copy needs it."""
SUPERSEDED = "superseded"
"""The outcome of a copy that was replaced while the page ran: there is no verdict on it."""
WORST_FIRST = ("corrupt", "size_mismatch", "missing", "unreadable", "unverifiable", "archived", "verified", SUPERSEDED)


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
        suspects: list[PageCopy] = []
        refused: list[tuple[PageCopy, Verification]] = []

        def record(seen: Sequence[tuple[PageCopy, Verification]]) -> None:
            if all(each.verdict is _VERIFIED for _, each in seen):
                self._record(seen)
                return
            refused.extend(each for each in seen if is_refused(each[1].error))
            seen = [each for each in seen if not is_refused(each[1].error)]
            bad = [(copy, each) for copy, each in seen if each.verdict in BAD]
            if not bad:
                self._record(seen)
                return
            suspects.extend(copy for copy, _ in bad)
            self._record([(copy, each) for copy, each in seen if each.verdict not in BAD])
            found = [suspicion(copy, copy.store, each, self._job.id) for copy, each in bad]
            self._job.catalogue.findings.see(found, now=clock.now())

        by_store = sorted(copies, key=attrgetter("store"))  # stable: keys stay in order
        kinds = [self._job.stores[name].capabilities for name in {copy.store for copy in copies}]
        threads, ahead = self._job.settings.page.threads, min((kind.reads_ahead for kind in kinds), default=1)
        # More threads would only take Python's lock from each other, until objects take so long that each one waits.
        # Threads that ask ahead are fewer at first: together they have a request open for each thread allowed.
        begin = 1 if all(kind.local for kind in kinds) else max(2, threads // ahead)
        with self._recorder:
            read_all = partial(work_on, threads=threads, begin=begin, reads_only=True, seconds=self._time)
            in_time = read_all(by_store, self._read, record)
            self._closed |= closed_stores({copy.store for copy, _ in refused} - {*self._closed}, self._job.stores)
            told = [each for each in refused if each[0].store not in self._closed]
            for start in range(0, len(told), GROUP):
                self._record(told[start : start + GROUP])
            order = {id_: number for number, id_ in enumerate(self._objects)}
            suspects.sort(key=lambda copy: order[copy.id])
            # They have time of their own, so that a page of bad copies ends some of them whatever that takes.
            self.in_time = read_all(suspects, self._read_again, self._record) and in_time
        if self._closed:
            raise min(self._closed.values(), key=lambda error: error.seconds)
        return self._recorder.page

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
        seen = ArtifactJob(self._job, artifact).confirm(known)
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
            level = logging.INFO if seen.verdict is Verdict.ARCHIVED else logging.ERROR
            logger.log(level, "%s: %s is %s: %s", copy.store, copy.path, seen.verdict, seen.detail)
            retry_at = asked_again_at(seen.verdict, self._job.settings.sweep.verify.period_of(copy.store), now)
        return VerdictRow(
            copy.id, self._job.id, copy.store, copy.bucket, copy.key, copy.version, str(seen.verdict),
            copy.digest.sha256, seen.sha256, seen.size, seen.detail, seen.version, retry_at,
            self._stored_sha256(copy, seen), seen.version == copy.tag,
        )  # fmt: skip

    def _stored_sha256(self, copy: PageCopy, seen: Verification) -> str | None:
        if seen.stored_sha256 is None or seen.stored_sha256 == copy.digest.sha256:
            return seen.stored_sha256
        evidence = self._job.catalogue.artifacts.evidence_of(copy.id)
        return stored_sha256_of(self._job.stores, copy, copy.store, evidence, seen)
