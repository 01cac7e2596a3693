"""Sweep cleanup: remove what killed writers left in the stores, the staging directory and the spool directory.

It also purges the quarantine of each store.
"""

import logging
from datetime import datetime

from worker.artifacts.certain_time import certain_time
from worker.artifacts.cleanup.abandoned_writes import remove_abandoned_writes
from worker.artifacts.cleanup.stale_uploads import remove_stale_uploads
from worker.artifacts.cleanup.unneeded_sources import remove_unneeded_files, remove_unneeded_parts
from worker.artifacts.per_store import SingleFailures, for_each_store
from worker.artifacts.quarantined_bytes import purge, quarantined
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore
from worker.storage.errors import StorageError
from worker.storage.keys import QUARANTINE_BUCKET
from zot_artifact_client.contract import SWEEP_LEFTOVERS, SweepLeftoversRequest, SweepLeftoversResult

logger = logging.getLogger(__name__)


def sweep_cleanup(request: SweepLeftoversRequest, job: RunningJob) -> SweepLeftoversResult:
    """Remove what is older than `sweep.cleanup.age` and belongs to no job that is still open.

    What is in quarantine for longer than `quarantine.retention` is purged. Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
        StorageError, Snooze: a store could not be cleaned; the others were.
    """
    age = job.settings.sweep.cleanup.age
    foreign: dict[str, int] = {}
    kept: dict[str, int] = {}

    def clean(name: str) -> tuple[str, int]:
        job.step(f"cleaning {name}")
        store = job.stores[name]
        removed, foreign[name] = remove_stale_uploads(store, job)
        if store.capabilities.signs_puts and store.capabilities.reserved_buckets:
            removed += remove_unneeded_parts(store, job.catalogue, age)
        if store.capabilities.reserved_buckets:
            removed += remove_abandoned_writes(store, job)
            removed += _purge_quarantine(store, job)
            kept[name] = sum(each.size or 0 for each in store.list_objects(QUARANTINE_BUCKET))
        return name, removed

    removed = for_each_store(job.swept_stores(request.store), clean)
    staged = 0 if request.store else remove_unneeded_files(job, age)
    open_uploads = {name: count for name, count in foreign.items() if count}
    return SweepLeftoversResult(removed=dict(removed), staged=staged, foreign=open_uploads, quarantined=kept)


def _purge_quarantine(store: LimitedStore, job: RunningJob) -> int:
    """Purge what is in quarantine for longer than the settings say, and return how much that was."""
    retention, purged, failures = job.settings.quarantine.retention, 0, SingleFailures()
    if retention is None:
        return 0
    every = list(quarantined(store, job.catalogue))

    def first() -> datetime | None:
        return min((each.at for each in every if each.at), default=None)

    now = certain_time(job, f"quarantine-{store.name}", retention, first=first)
    for found in every:
        job.heartbeat()
        job.check()
        if found.at is None or found.at > now - retention:
            continue
        try:
            if purge(store, found):
                logger.info("%s: purged %s from quarantine, kept since %s", store.name, found.id, found.at)
                purged += 1
        except StorageError as error:
            logger.warning("%s: %s stays in quarantine for now: %s", store.name, found.id, error)
            failures.add(error)
        else:
            failures.ended()
    failures.check()
    return purged


sweep_cleanup_task = artifact_task(SWEEP_LEFTOVERS, writes=False)(sweep_cleanup)
