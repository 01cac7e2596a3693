"""Sweep cleanup: remove what killed writers left in the stores, the staging directory and the spool directory."""

import logging
import shutil
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import redis
from celery import current_app
from kombu.exceptions import OperationalError

from worker import clock
from worker.artifacts.lock_artifacts_for_job import locked
from worker.artifacts.parts_staged_in_store import is_staged_in_store, old_uploads, read_source
from worker.artifacts.per_store import SingleFailures, for_each_store
from worker.artifacts.quarantined_bytes import purge, quarantined
from worker.catalogue import Artifact, Catalogue, CopyState, OpenTransfer, UploadIntent
from worker.jobs.outbox import Outbox
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore
from worker.storage import Match, StaleUpload, Verdict
from worker.storage.errors import Archived, PreconditionFailed, StorageError
from worker.storage.keys import QUARANTINE_BUCKET, UPLOADS_BUCKET
from zot_artifact_client.contract import SWEEP_LEFTOVERS, SweepLeftoversRequest, SweepLeftoversResult

logger = logging.getLogger(__name__)

_BEGINNING = timedelta(minutes=5)
"""Longest time between the intent to begin a multipart upload and the moment that the store names."""


def sweep_cleanup(request: SweepLeftoversRequest, job: RunningJob) -> SweepLeftoversResult:
    """Remove what is older than `sweep.cleanup.age` and belongs to no job that is still open.

    Stores that are paused are left out.

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
        removed, foreign[name] = _clean_uploads(store, job)
        if store.capabilities.signs_puts and store.capabilities.reserved_buckets:
            removed += _clean_parts(store, job.catalogue, age)
        if store.capabilities.reserved_buckets:
            removed += _clean_abandoned(store, job)
            removed += _purge_quarantine(store, job)
            kept[name] = sum(each.size or 0 for each in store.list_objects(QUARANTINE_BUCKET))
        return name, removed

    removed = for_each_store(job.unpaused_stores(request.store), clean)
    staged = 0 if request.store else _clean_staging(job, age)
    open_uploads = {name: count for name, count in foreign.items() if count}
    return SweepLeftoversResult(removed=dict(removed), staged=staged, foreign=open_uploads, quarantined=kept)


def _clean_uploads(store: LimitedStore, job: RunningJob) -> tuple[int, int]:
    """Remove the stale uploads of a store; return how many, and how many of other programs stay."""
    cleanup, transfers = job.settings.sweep.cleanup, job.catalogue.transfers
    before = clock.earliest() - cleanup.age
    intents = transfers.intents(store.name)
    recorded = transfers.open_in(store.name)
    spared = [transfer for transfer in recorded if transfer.live or transfer.begun_at > before]
    unclear, counts, failures = list[StaleUpload](), Counter[str](), SingleFailures()

    def settle(stale: StaleUpload, *, ours: bool) -> None:
        what = f"{stale.description}, begun at {stale.since}"
        if stale.since > before:
            return
        if not ours and cleanup.foreign_uploads == "report":
            logger.warning("%s: %s stays: this worker did not begin it", store.name, what)
            counts["foreign"] += 1
        elif _removed(store, stale, failures):
            logger.info("%s: removed %s", store.name, what)
            counts["removed"] += 1

    for stale in store.iter_stale_uploads():
        job.check()
        if _belongs_to_one(stale, spared):
            continue
        ours = stale.ours or any(_was_begun_by(stale, transfer) for transfer in recorded)
        if not ours and any(_follows(stale, intent) for intent in intents):
            unclear.append(stale)
        else:
            settle(stale, ours=ours)
    intended, ended = _intended(store, unclear, intents, before, failures)
    for stale in unclear:
        settle(stale, ours=stale in intended)
    transfers.forget_intents(ended)
    failures.check()  # the records of what was not removed stay, too
    for transfer in set(recorded).difference(spared):
        transfers.forget(transfer)
    return counts["removed"], counts["foreign"]


def _clean_abandoned(store: LimitedStore, job: RunningJob) -> int:
    """Move to quarantine what jobs wrote and did not record before they ended, and return how many objects that was.

    An upload leaves such bytes if it is killed after it has written, and then superseded or cancelled. What a worker
    that was frozen wrote after its artifact was deleted is deleted, too.
    Where it may have written them over the copy of another version, that copy is due: verify finds it, and repairs it.
    Nothing is done where another job writes to the artifact, or where the object has other bytes than the version.

    Raises:
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
                        moved += _take_away(store, found, job.catalogue, label=writer or job.id)
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


def _take_away(store: LimitedStore, artifact: Artifact, catalogue: Catalogue, *, label: str) -> bool:
    """Move an object to quarantine if it has the bytes of a version; return whether it had.

    Bytes of a version that was deleted are not kept.
    """
    manifest = catalogue.artifacts.manifest(artifact)
    seen = store.verify_object(artifact.bucket, artifact.key, artifact.digest, manifest=manifest)
    if seen.error is not None:
        raise seen.error
    if seen.verdict is not Verdict.VERIFIED or seen.version is None:
        return False
    what = "goes, because that is deleted"
    if artifact.tombstoned_at is None:
        what = f"is kept at {store.quarantine_object(artifact.bucket, artifact.key, label)}"
    # This confirms the lease: a job that uploads the same bytes finds them there, and records them as its copy.
    store.delete_object(artifact.bucket, artifact.key, condition=Match(seen.version))
    logger.warning("%s: %s was written by a job that has ended, and %s", store.name, artifact.path, what)
    return True


def _removed(store: LimitedStore, stale: StaleUpload, failures: SingleFailures) -> bool:
    try:
        removed = store.remove_stale_upload(stale)
    except StorageError as error:
        logger.warning("%s: %s stays for now: %s", store.name, stale.description, error)
        failures.add(error)
        return False
    failures.ended()
    return removed


def _intended(
    store: LimitedStore,
    unclear: list[StaleUpload],
    intents: list[UploadIntent],
    before: datetime,
    failures: SingleFailures,
) -> tuple[list[StaleUpload], list[UploadIntent]]:
    """Return the uploads that a process of ours began and died before it recorded them, and the intents of the past.

    Such an upload has the key of an intent, was begun right after it, and has no part, because the first one is sent
    after the record. Where more uploads fit than there are intents, none of them is taken for ours.
    """
    past = [intent for intent in intents if intent.intended_at + _BEGINNING <= before]
    found = list[StaleUpload]()
    for (bucket, key), same in groupby(sorted(past, key=_place), _place):
        free = 0  # an SDK repeats a request within the second, so that several intents may fit each of several uploads
        for intent in sorted(same, key=attrgetter("intended_at"), reverse=True):
            free += 1
            fits = [stale for stale in unclear if stale not in found and _follows(stale, intent)]
            try:
                fits = [stale for stale in fits if store.is_unused_upload(stale, bucket, key)]
            except StorageError as error:
                failures.add(error)
                past = [each for each in past if _place(each) != (bucket, key)]  # they count the next time
                break
            if len(fits) <= free:
                found += fits
                free -= len(fits)
    return found, past


def _place(intent: UploadIntent) -> tuple[str, str]:
    return intent.bucket, intent.key


def _follows(stale: StaleUpload, intent: UploadIntent) -> bool:
    """Return whether an upload was begun right after an intent, by the clock of the store, which tells seconds."""
    return intent.intended_at.replace(microsecond=0) <= stale.since <= intent.intended_at + _BEGINNING


def _purge_quarantine(store: LimitedStore, job: RunningJob) -> int:
    """Purge what is in quarantine for longer than the settings say, and return how much that was."""
    retention, purged, failures = job.settings.quarantine.retention, 0, SingleFailures()
    if retention is None:
        return 0
    every, database_time = list(quarantined(store, job.catalogue)), job.catalogue.deletions.database_time()
    first = min((each.at for each in every if each.at), default=None) if database_time is None else None
    kept = job.settings.broker_file.with_name(f"clock-quarantine-{store.name}")
    now = clock.not_ahead(kept, retention, first=first)
    now = min(now, database_time or now)
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


def _belongs_to_one(stale: StaleUpload, transfers: list[OpenTransfer]) -> bool:
    """Return whether a stale upload may be part of a write that a job will resume; True if that is unknown."""

    def belongs(transfer: OpenTransfer) -> bool:
        token = (*transfer.token.split(":"), transfer.token)
        return any(piece in token or piece.endswith(transfer.path) for piece in stale.token)

    return any(belongs(transfer) for transfer in transfers)


def _was_begun_by(stale: StaleUpload, transfer: OpenTransfer) -> bool:
    """Return whether the catalogue has recorded the beginning of this very upload."""
    return stale.token[-1] in transfer.token.split(":")


def _clean_parts(store: LimitedStore, catalogue: Catalogue, age: timedelta) -> int:
    """Remove the parts of uploads that no open job needs, and return how many uploads those were of."""
    old = old_uploads(store, clock.earliest() - age)
    # A job is in the ledger before it leaves the outbox: asked in the other order, one could be in neither.
    waiting = _waiting(set(old))
    sources = catalogue.ledger.sources_of_open_jobs() if old else set()
    wanted = {read_source(source)[:2] for source in sources if is_staged_in_store(source)}
    gone = [upload for upload in old if upload not in waiting and (store.name, upload) not in wanted]
    for upload in gone:
        for part in old[upload]:
            with suppress(PreconditionFailed):  # it has been sent again since it was listed
                store.delete_object(UPLOADS_BUCKET, part.key, condition=Match(part.version))
        logger.info("%s: removed what was staged for upload %s", store.name, upload)
    return len(gone)


def _clean_staging(job: RunningJob, age: timedelta) -> int:
    """Remove staged sources that no open job needs, and what killed commands left in the spool directory."""
    settings = job.settings
    removed = 0
    for path in _old(settings.spool_dir, age):
        _remove(path)
        removed += 1
    staged = {path: path.with_name(path.name.removesuffix(".upload")) for path in _old(settings.staging_dir, age)}
    # A job is in the ledger before it leaves the outbox: asked in the other order, one could be in neither.
    waiting = _waiting({directory.name for directory in staged.values()})
    wanted = job.catalogue.ledger.sources_of_open_jobs()
    for path, directory in staged.items():
        if directory.name not in waiting and not any(source.startswith(f"{directory}/") for source in wanted):
            _remove(path)
            removed += 1
    return removed


def _waiting(jobs: set[str]) -> set[str]:
    """Return those of these jobs that no worker has taken; all of them if the broker cannot be asked.

    A broker that is no Redis does not have them by id: what is staged for a job waits no longer than `age` there.
    """
    if not jobs:
        return set()
    try:
        lost = Outbox(current_app).lost(sorted(jobs))
    except (redis.RedisError, OperationalError, OSError) as error:
        logger.warning("staged files stay for now: the outbox cannot be read: %s", type(error).__name__)
        return jobs
    return set() if lost is None else jobs - lost


def _old(directory: Path, age: timedelta) -> list[Path]:
    return [path for path in directory.iterdir() if _last_change(path) <= clock.earliest() - age]


def _last_change(path: Path) -> datetime:
    """Return when a file, or what is in a directory, was last written; a link is not followed."""
    try:
        times = [path.lstat().st_mtime]
    except FileNotFoundError:  # the gateway has just renamed it
        return clock.now()
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
