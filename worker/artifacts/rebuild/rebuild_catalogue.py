"""Rebuild the catalogue from the stores alone: from what they list, keep beside the bytes, and give when read."""

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from shlex import quote

from worker import clock
from worker.artifacts.rebuild.kept_lists import KeptTombstones
from worker.artifacts.reconcile import in_order
from worker.artifacts.sanitize_found_metadata import encoded_tags, valid_metadata
from worker.catalogue import (
    Artifact,
    Catalogue,
    Copy,
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
from worker.limits.limited_store import AnyStore
from worker.settings.section_models import PageSettings
from worker.storage import ObjectStat, Verdict
from worker.storage.cloud.metadata import set_properties
from worker.storage.driver import ListedObject
from worker.storage.errors import IntegrityError, InvalidKey, NotFound, StorageError, Unavailable
from worker.storage.integrity.manifest import Manifest, compute_digests
from worker.storage.keys import check_existing_key

logger = logging.getLogger(__name__)

_NAMED = 1000
_AT_ONCE = 1000
"""Deletes that are looked up in the catalogue in one query."""

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

    `deletes_redone`: how many deletes that followed the restored backup were made again.
    `deletes_undone`: how many deletes in the backup were undone, because they were undone after it.
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
        stores: Sequence[AnyStore],
        rules: Rules,
        page: PageSettings,
        *,
        job: str,
        by: str | None = None,
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
            by: who asks for it: deletes that it undoes are undone by them.
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
        self._by = by
        self._tombstones = tombstones
        self._believe = believe_digests
        self._dry_run = dry_run
        self._on_page = on_page
        self.tally = Tally({store.name: StoreTally() for store in stores})
        self.found_in: set[str] = set()
        """The buckets in which a store has listed an object."""

    def run(self, buckets: Sequence[str] = ()) -> Tally:
        """Rebuild these buckets, or all that the stores list. An error of one store does not stop the others."""
        by_bucket: dict[str, list[AnyStore]] = {}
        for name, store in self._stores.items():
            try:
                # Two stores that are the same place have one copy; only the marker shows that they are.
                store.check_identity("read" if self._dry_run else "record")
                for bucket in buckets or store.list_buckets():
                    by_bucket.setdefault(bucket, []).append(store)
            except StorageError as error:
                self._fail(name, error)
        with ThreadPoolExecutor(self._page.threads, thread_name_prefix="rebuild") as pool:
            if self._tombstones is not None and self._rules.newer_since is not None and not self._dry_run:
                self._undo_deletes(pool, self._tombstones, self._rules.newer_since, buckets)
                self._redo_deletes(self._tombstones, self._rules.newer_since, buckets)
            for bucket in sorted(by_bucket):
                for page in self._pages(bucket, by_bucket[bucket]):
                    self._record_page(pool, bucket, page)
                    self._on_page(self.tally)
        return self.tally

    def _undo_deletes(
        self, pool: ThreadPoolExecutor, tombstones: KeptTombstones, since: datetime, buckets: Sequence[str]
    ) -> None:
        """Undo the deletes that were undone after the backup was made: a later list of deletes does not have them.

        That list does not have an artifact either that was purged or uploaded again after the backup. So an artifact
        stays deleted if no store has its bytes. It also stays deleted if only some stores have them, because it may
        have been purged while a store was away: then the user decides.
        """
        catalogue = self._catalogue
        kept_at = tombstones.kept_at(catalogue.identity)
        if kept_at is None or kept_at <= since:
            return
        kept = tombstones.of_catalogue(catalogue.identity)
        listed, after = next(kept, None), ("", "")
        while page := catalogue.deletions.page(after):
            missing: list[Tombstone] = []
            for each in page:
                after = (each.bucket, each.key)
                while listed is not None and _place(listed) < _place(each):
                    listed = next(kept, None)
                is_listed = listed is not None and _place(listed) == _place(each)
                if each.deleted_at <= since and not is_listed and each.bucket in (buckets or {each.bucket}):
                    missing.append(each)
            for bucket, group in groupby(missing, lambda each: each.bucket):
                self._undo_some(pool, bucket, {each.key: each.version for each in group}, since)

    def _undo_some(self, pool: ThreadPoolExecutor, bucket: str, deleted: Mapping[str, int], since: datetime) -> None:
        """Undo deletes in a bucket, given as versions by key, if each store with a good copy still has the bytes."""
        of: list[tuple[Artifact, list[Copy]]] = []
        for key, known in self._catalogue.rebuilding.known(bucket, list(deleted)).items():
            artifact = next((each for each in known.versions if each.version == deleted[key]), None)
            if artifact is None or artifact.committed_at is None or artifact.committed_at > since:
                continue  # an earlier run has recorded it, as deleted from another catalogue
            of.append((artifact, [copy for held, copy in known.present.values() if held.id == artifact.id]))
        for (artifact, _), seen in zip(of, pool.map(self._ask_stores, of), strict=True):
            for unreadable in seen.unreadable:
                self.tally.count(unreadable)
            if not seen.has or seen.replaced:
                continue
            if seen.lacks or seen.unknown:
                told = (
                    f"its delete was undone after the backup, or it was purged while a store was away: {seen}; it "
                    "stays deleted for its grace period: "
                    f"`zot-artifacts undelete {quote(artifact.path)}` brings it back, "
                    f"`zot-artifacts delete {quote(artifact.path)} --now` removes it"
                )
                self.tally.count(Rebuilt(seen.has[0], bucket, artifact.key, "undecided", told))
                continue
            try:
                self._catalogue.deletions.undo(
                    bucket, artifact.key, now=clock.now(), by=self._by, reason=f"undone after the backup: {self._job}"
                )
            except UndeleteRefused as error:  # such as a companion that came back with its artifact
                logger.info("the delete of %s is not undone: %s", artifact.path, error)
            else:
                self.tally.deletes_undone += 1

    def _ask_stores(self, of: tuple[Artifact, Sequence[Copy]]) -> "_Seen":
        """Ask all stores where a copy of a version is recorded whether they have its bytes."""
        artifact, copies = of
        seen = _Seen()
        for copy in copies:
            name, good = copy.store, copy.state.good
            if name not in self._stores:
                seen.unknown += [name] if good else []
                continue
            try:
                found = _inspect(self._stores[name], artifact.bucket, artifact.key, believe=self._believe)
            except NotFound:
                seen.lacks += [name] if good else []
            except StorageError as error:
                told = f"whether its delete was undone is unknown: {error.message}"
                seen.unreadable.append(Rebuilt(name, artifact.bucket, artifact.key, "unreadable", told))
                seen.unknown += [name] if good else []
            else:
                if (found.read or found.kept) == artifact.digest.sha256:
                    seen.has.append(name)
                elif found.is_right:
                    seen.replaced = True
                elif good:
                    seen.lacks.append(name)
        return seen

    def _redo_deletes(self, tombstones: KeptTombstones, since: datetime, buckets: Sequence[str]) -> None:
        """Delete the versions again that were deleted after the backup was made; the grace period begins anew."""
        later = (
            each
            for each in tombstones.of_catalogue(self._catalogue.identity)
            if each.deleted_at > since and each.bucket in (buckets or {each.bucket})
        )
        while some := list(islice(later, _AT_ONCE)):
            for bucket, group in groupby(some, lambda each: each.bucket):
                of = {each.key: each for each in group}
                for key, known in self._catalogue.rebuilding.known(bucket, list(of)).items():
                    self._redo(of[key], known.current)

    def _redo(self, each: KeptTombstone, artifact: Artifact | None) -> None:
        if artifact is None or artifact.digest.sha256 != each.sha256 or artifact.created_at > each.deleted_at:
            return
        until = clock.now() + max(each.purge_after - each.deleted_at, self._rules.grace)
        try:
            self._catalogue.deletions.begin(
                artifact, now=each.deleted_at, until=until, by=each.by, reason=each.reason, job=each.job
            )
        except OnHold as error:
            logger.warning("the delete of %s is not done again: %s", artifact.path, error)
        else:
            self.tally.deletes_redone += 1

    def _pages(self, bucket: str, stores: Iterable[AnyStore]) -> Iterator[dict[str, list[Listed]]]:
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

    def _listing(self, bucket: str, store: AnyStore) -> Iterator[Listed]:
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


@dataclass(slots=True)
class _Seen:
    """Which stores have the bytes of a version that was deleted.

    `has`: they have them. `lacks`: they had a good copy and do not have it now. `unknown`: they had a good copy, and
    were not asked or did not answer. `replaced`: a store has other bytes, with a digest that matches those.
    """

    has: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    replaced: bool = False
    unreadable: list[Rebuilt] = field(default_factory=list)

    def __str__(self) -> str:
        """Return it as a part of a message."""
        words = {"has its bytes": self.has, "does not have them": self.lacks, "was not read": self.unknown}
        return ", ".join(f"{name} {word}" for word, names in words.items() for name in sorted(names))


def _place(each: Tombstone | KeptTombstone) -> tuple[str, bytes]:
    return each.bucket, each.key.encode()


def _inspect(store: AnyStore, bucket: str, key: str, *, believe: bool) -> FoundObject:
    if believe:
        stat = store.stat_object(bucket, key)
        if stat.sha256:
            return _found(store, stat)
    return _read(store, bucket, key)


def _read(store: AnyStore, bucket: str, key: str) -> FoundObject:
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
    store: AnyStore, stat: ObjectStat, *, read: str | None = None, manifest: Manifest | None = None
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
