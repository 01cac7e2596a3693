"""Sweep backup: write the catalogue to the stores of `sweep.backup.stores`, rehearse a restore, archive the log."""

import logging

from worker import clock
from worker.artifacts.catalogue_backup import back_up
from worker.artifacts.per_store import most_retryable
from worker.artifacts.records_kept_in_stores import keep_records
from worker.artifacts.verification_log.archive import archive_log
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage.errors import PermanentError
from zot_artifact_client.contract import SWEEP_BACKUP, SweepBackupRequest, SweepBackupResult

logger = logging.getLogger(__name__)


class NoBackupStore(PermanentError):
    """No store is configured for backups of the catalogue."""


def sweep_backup(request: SweepBackupRequest, job: RunningJob) -> SweepBackupResult:
    """Write one export of the catalogue to each store for backups, read it back, and rehearse a restore when due.

    Stores that are paused are left out. When all of them have a backup, the months of the verification log that ended
    longer ago than `verification_log.keep` are archived in them too, and their rows are removed.

    Raises:
        NoBackupStore: none is configured.
        UnknownStore: naming the stores there are.
        StorageError, Snooze: a store has no new backup; the others have one.
    """
    settings = job.settings.sweep.backup
    named = [request.store] if request.store else list(settings.stores)
    if not named:
        raise NoBackupStore("no store is configured for backups of the catalogue: set sweep.backup.stores to two")
    stores = [job.stores[each] for name in named for each in job.swept_stores(name)]
    job.start(None, "exporting the catalogue")
    done = back_up(job.catalogue, stores, settings, job.settings.spool_dir, job=job.id, on_bytes=job.advance)
    for name, fault in done.faults.items():
        logger.error("store %s has no good backup of the catalogue: %s", name, fault)
    if done.failures:
        raise most_retryable(done.failures)
    keep = job.settings.verification_log.keep
    if keep is not None and {store.name for store in stores} == set(settings.stores):
        job.step("archiving the verification log")
        keep_records(job, job.unpaused_stores(None))  # a kept head that is archived can never be compared
        months = archive_log(
            job.catalogue, stores, job.settings.spool_dir,
            before=clock.earliest() - keep, check=job.check, on_bytes=job.advance,
        )  # fmt: skip
        if months:
            logger.info("these months of the verification log are archived now: %s", ", ".join(months))
    return SweepBackupResult(
        written=dict(done.written), faults=dict(done.faults), rehearsed=tuple(done.rehearsed), removed=done.removed
    )


sweep_backup_task = artifact_task(SWEEP_BACKUP, writes=False)(sweep_backup)
