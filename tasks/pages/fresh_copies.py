"""Replicate the small objects of a page to stores that never had them: one read and one write for each copy.

Everything else needs `tasks.replicate`, which first inspects what is under the key: large objects, copies that a
provider makes itself, objects that are there already, and what one read or write here has failed at.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from worker.artifacts.artifact_copies import ArtifactJob, CopySlot, Records
from worker.artifacts.page_selection import PageObject
from worker.artifacts.per_store import for_each_store
from worker.catalogue import Artifact, Copy, CopyState
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage.driver import HashedBytes
from worker.storage.errors import AlreadyExists, PreconditionFailed, StorageError

_SMALL = 1 << 20
"""Bytes of the largest object that is in memory as a whole, once for each thread."""


class KeyTaken(Exception):
    """Something is under the key of an object, such as the copy that a killed job has written and not recorded."""


@dataclass(frozen=True, slots=True)
class FreshObject:
    """An object that none of its targets has, with its source and the copies to write."""

    object: PageObject
    artifact: Artifact
    source: str
    slots: Sequence[CopySlot]


class FreshCopies:
    """The objects of a page that can be replicated without asking for anything first.

    What is needed of the catalogue is read once for all of them, while the page has their locks.
    """

    def __init__(
        self,
        job: RunningJob,
        objects: Sequence[PageObject],
        current: Mapping[tuple[str, str], Artifact],
        targets: Sequence[LimitedStore],
    ) -> None:
        """Find these objects among those of the page; `current` are their versions, by bucket and key."""
        self._job = job
        self._fresh: dict[int, FreshObject] = {}
        if job.settings.replication.proof == "reread":
            return
        copies = job.catalogue.artifacts.copies_of_all([artifact.id for artifact in current.values()])
        for each in objects:
            artifact = current.get((each.bucket, each.key))
            if artifact is None or not 0 < artifact.digest.size <= _SMALL:
                continue
            if fresh := self._plan(each, artifact, copies.get(artifact.id, {}), targets):
                self._fresh[each.id] = fresh
        for target in targets:
            target.expect_writes([(fresh.artifact.bucket, fresh.artifact.key) for fresh in self._fresh.values()])

    def read(self, part: Sequence[PageObject]) -> Iterator[tuple[FreshObject, bytes]]:
        """Yield those of these objects that can be replicated, with their bytes, which are right.

        Raises:
            Snooze: the store of the source takes no job now.
        """
        by_source: dict[str, list[FreshObject]] = defaultdict(list)
        for fresh in filter(None, (self._fresh.get(each.id) for each in part)):
            by_source[fresh.source].append(fresh)
        for source, wanted in by_source.items():
            objects = [(each.artifact.bucket, each.artifact.key, each.artifact.digest) for each in wanted]
            read = self._job.stores[source].read_objects(objects)
            for fresh, data in zip(wanted, read, strict=True):
                if data is not None:
                    yield fresh, data

    def write(self, each: FreshObject, data: bytes, records: Records) -> None:
        """Write the copies of an object, and add them to `records`.

        Raises:
            KeyTaken: something is under its key in a target; the others may have theirs.
            Snooze, StorageError: a target takes no job now, or did not take its copy; the others have theirs.
        """
        work = ArtifactJob(self._job, each.artifact, records)
        body = HashedBytes(data, each.artifact.digest)
        try:
            for_each_store(each.slots, lambda slot: work.write(slot, body))
        except StorageError as error:
            if isinstance(error.__cause__, AlreadyExists | PreconditionFailed):
                raise KeyTaken from error
            raise

    def _plan(
        self, each: PageObject, artifact: Artifact, copies: dict[str, Copy], targets: Sequence[LimitedStore]
    ) -> FreshObject | None:
        names = {target.name for target in targets}
        sources = [copy for copy in copies.values() if copy.state.good and copy.store in self._job.stores]
        sources = [copy for copy in sources if copy.store not in names]
        writing = [copies.get(target.name) for target in targets]
        if not sources or any(copy is None or copy.state != CopyState.WRITING for copy in writing):
            return None
        source = min(sources, key=lambda copy: (copy.last_verified_at is None, copy.store))
        realm = self._job.stores[source.store].capabilities.realm
        if realm is not None and any(target.capabilities.realm == realm for target in targets):
            return None  # the provider copies by itself
        slots = [
            CopySlot(target, copy, None, quarantine=False)
            for target, copy in zip(targets, writing, strict=True)
            if copy is not None
        ]
        return FreshObject(each, artifact, source.store, slots)
