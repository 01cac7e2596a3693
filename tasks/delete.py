"""Delete: take an artifact's copies from some stores, or the artifact from all of them."""

from worker import clock
from worker.catalogue import Artifact, Copy
from worker.context import Context
from worker.jobs.running import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import PermanentError, StorageError
from worker.together import each
from zot_artifact_client.contract import DELETE, DeletedCopy, DeleteRequest, DeleteResult


class LastCopy(PermanentError):
    """The last good copy of an artifact would be gone."""


def delete(request: DeleteRequest, context: Context, job: RunningJob) -> DeleteResult:
    """Delete the copies in the stores that were named, or the artifact everywhere; what is gone already is no error.

    Raises:
        LastCopy: no good copy would remain outside the stores that were named; nothing was deleted.
        UnknownStore: naming the stores there are.
        StorageError: a store could not delete its copy; the others have.
    """
    artifact = context.catalogue.artifacts.current(request.bucket, request.key)
    stores = [context.stores[name].name for name in request.stores or ()]
    if artifact is None:
        return _result(request, [DeletedCopy(store=name, outcome="already_gone") for name in stores])
    if request.stores is None:
        deleted = _everywhere(context, job, artifact)
    else:
        if not request.allow_last:
            _check_good_copy_remains(context, artifact, stores)
        held = {
            store: copy for store, copy in context.catalogue.artifacts.copies(artifact).items() if copy.state.present
        }
        deleted = each(stores, lambda store: _delete(context, job, artifact, store, held.get(store)))
    return _result(request, deleted)


def _everywhere(context: Context, job: RunningJob, artifact: Artifact) -> list[DeletedCopy]:
    """Delete every version wherever there are bytes of it, and record last that the artifact is deleted."""
    held = context.catalogue.artifacts.held_anywhere(artifact.bucket, artifact.key)
    deleted = each(held, lambda copy: _delete(context, job, artifact, copy.store, copy))
    context.catalogue.artifacts.tombstone(artifact, clock.now())
    return deleted


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


def _delete(context: Context, job: RunningJob, artifact: Artifact, store: str, copy: Copy | None) -> DeletedCopy:
    job.step(f"deleting from {store}")
    job.check()
    if copy is None:
        return DeletedCopy(store=store, outcome="already_gone")
    was_there = context.stores[store].delete_object(artifact.bucket, artifact.key)
    context.catalogue.artifacts.delete_copy(copy)
    return DeletedCopy(store=store, outcome="deleted" if was_there else "already_gone")


def _result(request: DeleteRequest, copies: list[DeletedCopy]) -> DeleteResult:
    return DeleteResult(
        bucket=request.bucket,
        key=request.key,
        everywhere=request.stores is None,
        unchanged=all(copy.outcome == "already_gone" for copy in copies),
        copies=tuple(copies),
    )


delete_task = artifact_task(DELETE, writes=True)(delete)
