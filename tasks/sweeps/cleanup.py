"""Sweep left-overs: remove what killed writers left in the stores and in the staging directory."""

import logging
import shutil
from datetime import UTC, datetime, timedelta

from worker import clock
from worker.artifacts.per_store import for_each_store
from worker.catalogue import OpenTransfer
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage import StaleUpload, Store
from zot_artifact_client.contract import SWEEP_LEFTOVERS, SweepLeftoversRequest, SweepLeftoversResult

logger = logging.getLogger(__name__)


def sweep_leftovers(request: SweepLeftoversRequest, context: Context, job: RunningJob) -> SweepLeftoversResult:
    """End what is older than `sweep.leftovers.age` and belongs to no job that has still to end.

    Stores that are paused are left out.

    Raises:
        UnknownStore: naming the stores there are.
        StorageError, Snooze: a store could not be swept; the others were.
    """
    stores = [context.stores[name] for name in context.swept(request.store)]
    age = context.settings.sweep.leftovers.age
    removed = for_each_store(stores, lambda store: (store.name, _enter(context, job, store, age)))
    staged = 0 if request.store else _sweep_staging(context, age)
    return SweepLeftoversResult(removed=dict(removed), staged=staged)


def _enter(context: Context, job: RunningJob, store: Store, age: timedelta) -> int:
    with context.gates.enter(store.name, job, transfer=False):
        return _sweep(context, job, store, age)


def _sweep(context: Context, job: RunningJob, store: Store, age: timedelta) -> int:
    job.step(f"looking at {store.name}")
    transfers = context.catalogue.transfers.open_in(store.name)
    spared = [transfer for transfer in transfers if transfer.live or transfer.begun_at > clock.now() - age]
    removed = 0
    for unfinished in store.iter_stale_uploads():
        job.check()
        old = unfinished.since <= clock.now() - age
        if (
            old
            and not any(_is_of(unfinished, transfer) for transfer in spared)
            and store.remove_stale_upload(unfinished)
        ):
            logger.info("%s: removed %s, begun at %s", store.name, unfinished.description, unfinished.since)
            removed += 1
    for transfer in transfers:
        if transfer not in spared:
            context.catalogue.transfers.forget(transfer)
    return removed


def _is_of(unfinished: StaleUpload, transfer: OpenTransfer) -> bool:
    """Return whether a left-over may be part of a write that somebody will go on with; in doubt it is."""
    token = (*transfer.token.split(":"), transfer.token)
    return any(piece in token or piece.endswith(transfer.path) for piece in unfinished.token)


def _sweep_staging(context: Context, age: timedelta) -> int:
    """Remove staged sources that no job will ask for any more."""
    wanted = context.catalogue.ledger.sources_of_open_jobs()
    removed = 0
    for staged in context.settings.staging_dir.iterdir():
        old = datetime.fromtimestamp(staged.stat().st_mtime, UTC) <= clock.now() - age
        if old and not any(source.startswith(f"{staged}/") for source in wanted):
            shutil.rmtree(staged, ignore_errors=True)
            removed += 1
    return removed


sweep_leftovers_task = artifact_task(SWEEP_LEFTOVERS, writes=False)(sweep_leftovers)
