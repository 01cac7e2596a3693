"""Upload the files of a page: each is read and hashed once, and recorded and written in groups.

While one group is written to the stores, the files of the next are read. Each group is three steps: one transaction
records the versions, the stores write, and one transaction records copies and outcomes. A page that is delivered again
does the objects without an outcome; what a killed attempt had written is found by its digest.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tasks.plan_listed_pages import lines_of
from worker import clock
from worker.artifacts.artifact_copies import ArtifactJob, ReadBackMismatch, confirmed_after
from worker.artifacts.batch_lists import ListedFile
from worker.artifacts.kept_beside_bytes import kept_beside, not_kept
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.page_runner import GROUP, in_another_order, out_of_time
from worker.artifacts.per_store import PLACED, check_beside_bytes, first_of, is_refused, most_retryable
from worker.artifacts.sources import open_source
from worker.artifacts.waiting_uploads import closed_stores, lacking
from worker.catalogue import Artifact, FinishedCopy, Group, NewVersion, Page, PageOutcome, Recorded, Superseded
from worker.counted import counted
from worker.jobs.running_job import RunningJob
from worker.jobs.upload_checkpoint import CopyCheckpoint
from worker.limits.limited_store import LimitedStore
from worker.limits.refusals import REFUSED
from worker.limits.snooze import Snooze
from worker.storage import ObjectStat
from worker.storage.driver import HashedBytes, SmallPut
from worker.storage.errors import AlreadyExists, PermanentError, SizeMismatch, StorageError
from worker.storage.integrity.manifest import CHUNK_SIZE
from worker.storage.transfer.do_in_threads import begin_all, do_all
from zot_artifact_client.contract import PageRequest

logger = logging.getLogger(__name__)

LARGEST = CHUNK_SIZE
"""Bytes of a file that is read into memory. Its digest is its manifest."""
_GROUP_SIZE = 64 << 20
"""Most bytes of a group. Two groups are in memory at a time."""


class SourceChanged(PermanentError):
    """A file has changed since the directory was listed."""


_FINAL = (SourceChanged, Superseded, ReadBackMismatch)
"""A job of its own would upload what was not listed, would give way as well, or would write the same bytes again."""


def upload_page(request: PageRequest, job: RunningJob) -> Page:
    """Upload the files of some lines of an upload list."""
    for name in request.stores or ():
        job.stores[name]  # raises UnknownStore
    pages, files = job.catalogue.pages, lines_of(request, ListedFile, job, job.id)
    page = pages.get(job.id)
    if page is None:
        job.stores.admitting({name for of in stores_of(request, files, job) for name in of})
        page = pages.begin(job.id, range(len(files)))
    job.start(sum(files[number].size for number in page.open), f"uploading {counted(len(page.open), 'file')}")
    return UploadPage(job, page, request).run(files)


@dataclass(slots=True, eq=False)
class _Item:
    """A file of the page, and how far its upload is."""

    number: int
    file: ListedFile
    stores: tuple[str, ...]
    content: HashedBytes | None = None
    artifact: Artifact | None = None
    fresh: bool = False
    written: dict[str, ObjectStat] = field(default_factory=dict)
    outcomes: list[str] = field(default_factory=list)
    error: Exception | None = None
    """Why it could not be read, or be recorded as a version: no store is written to."""
    failed: dict[str, StorageError] = field(default_factory=dict)
    """By store, why it did not take its copy; the others take theirs."""
    waits: bool = False
    """A store takes no job now: the file stays in the page, and has its copies in the other stores."""

    @property
    def where(self) -> tuple[str, str]:
        return self.file.bucket, self.file.key

    @property
    def path(self) -> str:
        return "/".join(self.where)

    @property
    def decisive_error(self) -> Exception | None:
        """Return the error that decides how the file goes on, None if there is none."""
        return self.error or (most_retryable(list(self.failed.values())) if self.failed else None)

    def end(self) -> PageOutcome:
        """Return what the page records of the file, and log why one that failed leaves it."""
        error = self.decisive_error
        if isinstance(error, _FINAL):
            return PageOutcome(self.number, self.path, self.file.size, "failed", str(error))
        if error is not None:  # it is tried again in a job of its own, which tells what is wrong
            logger.warning("%s leaves its page: %s", self.path, error)
            return PageOutcome.leaves(self.number, self.path, self.file.size)
        return PageOutcome(self.number, self.path, self.file.size, first_of(PLACED, self.outcomes))

    def note(self, store: str, result: ObjectStat | StorageError) -> None:
        """Note the result of the write of a new object; where a key is taken, the store still lacks its copy."""
        if isinstance(result, ObjectStat):
            self.written[store] = result
            self.outcomes.append("stored")
        elif not isinstance(result, AlreadyExists):  # what is there may be what a killed attempt wrote
            self.failed[store] = result

    def lacks(self, store: str) -> bool:
        """Return whether a store has neither taken nor refused its copy yet."""
        return store not in self.written and store not in self.failed


@dataclass(slots=True)
class UploadPage:
    """A page of files for the stores that its request names, or for those of the placement rules."""

    job: RunningJob
    page: Page
    request: PageRequest
    in_time: bool = True
    """Whether there was time for all files."""
    closed: dict[str, Snooze] = field(default_factory=dict)
    """The stores that take no job now."""
    not_kept: dict[str, list[str]] = field(default_factory=dict)
    """By store, what it does not keep beside the bytes: all files of the page have the same, so that one tells."""
    refused: list[_Item] = field(default_factory=list)
    """The files that a store has refused. They stay in the page if it turns out to refuse all of them."""

    def run(self, files: Sequence[ListedFile]) -> Page:
        """Upload the files that have no outcome yet, and return the page after that.

        A file that is too large for memory, whose key another job is writing, or whose upload failed, leaves the page.
        One that has changed since it was listed, was superseded, or reads back wrong, has failed.

        Raises:
            Snooze: a store takes no job now; the others have their copies, and outcomes and copies are recorded.
            Requeue: there was no time for all files.
        """
        stores = stores_of(self.request, [files[number] for number in self.page.open], self.job)
        wanted = [_Item(number, files[number], of) for number, of in zip(self.page.open, stores, strict=True)]
        self.closed = closed_stores({name for item in wanted for name in item.stores}, self.job.stores)
        items = in_another_order(self._without_waiting(wanted), self.job)
        small = [item for item in items if item.file.size <= min(LARGEST, self.job.settings.page.large)]
        with locked(self.job, [item.where for item in small]) as granted:
            free = [item for item in small if item.where in granted]
            mine = {item.number for item in free}
            self._leave([item for item in items if item.number not in mine])
            self._upload(free)
        if self.closed and self.page.open:
            raise min(self.closed.values(), key=lambda error: error.seconds)
        self._leave(self.refused)
        if not self.in_time:
            raise out_of_time(self.job)
        return self.page

    def _without_waiting(self, items: list[_Item]) -> list[_Item]:
        """Return the files that an open store lacks: an earlier delivery may have written the others, which wait."""
        if not self.closed:
            return items
        wanted = {item.where: item.stores for item in items}
        left = lacking(wanted, self.closed, self.job)
        return [item for item in items if item.where in left]

    def _upload(self, items: Sequence[_Item]) -> None:
        groups = _groups(items, first=REFUSED if self.job.snoozed_since else GROUP)
        wanting = filter(None, map(self._without_waiting, groups))
        with ThreadPoolExecutor(self.job.settings.page.threads, thread_name_prefix="page") as pool:
            try:
                self._upload_groups(wanting, pool, {name for item in items for name in item.stores})
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _upload_groups(self, groups: Iterator[list[_Item]], pool: ThreadPoolExecutor, stores: set[str]) -> None:
        """Upload one group after the other; while one is written, the files of the next are read."""
        until = time.monotonic() + self.job.settings.page.time.total_seconds()
        ahead = self._reading(next(groups, None), pool)
        while ahead is not None and self.in_time and not self.closed.keys() >= stores:
            group, reads = ahead
            for read in reads:
                read.result()
            self._record_versions(group)
            ahead = self._reading(next(groups, None), pool)
            for name in dict.fromkeys(name for item in group for name in item.stores):
                self._write_if_open(name, [item for item in group if name in item.stores], pool)
            self._record(group)
            self.in_time = ahead is None or time.monotonic() < until

    def _reading(
        self, group: list[_Item] | None, pool: ThreadPoolExecutor
    ) -> tuple[list[_Item], list[Future[None]]] | None:
        if group is None:
            return None
        # Half of the threads, so that those that write need not wait for the reads.
        return group, begin_all(pool, self._read, group, max(1, self.job.settings.page.threads // 2), begin=1)

    def _read(self, item: _Item) -> None:
        try:
            check_beside_bytes(self.request, self.job.stores, item.stores)
            item.content = _content(item.file, self.job)
        except StorageError as error:
            item.error = error

    def _record_versions(self, group: Sequence[_Item]) -> None:
        self.job.heartbeat()
        read = [item for item in group if item.content is not None]
        versions = [
            NewVersion(item.file.bucket, item.file.key, item.content.digest, item.stores)
            for item in read
            if item.content is not None
        ]
        recorded = self.job.catalogue.artifacts.record_many(
            versions,
            self.request.metadata,
            clock.now(),
            job=self.job.id,
            properties=self.request.properties,
            stores_named=self.request.stores is not None,
        )
        for item, each in zip(read, recorded, strict=True):
            if isinstance(each, Recorded):
                item.artifact, item.fresh = each.artifact, each.fresh
            else:
                item.error = each

    def _write_if_open(self, name: str, items: Sequence[_Item], pool: ThreadPoolExecutor) -> None:
        if name not in self.closed:
            try:
                self._write(self.job.stores[name], items, pool)
                self.job.stores[name].admit()  # it may have refused all
            except Snooze as error:
                if error.store is None:
                    raise
                self.closed[error.store] = error
        if name in self.closed:
            for item in items:
                item.waits = item.waits or name not in item.written

    def _write(self, store: LimitedStore, items: Sequence[_Item], pool: ThreadPoolExecutor) -> None:
        """Write new versions under free keys, and the others after an inspection of what is under their keys."""
        wanted = [item for item in items if item.error is None]
        fresh, threads = [item for item in wanted if item.fresh], self.job.settings.page.threads
        store.expect_writes([item.where for item in fresh])
        keeps = store.capabilities.user_metadata or self.request.storage_classes
        allowed = threads >= store.capabilities.writes_ahead  # a store gets no more requests than threads
        if store.capabilities.groups and allowed and not (keeps and self.request.beside_bytes):
            fresh = self._write_group(store, fresh)
        do_all(pool, lambda item: self._write_new(store, item), fresh, threads)
        left = [item for item in wanted if item.lacks(store.name)]
        do_all(pool, lambda item: self._write_known(store, item), left, threads)
        if self.request.beside_bytes and store.name not in self.not_kept:
            for artifact in [item.artifact for item in items if item.artifact and item.error is None][:1]:
                self.not_kept[store.name] = not_kept(artifact, store)

    def _write_group(self, store: LimitedStore, items: Sequence[_Item]) -> list[_Item]:
        """Write the small ones of some new objects as a group; return those that have to be written by themselves."""
        group = [item for item in items if item.file.size <= store.capabilities.groups]
        if not group:
            return list(items)
        puts = [
            SmallPut(item.file.bucket, item.file.key, item.content, "create_only") for item in group if item.content
        ]
        with confirmed_after(self.job, store, [item.artifact for item in group if item.artifact]):
            written = store.write_objects(puts)
        for item, result in zip(group, written, strict=False):
            item.note(store.name, result)
        done = {item.number for item in group[: len(written)]}
        return [item for item in items if item.number not in done]

    def _write_new(self, store: LimitedStore, item: _Item) -> None:
        assert item.artifact is not None
        assert item.content is not None
        try:
            with confirmed_after(self.job, store, [item.artifact]):
                stat, _ = store.write_object(
                    item.file.bucket,
                    item.file.key,
                    item.content,
                    storage_class=self.request.storage_classes.get(store.name),
                    condition="create_only",
                    existing_key=True,
                    checkpoint=CopyCheckpoint(self.job.catalogue, item.artifact, store.name),
                    **kept_beside(item.artifact, store),
                )
        except StorageError as error:
            item.note(store.name, error)
        else:
            item.note(store.name, stat)

    def _write_known(self, store: LimitedStore, item: _Item) -> None:
        assert item.artifact is not None
        assert item.content is not None
        work = ArtifactJob(self.job, item.artifact)
        try:
            slot = work.inspect(store)
            storage_class = self.request.storage_classes.get(store.name)
            placed = work.write(slot, item.content, storage_class=storage_class) if slot else None
        except StorageError as error:
            item.failed[store.name] = error
        else:
            item.outcomes.append(placed.outcome if placed else "already_there")

    def _record(self, group: Sequence[_Item]) -> None:
        """Record copies and outcomes; a file that failed leaves the page."""
        finished = [
            FinishedCopy(item.artifact, store, stat.version, stat.storage_tags)
            for item in group
            if item.artifact
            for store, stat in item.written.items()
        ]
        done: list[_Item] = []
        for item in group:
            if is_refused(item.decisive_error):
                item.content = None  # it is read again
                self.refused.append(item)
            elif item.error is not None or not item.waits:
                done.append(item)
        self._save([item.end() for item in done], finished)
        self.job.advance(sum(item.file.size for item in done))

    def _leave(self, items: Sequence[_Item]) -> None:
        if items:
            self._save([PageOutcome.leaves(item.number, item.path, item.file.size) for item in items])

    def _save(self, outcomes: Sequence[PageOutcome], finished: Sequence[FinishedCopy] = ()) -> None:
        group = Group(outcomes, finished=finished, not_kept=self.not_kept)
        self.page = self.job.catalogue.pages.record(self.page, group, now=clock.now(), durable=False)


def stores_of(request: PageRequest, files: Sequence[ListedFile], job: RunningJob) -> list[tuple[str, ...]]:
    """Return the stores of each file; of a named companion they are those of its artifact."""
    settings, paths = job.settings, [(file.bucket, file.key) for file in files]
    if request.stores or not settings.placement_rules:
        return [request.stores or settings.placement_stores] * len(files)
    placed_as = job.catalogue.companions.all_placed_as(paths)
    return [settings.placement_of(path[0], placed_as[path]) for path in paths]


def _content(file: ListedFile, job: RunningJob) -> HashedBytes:
    """Read and hash a file.

    Raises:
        SourceChanged: it is not what was listed, or it changed while it was read.
        StorageError: it cannot be read; see `open_source`.
    """
    with open_source(file.path, job.settings, job=job.id) as source:
        before = os.fstat(source.file.fileno())
        _check_unchanged(file, before, "since the directory was listed")
        reader, pieces, left = source.rewind(), list[bytes](), file.size
        while left >= 0 and (piece := reader.read(max(left, 1))):
            pieces.append(piece)
            left -= len(piece)
        data = b"".join(pieces)  # a copy only where one read does not return all
        _check_unchanged(file, os.fstat(source.file.fileno()), "while it was read")
    if len(data) != file.size:
        raise SizeMismatch(f"source {file.path}: {len(data)} bytes were read of a file of {file.size}")
    return HashedBytes.of(data)


def _check_unchanged(file: ListedFile, found: os.stat_result, when: str) -> None:
    if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
        raise SourceChanged(f"source {file.path}: it has changed {when}; upload the directory again")


def _groups(items: Iterable[_Item], first: int) -> Iterator[list[_Item]]:
    """Yield the files in groups. One whose key an earlier line has too is in a later group, as a version after that.

    `first`: the most files of the first group; each one has twice as many as that before it, up to `GROUP`. So a page
    that waited reads few files for a store that still takes none.
    """
    group: list[_Item] = []
    keys: set[str] = set()
    size, most = 0, first
    for item in items:
        if group and (len(group) >= most or size + item.file.size > _GROUP_SIZE or item.path in keys):
            yield group
            group, size, most = [], 0, min(2 * most, GROUP)
            keys.clear()
        group.append(item)
        keys.add(item.path)
        size += item.file.size
    if group:
        yield group
