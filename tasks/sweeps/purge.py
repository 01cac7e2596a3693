"""Sweep purge: remove the bytes of deleted artifacts whose grace period is over."""

import logging
from datetime import datetime
from itertools import islice

from worker import clock
from worker.artifacts.certain_time import certain_time
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.per_store import most_retryable
from worker.artifacts.verify_copy import version_of_same_bytes
from worker.catalogue import Artifact, Copy, CopyState, FindingKind, NewFinding, Tombstone
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.storage import Match
from worker.storage.errors import NotFound, PreconditionFailed, StorageError
from zot_artifact_client.contract import SWEEP_PURGE, SweepPurgeRequest, SweepPurgeResult

logger = logging.getLogger(__name__)

_GROUP = 100


def sweep_purge(request: SweepPurgeRequest, job: RunningJob) -> SweepPurgeResult:  # noqa: ARG001
    """Delete the copies of artifacts that were deleted longer ago than their grace period, up to a limit.

    Held artifacts, those that another job writes to, and copies in paused or unconfigured stores stay for the next run.
    A copy is deleted only if its object is the one that the catalogue has, or has its bytes. Any other object stays,
    also if it is a copy that was found bad, and is a finding: another program may have written it.
    What a killed job wrote and did not record is deleted too, if it has the bytes of its version.

    Raises:
        StorageError, Snooze: a copy could not be deleted; the others were.
        LostLease: while the worker was frozen, another job has begun to write to one of the artifacts.
    """
    now, found = _due(job)
    due = iter(found)
    purge = _Purge(job, now)
    while group := list(islice(due, _GROUP)):
        with locked(job, [(each.bucket, each.key) for each in group]) as granted:
            purge.group([each for each in group if (each.bucket, each.key) in granted])
    if purge.failures:
        raise most_retryable(purge.failures)
    return SweepPurgeResult(purged=purge.purged, copies=purge.copies)


def _due(job: RunningJob) -> tuple[datetime, list[Tombstone]]:
    """Return the present moment, and the tombstones whose grace period is over by every clock."""
    deletions = job.catalogue.deletions
    found = deletions.due(now=clock.now(), limit=job.settings.sweep.purge.batch)
    longest = max((each.purge_after - each.deleted_at for each in found), default=job.settings.delete.grace)
    now = certain_time(job, "purge", longest, first=deletions.first_deleted_at)
    due = [each for each in found if each.purge_after <= now]
    if len(due) < len(found):
        logger.warning(
            "the clock may be ahead: it is %s, and %s is certain; %d deleted artifacts are not purged yet",
            clock.now(), now, len(found) - len(due),
        )  # fmt: skip
    return now, due


class _Purge:
    """The purge of one run, and what it has done. `now` is what the grace periods are compared with."""

    def __init__(self, job: RunningJob, now: datetime) -> None:
        self._job = job
        self._now = now
        self._own = {name for name in job.stores if job.is_own(name)}
        self.purged = 0
        self.copies: dict[str, int] = {}
        self.failures: list[StorageError | Snooze] = []

    def group(self, tombstones: list[Tombstone]) -> None:
        deletions, ended = self._job.catalogue.deletions, []
        for each in tombstones:
            self._job.heartbeat()
            self._job.check()
            if (found := deletions.begin_purge(each, now=self._now)) is None:
                continue
            # What was written over a copy and not recorded goes first: afterwards that copy is gone, too.
            found.sort(key=lambda one: one[1].state is not CopyState.WRITING)
            gone = [copy for artifact, copy in found if self._delete(artifact, copy, each.version)]
            self._job.catalogue.artifacts.delete_copies(gone)
            if len(gone) == len(found):
                ended.append(each)
        deletions.end_purge(ended)
        self.purged += len(ended)

    def _delete(self, artifact: Artifact, copy: Copy, newest: int) -> bool:
        """Delete one copy and return whether it is gone, or no copy of this version any more.

        `newest` is the last version that was deleted.
        """
        job = self._job
        if copy.store not in self._own or job.pauses.of_store(copy.store) is not None:
            return False
        store = job.stores[copy.store]
        try:
            version = copy.tag or version_of_same_bytes(store, artifact, job.catalogue)
            try:
                deleted = self._delete_version(store, artifact, copy, version, newest)
            except PreconditionFailed:  # a restored or remounted file system has other versions of the same bytes
                version = version_of_same_bytes(store, artifact, job.catalogue)
                deleted = self._delete_version(store, artifact, copy, version, newest)
        except NotFound:
            return True
        except (StorageError, Snooze) as error:
            self.failures.append(error)
            return False
        if deleted:
            self.copies[copy.store] = self.copies.get(copy.store, 0) + 1
        return True

    def _delete_version(
        self, store: LimitedStore, artifact: Artifact, copy: Copy, version: str | None, newest: int
    ) -> bool:
        """Delete this version of the object, None if it has none that is on record; return whether it was deleted.

        What is under the key stays if it is of an artifact version that was not deleted, or has other bytes. The latter
        is a finding if a copy was recorded there.
        """
        held = self._job.catalogue.artifacts.version_in_store(store.name, artifact.bucket, artifact.key)
        if held is not None and held[0].version > newest:
            return False
        if version is None:
            if copy.state is not CopyState.WRITING:
                self._keep(store, artifact)
            return False
        # This confirms the lease, after the version was read: it spares what another job has written since.
        return store.delete_object(artifact.bucket, artifact.key, condition=Match(version))

    def _keep(self, store: LimitedStore, artifact: Artifact) -> None:
        """Open the finding about an object that no delete has meant: another program may have written it."""
        detail = (
            f"the purge of version {artifact.version}, which was deleted, has left it: it has other bytes than that "
            "version; copy it elsewhere if it is needed, and remove it with the tools of the store, on a disk together "
            "with the version's digest in `KEY.sha256`"
        )
        evidence = {"job": self._job.id, "detail": detail}
        found = NewFinding(FindingKind.ORPHAN, store.name, artifact.bucket, artifact.key, evidence=evidence)
        self._job.catalogue.findings.see([found], now=clock.now())
        logger.warning("%s: %s: %s", store.name, artifact.path, detail)


sweep_purge_task = artifact_task(SWEEP_PURGE, writes=False)(sweep_purge)
