"""Rebuild the catalogue from the stores alone: from what they list, keep beside the bytes, and give when read."""

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import itemgetter

from worker import clock
from worker.artifacts.rebuild.kept_list_files import ReadStore
from worker.artifacts.rebuild.tombstones_kept_in_stores import KeptTombstones
from worker.artifacts.reconcile import in_order
from worker.artifacts.sanitize_found_metadata import encoded_tags, valid_metadata
from worker.catalogue import (
    Artifact,
    Catalogue,
    FoundKey,
    FoundObject,
    KeptTombstone,
    KnownKey,
    OnHold,
    Rebuilt,
    Rules,
    Tombstone,
    UndeleteRefused,
)
from worker.settings.section_models import PageSettings
from worker.storage import ObjectStat, Verdict
from worker.storage.cloud.metadata import set_properties
from worker.storage.driver import ListedObject
from worker.storage.errors import IntegrityError, InvalidKey, NotFound, StorageError, Unavailable
from worker.storage.integrity.manifest import Manifest, compute_digests
from worker.storage.keys import check_existing_key

logger = logging.getLogger(__name__)

_NAMED = 1000

Listed = tuple[bytes, str, ListedObject]
"""The key as its bytes, the store, and the row of its listing."""


@dataclass(slots=True)
class StoreTally:
    """What was done about the objects of one store.

    `listed` objects with `bytes` were listed; `outcomes` counts them by outcome. `error` is why the listing
    of the store stopped before its end, None if it did not.
    """

    listed: int = 0
    bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    error: str | None = None


@dataclass(slots=True)
class Tally:
    """What a rebuild has done, by store. `named` has the first 1,000 objects that are not right.

    `deletes_redone`: how many artifacts were deleted again, as they were after the backup that was restored.
    `deletes_undone`: how many of those that were deleted in it are back, as they were after it.
    """

    stores: dict[str, StoreTally]
    named: list[Rebuilt] = field(default_factory=list)
    deletes_redone: int = 0
    deletes_undone: int = 0

    def count(self, each: Rebuilt) -> None:
        """Count one object by its outcome."""
        self.stores[each.store].outcomes[each.outcome] += 1
        if each.detail is not None and len(self.named) < _NAMED:
            self.named.append(each)


class Rebuild:
    """One rebuild. It may be killed at any time: a second one reads only what is not recorded yet.

    Objects that the catalogue has as present copies are known, and are not read again. The listings of the stores are
    merged by key, so that all objects under one key are compared with each other. Memory does not grow with the number
    of objects.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        stores: Sequence[ReadStore],
        rules: Rules,
        page: PageSettings,
        *,
        job: str,
        tombstones: KeptTombstones | None = None,
        believe_digests: bool = False,
        dry_run: bool = False,
        on_page: Callable[[Tally], None] = lambda _: None,
    ) -> None:
        """Prepare a rebuild.

        Args:
            catalogue: where versions and copies are recorded.
            stores: the stores that are read.
            rules: what may become a record.
            page: how many objects or bytes are recorded in one transaction, and how many threads read them.
            job: the id that the verdicts get as their job.
            tombstones: the deletes that the stores keep: an artifact that was deleted does not become current again.
            believe_digests: record the digest that a store keeps, and do not read the bytes.
            dry_run: only list and count.
            on_page: called after each page with what was done so far.
        """
        self._catalogue = catalogue
        self._stores = {store.name: store for store in stores}
        self._rules = rules
        self._page = page
        self._job = job
        self._tombstones = tombstones
        self._believe = believe_digests
        self._dry_run = dry_run
        self._on_page = on_page
        self.tally = Tally({store.name: StoreTally() for store in stores})
        self.found_in: set[str] = set()
        """The buckets in which a store has listed an object."""

    def run(self, buckets: Sequence[str] = ()) -> Tally:
        """Rebuild these buckets, or all that the stores list. An error of one store does not stop the others."""
        by_bucket: dict[str, list[ReadStore]] = {}
        for name, store in self._stores.items():
            try:
                store.check_identity("read")  # what is in two stores that are one place is one copy
                for bucket in buckets or store.list_buckets():
                    by_bucket.setdefault(bucket, []).append(store)
            except StorageError as error:
                self._fail(name, error)
        if self._tombstones is not None and self._rules.newer_since is not None and not self._dry_run:
            self._undo_deletes(self._tombstones, self._rules.newer_since)
            self._redo_deletes(self._tombstones, self._rules.newer_since)
        with ThreadPoolExecutor(self._page.threads, thread_name_prefix="rebuild") as pool:
            for bucket in sorted(by_bucket):
                for page in self._pages(bucket, by_bucket[bucket]):
                    self._record_page(pool, bucket, page)
                    self._on_page(self.tally)
        return self.tally

    def _undo_deletes(self, tombstones: KeptTombstones, since: datetime) -> None:
        """Undo the deletes that were undone after the backup was made: the later list of deletes lacks them.

        It also lacks an artifact that was purged or uploaded again since; what has its bytes in no store stays deleted.
        """
        catalogue = self._catalogue
        kept_at = tombstones.kept_at(catalogue.identity)
        if kept_at is None or kept_at <= since:
            return
        kept = tombstones.of_catalogue(catalogue.identity)
        listed, after = next(kept, None), ("", "")
        while page := catalogue.deletions.page(after):
            for each in page:
                after = (each.bucket, each.key)
                while listed is not None and _place(listed) < _place(each):
                    listed = next(kept, None)
                if each.deleted_at > since or (listed is not None and _place(listed) == _place(each)):
                    continue
                artifact = catalogue.artifacts.version(each.bucket, each.key, each.version)
                if artifact is None or artifact.committed_at is None or artifact.committed_at > since:
                    continue  # an earlier run has recorded it, as deleted from another catalogue
                if self._is_in_a_store(artifact):
                    try:
                        catalogue.deletions.undo(each.bucket, each.key, now=clock.now())
                    except UndeleteRefused as error:  # such as a companion that came back with its artifact
                        logger.info("the delete of %s is not undone: %s", artifact.path, error)
                    else:
                        self.tally.deletes_undone += 1

    def _is_in_a_store(self, artifact: Artifact) -> bool:
        """Return whether a store has the bytes of a version, where a copy of it is recorded."""
        for name in self._catalogue.artifacts.copies(artifact):
            if name in self._stores:
                try:
                    found = _inspect(self._stores[name], artifact.bucket, artifact.key, believe=self._believe)
                except NotFound:
                    continue
                except StorageError as error:
                    told = f"whether its delete was undone is unknown: {error.message}"
                    self.tally.count(Rebuilt(name, artifact.bucket, artifact.key, "unreadable", told))
                    continue
                if (found.read or found.kept) == artifact.digest.sha256:
                    return True
        return False

    def _redo_deletes(self, tombstones: KeptTombstones, since: datetime) -> None:
        """Delete the versions again that were deleted after the backup was made; the grace period begins anew."""
        for each in tombstones.of_catalogue(self._catalogue.identity):
            if each.deleted_at <= since:
                continue
            artifact = self._catalogue.artifacts.current(each.bucket, each.key)
            if artifact is None or artifact.digest.sha256 != each.sha256 or artifact.created_at > each.deleted_at:
                continue
            until = clock.now() + (each.purge_after - each.deleted_at)
            try:
                self._catalogue.deletions.begin(
                    artifact, now=each.deleted_at, until=until, by=each.by, reason=each.reason, job=each.job
                )
            except OnHold as error:
                logger.warning("the delete of %s is not done again: %s", artifact.path, error)
            else:
                self.tally.deletes_redone += 1

    def _pages(self, bucket: str, stores: Iterable[ReadStore]) -> Iterator[dict[str, list[Listed]]]:
        """Yield the objects of a bucket by key, some keys at a time: all stores together, in the order of keys."""
        page: dict[str, list[Listed]] = {}
        size = 0
        listings = [self._listing(bucket, store) for store in stores]
        for _, group in groupby(heapq.merge(*listings, key=itemgetter(0, 1)), itemgetter(0)):
            rows = list(group)
            page[rows[0][2].key] = rows
            size += sum(row.size or 0 for _, _, row in rows)
            if len(page) >= self._page.objects or size >= self._page.size:
                yield page
                page, size = {}, 0
        if page:
            yield page

    def _listing(self, bucket: str, store: ReadStore) -> Iterator[Listed]:
        """Yield the rows of a store's listing. An error ends this listing, and the others continue."""
        tally = self.tally.stores[store.name]
        try:
            for row in in_order(store.name, store.list_objects(bucket)):
                tally.listed += 1
                self.found_in.add(bucket)
                tally.bytes += row.size or 0
                try:
                    check_existing_key(bucket, row.key)
                except InvalidKey as error:
                    self.tally.count(Rebuilt(store.name, bucket, row.key, "unreadable", error.message))
                    continue
                yield row.key.encode(), store.name, row
        except StorageError as error:
            self._fail(store.name, error)

    def _fail(self, store: str, error: StorageError) -> None:
        logger.error("store %s was not read to its end: %s", store, error)
        self.tally.stores[store].error = error.message

    def _record_page(self, pool: ThreadPoolExecutor, bucket: str, page: Mapping[str, Sequence[Listed]]) -> None:
        """Read the objects of a page that the catalogue does not know, and record them in one transaction."""
        known = self._catalogue.rebuilding.known(bucket, list(page))
        deleted = self._tombstones.take(bucket, page) if self._tombstones else {}
        unknown: list[tuple[str, ListedObject, bool]] = []
        for key, rows in page.items():
            # If the sizes differ, one of the objects may be cut off.
            believe = self._believe and len({row.size for _, _, row in rows}) == 1
            for _, name, row in rows:
                if self._is_known(known.get(key), name, row):
                    self.tally.count(Rebuilt(name, bucket, key, "known"))
                else:
                    unknown.append((name, row, believe))
        if self._dry_run:
            for name, row, _ in unknown:
                self.tally.count(Rebuilt(name, bucket, row.key, "to_record"))
            return
        found: dict[str, list[FoundObject]] = {}
        for each in pool.map(partial(self._inspect, bucket), unknown):
            if isinstance(each, Rebuilt):
                self.tally.count(each)
            else:
                key, seen = each
                found.setdefault(key, []).append(seen)
        keys = [FoundKey(bucket, key, objects, deleted.get(key)) for key, objects in found.items()]
        if keys:
            for done in self._catalogue.rebuilding.record(keys, self._rules, job=self._job, now=clock.now()):
                self.tally.count(done)

    def _is_known(self, known: KnownKey | None, store: str, row: ListedObject) -> bool:
        if known is None or store not in known.present:
            return False
        since = self._rules.newer_since
        return since is None or row.modified <= since or known.present[store][1].tag == row.version

    def _inspect(self, bucket: str, listed: tuple[str, ListedObject, bool]) -> tuple[str, FoundObject] | Rebuilt:
        name, row, believe = listed
        try:
            return row.key, _inspect(self._stores[name], bucket, row.key, believe=believe)
        except NotFound:
            return Rebuilt(name, bucket, row.key, "gone", "it was deleted after it was listed")
        except StorageError as error:
            return Rebuilt(name, bucket, row.key, "unreadable", error.message)


def _place(each: Tombstone | KeptTombstone) -> tuple[str, bytes]:
    return each.bucket, each.key.encode()


def _inspect(store: ReadStore, bucket: str, key: str, *, believe: bool) -> FoundObject:
    if believe:
        stat = store.stat_object(bucket, key)
        if stat.sha256:
            return _found(store, stat)
    return _read(store, bucket, key)


def _read(store: ReadStore, bucket: str, key: str) -> FoundObject:
    """Read an object in full; one whose bytes differ from what the store keeps is read twice before it is bad.

    Raises:
        Unavailable: the two reads differ.
    """
    what = f"{store.name}: {bucket}/{key}"
    with store.read_object(bucket, key) as reader:
        stat = reader.stat
        try:
            digest, manifest = compute_digests(reader, size=stat.size, what=what)
        except IntegrityError:
            pass
        else:
            return _found(store, stat, read=digest.sha256, manifest=manifest)
    second = store.verify_object(bucket, key)
    if second.error is not None:
        raise second.error
    if second.verdict is Verdict.VERIFIED or second.version != stat.version or second.sha256 is None:
        raise Unavailable(f"{what}: two reads of it differ")
    return _found(store, stat, read=second.sha256)


def _found(
    store: ReadStore, stat: ObjectStat, *, read: str | None = None, manifest: Manifest | None = None
) -> FoundObject:
    tags = encoded_tags(store, stat) if "tags" in stat.not_carried else None
    return FoundObject(
        store.name,
        stat.version,
        stat.size,
        stat.modified,
        stat.sha256,
        read,
        manifest,
        valid_metadata(stat.metadata),
        set_properties(stat.properties) | ({"tags": tags} if tags else {}),
        stat.storage_tags,
    )
