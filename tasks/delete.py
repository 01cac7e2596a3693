"""Delete: delete an artifact's copies in some stores, or the artifact in all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from worker import clock
from worker.artifacts.artifact_copies import Records
from worker.artifacts.lock_artifacts_for_job import locked_companions
from worker.artifacts.page_selection import seen_by
from worker.artifacts.per_store import for_each_store
from worker.artifacts.verify_copy import not_configured
from worker.artifacts.wait_for_delete_approval import check_delete
from worker.catalogue import Artifact, Catalogue, Tombstone
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore, LimitedStores
from worker.limits.snooze import Snooze
from worker.storage import Match
from worker.storage.configured_stores import UnknownStore
from worker.storage.errors import Archived, Conflict, NotFound, PermanentError, PreconditionFailed, StorageError
from zot_artifact_client.contract import DELETE, REPLICATE, DeletedCopy, DeleteRequest, DeleteResult, is_batch_job

KEPT = "kept"
"""The outcome of a delete that found a later version than its batch has seen."""
_REPLICATION_POLL = 5.0
"""Seconds until a job asks again whether a replication has ended."""


class LastCopy(PermanentError):
    """The last good copy of an artifact would be gone."""


def delete(request: DeleteRequest, job: RunningJob) -> DeleteResult:
    """Delete the copies in the stores that were named, or the artifact everywhere; what is gone already is no error.

    An artifact that is deleted everywhere takes its companions with it: all of them, or nothing was deleted.

    Everything under the key is deleted, whichever version it is: also what a killed job has written there. All stores
    are resolved first. A copy in a store that is not configured cannot be deleted: the result names it, and the purge
    sweep deletes it when the store is configured again.

    Raises:
        NotFound: the catalogue never had an artifact under this key; names the nearest key.
        OnHold: the artifact is held; nothing was deleted.
        NotApproved, WaitsForApproval: a second person has not approved it; nothing was deleted.
        LastCopy: no good copy would remain outside the stores that were named; nothing was deleted.
        UnknownStore: a store that was named, or every store with a copy, is not configured; nothing was deleted.
        Snooze: a replication of the artifact has not ended, the store of the copy that would remain takes no job now,
            or only newer settings than this worker's have a store with a copy; nothing was deleted.
        StorageError, Snooze: a store could not delete its copy; the others have.
    """
    companions = [] if request.stores else job.catalogue.companions.of(request.bucket, request.key)
    check_delete(request, job, companions=companions)
    artifact = job.catalogue.artifacts.current(request.bucket, request.key)
    batch = job.catalogue.batches.get(job.parent) if job.parent and is_batch_job(job.id, job.parent) else None
    if artifact and artifact.id not in seen_by(batch):  # a version that came after its batch stays
        return DeleteResult(
            bucket=request.bucket, key=request.key, everywhere=not request.stores, unchanged=True, copies=()
        )

    def check_locked(found: Sequence[Artifact]) -> None:
        if list(found) != companions:  # one was uploaded just now
            check_delete(request, job, companions=found)

    return delete_artifact(request, job, artifact, check=check_locked)


def delete_artifact(
    request: DeleteRequest, job: RunningJob, artifact: Artifact | None, records: Records | None = None, *,
    check: Callable[[Sequence[Artifact]], None] = lambda _: None,
) -> DeleteResult:  # fmt: skip
    """Do as `delete`, without its approval.

    Args:
        request: what is to be deleted.
        job: the job that has the lock of the artifact.
        artifact: the current version under the key; None if there is none.
        records: keeps what was deleted until a page records it.
        check: called with the companions when no other job can write to them; raises if they may not be deleted.
    """
    catalogue, where = job.catalogue, (request.bucket, request.key)
    catalogue.holds.check(*where)
    tombstone = None if artifact else catalogue.deletions.get(*where)
    if tombstone and not request.now and not catalogue.deletions.is_being_purged(tombstone):
        return _recorded(request, tombstone, (), unchanged=True)
    work = _Delete(request, job, records)
    if tombstone:
        return work.purge_now(tombstone)
    if artifact is None or request.stores:
        return work.delete_copies(artifact)
    return work.delete_everywhere(artifact, check)


@dataclass(frozen=True, slots=True)
class _Delete:
    """A delete of what is under one key, in the stores that the request names or in all."""

    request: DeleteRequest
    job: RunningJob
    records: Records | None

    def of(self, key: str) -> "_Delete":
        """Return the same delete of another key."""
        return replace(self, request=self.request.model_copy(update={"key": key}))

    def delete_everywhere(self, artifact: Artifact, check: Callable[[Sequence[Artifact]], None]) -> DeleteResult:
        """Delete an artifact with its companions: their bytes stay for the grace period, if there is one."""
        request, job, of_page = self.request, self.job, self.records is not None
        # Where deletes need an approval, a batch deletes only what it names.
        alone = job.settings.delete.approval_above is not None and (of_page or is_batch_job(job.id, job.parent))

        def find() -> Sequence[Artifact]:
            return [] if alone else job.catalogue.companions.of(artifact.bucket, artifact.key)

        with locked_companions(find, job, artifact.path, of_page=of_page) as companions:
            check(companions)
            for each in companions:
                job.catalogue.holds.check(each.bucket, each.key)
            if (grace := job.settings.delete.grace) and not request.now:
                now = clock.now()
                made = job.catalogue.deletions.begin(
                    artifact, now=now, until=now + grace, by=request.by, reason=request.reason, job=job.id,
                    companions=companions,
                )  # fmt: skip
                return _recorded(request, made, companions, unchanged=False)
            for each in companions:  # the artifact is the last, so that another attempt finds those that are left
                self.of(each.key).delete_copies(each)
            done = self.delete_copies(artifact)
            return done.model_copy(update={"companions": tuple(each.key for each in companions)})

    def purge_now(self, tombstone: Tombstone) -> DeleteResult:
        """Delete the bytes of an artifact that was deleted before, and of the companions that were deleted with it."""
        job = self.job
        path = f"{tombstone.bucket}/{tombstone.key}"
        held = job.catalogue.artifacts.copies_by_store(tombstone.bucket, tombstone.key)
        if held and held.keys().isdisjoint(job.stores) and not job.catalogue.deletions.is_being_purged(tombstone):
            _check_configured(job.stores, next(iter(held)), path)
        find = partial(job.catalogue.deletions.of_companions, tombstone)
        with locked_companions(find, job, path, of_page=self.records is not None) as together:
            for each in together:
                job.catalogue.holds.check(each.bucket, each.key)
            for each in together:
                self.of(each.key).end_purge(each)
        done = self.end_purge(tombstone)
        return done.model_copy(update={"companions": tuple(each.key for each in together)})

    def end_purge(self, tombstone: Tombstone) -> DeleteResult:
        """Delete the bytes under this one key; the tombstone stays where a store with a copy is not configured."""
        done, catalogue = self.delete_copies(None), self.job.catalogue
        artifact = catalogue.artifacts.version(tombstone.bucket, tombstone.key, tombstone.version)
        if artifact and done.not_configured:
            self._leave_to_purge(artifact, tombstone)
        elif done.everywhere:
            catalogue.deletions.end_purge([tombstone])
        return done

    def _leave_to_purge(self, artifact: Artifact, before: Tombstone | None = None) -> None:
        """Record a delete that cannot be undone any more, for the bytes in stores that are not configured now.

        One that was recorded `before` stays that of its requester.
        """
        deletions, now, request = self.job.catalogue.deletions, clock.now(), self.request
        if before:
            deleted_at, by, reason, job = before.deleted_at, before.by, before.reason, before.job
        else:
            deleted_at, by, reason, job = now, request.by, request.reason, self.job.id
        deletions.begin(artifact, now=deleted_at, until=now, by=by, reason=reason, job=job, purging=True)

    def delete_copies(self, artifact: Artifact | None) -> DeleteResult:
        """Delete what is under the key; `artifact`: its current version, None if there is none."""
        request, job, records = self.request, self.job, self.records
        artifacts = job.catalogue.artifacts
        held = artifacts.copies_by_store(request.bucket, request.key)
        if not held and artifacts.version(request.bucket, request.key, 1) is None:
            job.catalogue.artifact(request.bucket, request.key)  # its error names the nearest key
        named = request.stores or ()
        stores = _resolve(job.stores, named, held) if named else [name for name in held if name in job.stores]
        beyond = [name for name in held if name not in job.stores] if not named else []
        if artifact and beyond and not stores:
            _check_configured(job.stores, beyond[0], artifact.path)
        if artifact and named and not request.allow_last:
            _check_no_replication(job.catalogue, artifact)
            _check_good_copy_remains(job, artifact, stores)

        def delete_from(store: str) -> DeletedCopy:
            self.job.step(f"deleting from {store}")
            job.check()
            copies = held.get(store, [])
            deleted = bool(copies) and _delete_found(request, job.stores[store])
            if records is not None:
                records.deleted.extend(copies)
            else:
                artifacts.delete_copies(copies)
            return DeletedCopy(store=store, outcome="deleted" if deleted else "already_gone")

        deleted = for_each_store(stores, delete_from)
        if artifact and beyond:
            self._leave_to_purge(artifact)
        elif artifact and not named:
            if records is not None:
                records.tombstoned.append(artifact)
            else:
                artifacts.tombstone(artifact, clock.now())
        return DeleteResult(
            bucket=request.bucket,
            key=request.key,
            everywhere=not named,
            unchanged=all(copy.outcome == "already_gone" for copy in deleted),
            copies=tuple(deleted),
            not_configured=tuple(beyond),
        )


def _delete_found(request: DeleteRequest, store: LimitedStore) -> bool:
    """Delete what is under the key now, and return whether there was anything.

    The store is asked before the delete confirms the lease: while this worker is frozen after that, another job may
    write to the key, and its object has another version tag.

    Raises:
        Conflict: another object is there by now; it stays.
    """
    try:
        version = store.get_object_version(request.bucket, request.key)
    except NotFound:
        return False
    try:
        return store.delete_object(request.bucket, request.key, condition=Match(version))
    except PreconditionFailed as error:
        conflict = Conflict(f"{store.name}: {request.bucket}/{request.key} was replaced while it was deleted")
        conflict.store = store.name
        raise conflict from error


def _recorded(
    request: DeleteRequest, tombstone: Tombstone, companions: Sequence[Artifact], *, unchanged: bool
) -> DeleteResult:
    """Return the result of a delete that can be undone: no byte has gone yet."""
    return DeleteResult(
        bucket=request.bucket, key=request.key, everywhere=True, unchanged=unchanged, copies=(),
        purge_after=tombstone.purge_after, companions=tuple(each.key for each in companions),
    )  # fmt: skip


def _check_configured(stores: LimitedStores, store: str, path: str = "") -> None:
    """Raise UnknownStore if a store with a copy is not configured, Snooze if only this worker's settings lack it."""
    try:
        stores[store]
    except UnknownStore:
        what = f"{path}: " if path else ""
        raise UnknownStore(f"{what}nothing was deleted: {not_configured(store)}") from None


def _resolve(stores: LimitedStores, named: Sequence[str], held: Mapping[str, object]) -> list[str]:
    for name in named:
        if name in held:
            _check_configured(stores, name)
    return [stores[name].name for name in named]  # the error of a misspelt name has the nearest one


def _check_no_replication(catalogue: Catalogue, artifact: Artifact) -> None:
    """Keep all sources while a replication of the artifact may need them, now or at its next attempt."""
    copying = catalogue.ledger.open_on(artifact.bucket, artifact.key, kind=REPLICATE.kind)
    if copying:
        reason = f"{artifact.path} waits for job {copying[0]}, which may still copy from any of its stores"
        raise Snooze(reason, _REPLICATION_POLL)


def _check_good_copy_remains(job: RunningJob, artifact: Artifact, stores: list[str]) -> None:
    """Ask the other stores, in case the catalogue is wrong, until one has its copy.

    A store that does not answer has no copy to rely on. One that takes no job now is waited for, if no other has one.
    """
    copies = job.catalogue.artifacts.copies(artifact)
    if not any(copy.state.present for store, copy in copies.items() if store in stores):
        return
    closed: list[Snooze] = []
    for store in (store for store, copy in copies.items() if copy.state.good and store not in stores):
        try:
            if _has_readable_copy(job, artifact, store):
                return
        except Snooze as error:
            closed.append(error)
        except StorageError:
            continue
    if closed:
        raise min(closed, key=lambda error: error.seconds)
    raise LastCopy(
        f"{artifact.path}: no good copy would remain outside {', '.join(stores)}; replicate it first, delete it "
        "everywhere by naming no store, or delete the last copy with `--allow-last`"
    )


def _has_readable_copy(job: RunningJob, artifact: Artifact, store: str) -> bool:
    """Ask a store for the size and the first byte: it reports the size also of an object that it cannot read."""
    limited = job.stores[store]
    if limited.stat_object(artifact.bucket, artifact.key, as_copy=True).size != artifact.digest.size:
        return False
    try:
        limited.read_first_byte(artifact.bucket, artifact.key)
    except Archived:
        return job.settings.delete.archived_counts
    return True


delete_task = artifact_task(DELETE, writes=True)(delete)
