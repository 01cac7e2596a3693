"""Delete: delete an artifact's copies in some stores, or the artifact in all of them."""

from worker import clock
from worker.artifacts.per_store import for_each_store
from worker.catalogue import Artifact
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.snooze import Snooze
from worker.storage.errors import PermanentError, StorageError
from zot_artifact_client.contract import DELETE, REPLICATE, DeletedCopy, DeleteRequest, DeleteResult

_REPLICATION_POLL = 5.0
"""Seconds until a job asks again whether a replication has ended."""


class LastCopy(PermanentError):
    """The last good copy of an artifact would be gone."""


def delete(request: DeleteRequest, context: JobContext, job: RunningJob) -> DeleteResult:
    """Delete the copies in the stores that were named, or the artifact everywhere; what is gone already is no error.

    Everything under the key is deleted, whichever version it is: also what a killed job has written there.

    Raises:
        LastCopy: no good copy would remain outside the stores that were named; nothing was deleted.
        UnknownStore: naming the stores there are.
        Snooze: a replication of the artifact has not ended, or the store of the copy that would remain takes no job
            now; nothing was deleted.
        StorageError, Snooze: a store could not delete its copy; the others have.
    """
    named = [context.stores[name].name for name in request.stores or ()]
    artifacts = context.catalogue.artifacts
    artifact = artifacts.current(request.bucket, request.key)
    held = artifacts.copies_by_store(request.bucket, request.key)
    if artifact and named and not request.allow_last:
        _check_no_replication(context, artifact)
        _check_good_copy_remains(context, artifact, named)

    def delete_from(store: str) -> DeletedCopy:
        job.step(f"deleting from {store}")
        job.check()
        copies = held.get(store, [])
        limited = context.stores[store]
        limited.admit()
        deleted = bool(copies) and limited.delete_object(request.bucket, request.key)
        for copy in copies:
            artifacts.delete_copy(copy)
        return DeletedCopy(store=store, outcome="deleted" if deleted else "already_gone")

    deleted = for_each_store(named or held, delete_from)
    if artifact and not named:
        artifacts.tombstone(artifact, clock.now())
    return DeleteResult(
        bucket=request.bucket,
        key=request.key,
        everywhere=not named,
        unchanged=all(copy.outcome == "already_gone" for copy in deleted),
        copies=tuple(deleted),
    )


def _check_no_replication(context: JobContext, artifact: Artifact) -> None:
    """Keep all sources while a replication of the artifact may need them, now or at its next attempt."""
    copying = context.catalogue.ledger.open_on(artifact.bucket, artifact.key, kind=REPLICATE.kind)
    if copying:
        reason = f"{artifact.path} waits for job {copying[0]}, which may still copy from any of its stores"
        raise Snooze(reason, _REPLICATION_POLL)


def _check_good_copy_remains(context: JobContext, artifact: Artifact, stores: list[str]) -> None:
    """Ask the other stores, which may know better than the catalogue, until one says that it has its copy.

    A store that does not answer has no copy to rely on. One that takes no job now is waited for, if no other has one.
    """
    copies = context.catalogue.artifacts.copies(artifact)
    if not any(copy.state.present for store, copy in copies.items() if store in stores):
        return
    closed: list[Snooze] = []
    for store in (store for store, copy in copies.items() if copy.state.good and store not in stores):
        try:
            if context.stores[store].stat_object(artifact.bucket, artifact.key).size == artifact.digest.size:
                return
        except Snooze as error:
            closed.append(error)
        except StorageError:
            continue
    if closed:
        raise min(closed, key=lambda error: error.seconds)
    raise LastCopy(
        f"{artifact.path}: no good copy would remain outside {', '.join(stores)}; replicate it first, delete it "
        "everywhere by naming no store, or allow the last copy to go"
    )


delete_task = artifact_task(DELETE, writes=True)(delete)
