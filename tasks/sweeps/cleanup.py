"""Sweep cleanup: remove what killed writers left in the stores, the staging directory and the spool directory."""

import logging
import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from worker import clock
from worker.artifacts.per_store import for_each_store
from worker.artifacts.quarantine import purge, quarantined
from worker.catalogue import OpenTransfer
from worker.context import JobContext
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore
from worker.storage import StaleUpload
from zot_artifact_client.contract import SWEEP_LEFTOVERS, SweepLeftoversRequest, SweepLeftoversResult

logger = logging.getLogger(__name__)


def sweep_cleanup(request: SweepLeftoversRequest, context: JobContext, job: RunningJob) -> SweepLeftoversResult:
    """Remove what is older than `sweep.leftovers.age` and belongs to no job that is still open.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
        StorageError, Snooze: a store could not be cleaned; the others were.
    """
    age = context.settings.sweep.leftovers.age
    foreign_uploads = context.settings.sweep.leftovers.foreign_uploads

    foreign: dict[str, int] = {}

    def clean(name: str) -> tuple[str, int]:
        job.step(f"cleaning {name}")
        store = context.stores[name]
        transfers = context.catalogue.transfers.open_in(name)
        spared = [transfer for transfer in transfers if transfer.live or transfer.begun_at > clock.now() - age]
        removed = 0
        for stale in store.iter_stale_uploads():
            job.check()
            if stale.since > clock.now() - age or any(_belongs_to(stale, transfer) for transfer in spared):
                continue
            begun_by_us = stale.ours or any(_was_begun_by(stale, transfer) for transfer in transfers)
            if not begun_by_us and foreign_uploads == "report":
                foreign[name] = foreign.get(name, 0) + 1
                logger.warning(
                    "%s: left %s, begun at %s: this worker did not begin it", name, stale.description, stale.since
                )
            elif store.remove_stale_upload(stale):
                logger.info("%s: removed %s, begun at %s", name, stale.description, stale.since)
                removed += 1
        for transfer in transfers:
            if transfer not in spared:
                context.catalogue.transfers.forget(transfer)
        removed += _purge_quarantine(store, context, job)
        return name, removed

    removed = for_each_store(context.unpaused_stores(request.store), clean)
    staged = 0 if request.store else _clean_staging(context, age)
    return SweepLeftoversResult(removed=dict(removed), staged=staged, foreign=foreign)


def _purge_quarantine(store: LimitedStore, context: JobContext, job: RunningJob) -> int:
    """Purge what is in quarantine for longer than the settings say, and return how much that was."""
    retention, purged = context.settings.quarantine.retention, 0
    if retention is None or not store.capabilities.reserved_buckets:
        return 0
    for found in list(quarantined(store, context.catalogue)):
        job.heartbeat()
        job.check()
        if found.at is not None and found.at <= clock.now() - retention and purge(store, found):
            logger.info("%s: purged %s from quarantine, kept since %s", store.name, found.id, found.at)
            purged += 1
    return purged


def _belongs_to(stale: StaleUpload, transfer: OpenTransfer) -> bool:
    """Return whether a stale upload may be part of a write that a job will resume; True if that is unknown."""
    token = (*transfer.token.split(":"), transfer.token)
    return any(piece in token or piece.endswith(transfer.path) for piece in stale.token)


def _was_begun_by(stale: StaleUpload, transfer: OpenTransfer) -> bool:
    """Return whether the catalogue has recorded the beginning of this very upload."""
    return stale.token[-1] in transfer.token.split(":")


def _clean_staging(context: JobContext, age: timedelta) -> int:
    """Remove staged sources that no open job needs, and what killed commands left in the spool directory."""
    wanted = context.catalogue.ledger.sources_of_open_jobs()
    removed = 0
    settings = context.settings
    for path in [*settings.staging_dir.iterdir(), *settings.spool_dir.iterdir()]:
        old = _last_change(path) <= clock.now() - age
        if old and not any(source.startswith(f"{path}/") for source in wanted):
            _remove(path)
            removed += 1
    return removed


def _last_change(path: Path) -> datetime:
    """Return when a file, or what is in a directory, was last written; a link is not followed."""
    times = [path.lstat().st_mtime]
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):
            times += [each.lstat().st_mtime for each in path.iterdir()]
    return datetime.fromtimestamp(max(times), UTC)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


sweep_cleanup_task = artifact_task(SWEEP_LEFTOVERS, writes=False)(sweep_cleanup)
