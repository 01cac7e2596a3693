"""Remove from a store what jobs wrote and did not record before they ended."""

import logging

from worker import clock
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.per_store import SingleFailures
from worker.artifacts.verify_copy import version_of_same_bytes
from worker.catalogue import Artifact, Catalogue, CopyState
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage import Match
from worker.storage.errors import Archived, NotFound, StorageError

logger = logging.getLogger(__name__)


def remove_abandoned_writes(store: LimitedStore, job: RunningJob) -> int:
    """Move to quarantine what jobs wrote and did not record before they ended, and return how many objects that was.

    An upload leaves such bytes if it is killed after it has written, and then superseded or cancelled. What a worker
    that was frozen wrote after its artifact was deleted is deleted, too.
    Where it may have written them over the copy of another version, that copy is due: verify finds it, and repairs it.
    Nothing is done where another job writes to the artifact, or where the object has other bytes than the version.

    Raises:
        StorageError: too many of the objects could not be asked about; the others were removed.
        LostLease: while the worker was frozen, another job has begun to write to one of the artifacts.
    """
    artifacts, settings = job.catalogue.artifacts, job.settings
    moved, failures = 0, SingleFailures()
    for found, writer in artifacts.abandoned(store.name, before=clock.earliest() - settings.sweep.cleanup.age):
        job.heartbeat()
        job.check()
        path = (found.bucket, found.key)
        try:
            with locked(job, [path]) as granted:
                if not granted:
                    continue
                copy = artifacts.copies(found)[store.name]
                if copy.state is CopyState.WRITING:
                    held = artifacts.version_in_store(store.name, *path)
                    if held is None:
                        moved += _remove(store, found, job.catalogue, label=writer or job.id)
                    else:
                        artifacts.read_again(held[1], now=clock.now())
                    artifacts.delete_copies([copy])
            failures.ended()
        except StorageError as error:
            logger.warning("%s: what an ended job wrote to %s stays for now: %s", store.name, found.path, error)
            if not isinstance(error, Archived):
                failures.add(error)
    failures.check()
    return moved


def _remove(store: LimitedStore, artifact: Artifact, catalogue: Catalogue, *, label: str) -> bool:
    """Remove an object into quarantine if it has the bytes of a version; return whether it had.

    Bytes of a version that was deleted are not kept.
    """
    try:
        version = version_of_same_bytes(store, artifact, catalogue)
    except NotFound:
        return False
    if version is None:
        return False
    what = "goes, because that is deleted"
    if artifact.tombstoned_at is None:
        what = f"is kept at {store.quarantine_object(artifact.bucket, artifact.key, label)}"
    # This confirms the lease: a job that uploads the same bytes finds them there, and records them as its copy.
    store.delete_object(artifact.bucket, artifact.key, condition=Match(version))
    logger.warning("%s: %s was written by a job that has ended, and %s", store.name, artifact.path, what)
    return True
