"""Delete: take an artifact's copies from some stores, or the artifact from all of them."""

from worker import clock
from worker.artifacts.per_store import for_each_store
from worker.catalogue import Artifact, Copy
from worker.context import Context
from worker.jobs.running_job import RunningJob, Snooze
from worker.jobs.task import artifact_task
from worker.storage.errors import PermanentError, StorageError
from zot_artifact_client.contract import DELETE, REPLICATE, DeletedCopy, DeleteRequest, DeleteResult

_LOOK = 5.0
"""Seconds between looks at a replication that has not ended."""


class LastCopy(PermanentError):
    """The last good copy of an artifact would be gone."""


def delete(request: DeleteRequest, context: Context, job: RunningJob) -> DeleteResult:
    """Delete the copies in the stores that were named, or the artifact everywhere; what is gone already is no error.

    Raises:
        LastCopy: no good copy would remain outside the stores that were named; nothing was deleted.
        UnknownStore: naming the stores there are.
        Snooze: a replication of the artifact has not ended; nothing was deleted.
        StorageError, Snooze: a store could not delete its copy; the others have.
    """
    named = [context.stores[name].name for name in request.stores or ()]
    artifact = context.catalogue.artifacts.current(request.bucket, request.key)
    held = context.catalogue.artifacts.copies_by_store(request.bucket, request.key)
    if artifact and named and not request.allow_last:
        _check_nobody_copies(context, artifact)
        _check_good_copy_remains(context, artifact, named)
    deleted = for_each_store(named or held, lambda store: _delete(request, context, job, store, held.get(store, [])))
    if artifact and not named:
        context.catalogue.artifacts.tombstone(artifact, clock.now())
    return DeleteResult(
        bucket=request.bucket,
        key=request.key,
        everywhere=not named,
        unchanged=all(copy.outcome == "already_gone" for copy in deleted),
        copies=tuple(deleted),
    )


def _check_nobody_copies(context: Context, artifact: Artifact) -> None:
    """Leave all sources alone while a replication of the artifact may still need them, now or at its next attempt."""
    copying = context.catalogue.ledger.open_on(artifact.bucket, artifact.key, kind=REPLICATE.kind)
    if copying:
        raise Snooze(f"{artifact.path} waits for job {copying[0]}, which may still copy from any of its stores", _LOOK)


def _check_good_copy_remains(context: Context, artifact: Artifact, stores: list[str]) -> None:
    copies = context.catalogue.artifacts.copies(artifact)
    if not any(copy.state.present for store, copy in copies.items() if store in stores):
        return
    others = [copy for store, copy in copies.items() if copy.state.good and store not in stores]
    if not any(_is_there(context, artifact, copy) for copy in others):
        raise LastCopy(
            f"{artifact.path}: no good copy would remain outside {', '.join(stores)}; replicate it first, delete it "
            "everywhere by naming no store, or allow the last copy to go"
        )


def _is_there(context: Context, artifact: Artifact, copy: Copy) -> bool:
    """Ask the store, which may know better than the catalogue. A store that does not answer has no copy to rely on."""
    try:
        return context.stores[copy.store].get_object_size(artifact.bucket, artifact.key) == artifact.digest.size
    except StorageError:
        return False


def _delete(request: DeleteRequest, context: Context, job: RunningJob, store: str, held: list[Copy]) -> DeletedCopy:
    """Delete what lies in a store under the key, whichever version it is: also what a killed job has written there."""
    job.step(f"deleting from {store}")
    job.check()
    with context.gates.enter(store, job, transfer=False):
        was_there = bool(held) and context.stores[store].delete_object(request.bucket, request.key)
    for copy in held:
        context.catalogue.artifacts.delete_copy(copy)
    return DeletedCopy(store=store, outcome="deleted" if was_there else "already_gone")


delete_task = artifact_task(DELETE, writes=True)(delete)
