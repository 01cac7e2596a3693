"""Have each store keep what would be lost with the catalogue, such as deletes, and hold the artifacts that are held."""

import logging
from collections.abc import Sequence

from worker.artifacts.rebuild.kept_lists import keep_companions, keep_tombstones
from worker.artifacts.store_holds import hold_missing
from worker.artifacts.verification_log.kept_head import see_head
from worker.artifacts.verification_log.signature import BadKeyFile, LogKeys
from worker.jobs.running_job import RunningJob
from worker.limits.snooze import Snooze
from worker.storage.errors import StorageError

logger = logging.getLogger(__name__)


def keep_records(job: RunningJob, stores: Sequence[str]) -> None:
    """Have every store keep the head of the log, deletes and companions, and place the holds that it lacks.

    Where the kept head does not fit the log, as after a restore, the lists of deletes and companions stay as they are.
    """
    keys = LogKeys.of(job.settings.verification_log)
    for name in stores:
        job.check()
        try:
            job.stores[name].admit()
            fault = see_head(job.unlimited_stores[name], job.catalogue, keys)
            if not fault:  # else the lists there may be later than this catalogue, and a rebuild needs them
                keep_tombstones(job.unlimited_stores[name], job.catalogue, job.settings.spool_dir)
                keep_companions(job.unlimited_stores[name], job.catalogue, job.settings.spool_dir)
            hold_missing(job.catalogue, job.unlimited_stores[name])
        except (StorageError, Snooze, BadKeyFile) as error:
            logger.warning(
                "%s does not keep the head of the log, deletes or companions, or lacks holds: %s", name, error
            )
        else:
            if fault:
                logger.error("store %s: %s", name, fault)
