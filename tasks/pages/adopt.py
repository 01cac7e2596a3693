"""Adopt the objects of a page: each is read once, in threads, and they are recorded in groups."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.pages.leaving_objects import send_jobs
from tasks.plan_listed_pages import lines_of
from worker import clock
from worker.artifacts.adoption import ReadObject, Unverifiable, adopted_before, read_to_adopt
from worker.artifacts.batch_lists import ListedAdoption
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.page_runner import in_another_order, out_of_time, work_on
from worker.artifacts.per_store import is_refused
from worker.catalogue import Artifact, Catalogue, Copy, Page, PageOutcome
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage.errors import Archived, IntegrityError, StorageError
from zot_artifact_client.contract import ADOPT, AdoptRequest, ClaimSelection, PageRequest

logger = logging.getLogger(__name__)

ADOPTED, ALREADY_THERE = "adopted", "already_there"
_JUDGED = (Unverifiable, Archived, IntegrityError)
"""What is wrong with the object itself. All objects of a bucket may be so, and a job of each would only repeat it."""


@dataclass(frozen=True, slots=True)
class ObjectToAdopt:
    """An object of a page. `id` is its id in the page; `size` that of the listing, 0 if it is not known."""

    id: int
    size: int
    request: AdoptRequest

    @property
    def where(self) -> tuple[str, str]:
        return self.request.bucket, self.request.key

    @property
    def path(self) -> str:
        return "/".join(self.where)


def adopt_page(request: PageRequest, job: RunningJob) -> Page:
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
    page = pages.get(job.id) or pages.begin(job.id, [each.id for each in objects])
    done = AdoptPage(job, page, store).run(objects)
    if request.claim is not None:
        _send([each for each in objects if each.path in done.left], name, job.catalogue, job.id)
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


def send_adoptions(page: Page, request: PageRequest, catalogue: Catalogue) -> int:
    """Send a job for each object that a dead page of a sweep has left undone, and return how many."""
    assert request.claim is not None
    objects = _orphans(request, request.claim, catalogue, page.job)
    undone = [each for each in objects if each.id in page.open or each.path in page.left]
    return _send(undone, request.claim.store, catalogue, page.job)


def _send(objects: Sequence[ObjectToAdopt], store: str, catalogue: Catalogue, page: str) -> int:
    wanted = {f"adopt {store} {each.path} {page}": each.request for each in objects}
    return send_jobs(ADOPT, wanted, store, catalogue, page)


@dataclass(slots=True)
class AdoptPage:
    """A page of objects of one store."""

    job: RunningJob
    page: Page
    store: LimitedStore
    refused: list[ObjectToAdopt] = field(default_factory=list)
    """The objects that the store has refused. They stay in the page if it turns out to refuse all of them."""
    _known: Mapping[tuple[str, str], Artifact] = field(default_factory=dict)
    _copies: Mapping[int, Mapping[str, Copy]] = field(default_factory=dict)

    def run(self, objects: Sequence[ObjectToAdopt]) -> Page:
        """Adopt the objects that have no outcome yet, and return the page after that.

        An object that is too large for a page, whose artifact another job is writing, or that could not be adopted,
        leaves the page. What is wrong with the object itself is its outcome, by the type of the error.

        Raises:
            Snooze: the store takes no job now; the outcomes so far are recorded.
            Requeue: there was no time for all objects; so they are.
        """
        still, settings = set(self.page.open), self.job.settings
        wanted = in_another_order([each for each in objects if each.id in still], self.job)
        small = [each for each in wanted if each.size <= settings.page.large]
        with locked(self.job, [each.where for each in small]) as granted:
            mine = [each for each in small if each.where in granted]
            left = {each.id for each in wanted} - {each.id for each in mine}
            self._save([PageOutcome.leaves(each.id, each.path, each.size) for each in wanted if each.id in left])
            artifacts = self.job.catalogue.artifacts
            self._known = artifacts.currents(each.where for each in mine)
            self._copies = artifacts.copies_of_all([artifact.id for artifact in self._known.values()])
            self.job.start(
                sum(each.size for each in mine), f"reading {counted(len(mine), 'object')} from {self.store.name}"
            )
            in_time = work_on(
                mine, self._read_part, self._record,
                threads=settings.page.threads, begin=1 if self.store.capabilities.local else None,
                seconds=settings.page.time.total_seconds(),
            )  # fmt: skip
        if self.refused:
            self.store.admit()
        self._save([PageOutcome.leaves(each.id, each.path, each.size) for each in self.refused])
        if not in_time:
            raise out_of_time(self.job)
        return self.page

    def _read_part(self, part: Sequence[ObjectToAdopt]) -> Iterator[tuple[PageOutcome, ReadObject | None]]:
        for each in part:
            self.job.heartbeat()
            try:
                yield self._read(each)
            except _JUDGED as error:
                yield PageOutcome(each.id, each.path, each.size, type(error).__name__, error.message), None
            except StorageError as error:  # it is tried again in a job of its own, which tells what is wrong
                logger.warning("%s leaves its page: %s", each.path, error)
                if is_refused(error):
                    self.refused.append(each)
                else:
                    yield PageOutcome.leaves(each.id, each.path, each.size), None

    def _read(self, each: ObjectToAdopt) -> tuple[PageOutcome, ReadObject | None]:
        request = each.request
        stat = self.store.stat_object(request.bucket, request.key, as_copy=True)
        if stat.size > self.job.settings.page.large:
            return PageOutcome.leaves(each.id, each.path, stat.size), None
        known = self._known.get(each.where)
        copy = self._copies.get(known.id, {}).get(self.store.name) if known else None
        if adopted_before(request, stat, known, copy) is not None:
            return PageOutcome(each.id, each.path, stat.size, ALREADY_THERE), None
        read = read_to_adopt(request, self.store, stat, known, self.job)
        return PageOutcome(each.id, each.path, stat.size, ADOPTED), read

    def _record(self, done: Sequence[tuple[PageOutcome, ReadObject | None]]) -> None:
        read = [(outcome, found) for outcome, found in done if found is not None]
        others = [outcome for outcome, found in done if found is None]
        self.page, artifacts = self.job.catalogue.pages.adopt(
            self.page, others, [(outcome, found.adoption) for outcome, found in read], now=clock.now()
        )
        for (_, found), artifact in zip(read, artifacts, strict=True):
            if artifact is not None:
                found.not_recorded(artifact)

    def _save(self, outcomes: Sequence[PageOutcome]) -> None:
        if outcomes:
            self.page, _ = self.job.catalogue.pages.adopt(self.page, outcomes, [], now=clock.now())
