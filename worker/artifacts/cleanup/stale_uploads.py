"""Remove the writes that no job will resume: the uploads and partial files that killed writers left in a store."""

import logging
from collections import Counter
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter

from worker import clock
from worker.artifacts.per_store import SingleFailures
from worker.catalogue import OpenTransfer, UploadIntent
from worker.jobs.running_job import RunningJob
from worker.limits.limited_store import LimitedStore
from worker.storage import StaleUpload
from worker.storage.errors import StorageError

logger = logging.getLogger(__name__)

_BEGINNING = timedelta(minutes=5)
"""Longest time between the intent to begin a multipart upload and the moment that the store names."""


def remove_stale_uploads(store: LimitedStore, job: RunningJob) -> tuple[int, int]:
    """Remove the stale uploads of a store; return how many, and how many of other programs stay.

    Raises:
        StorageError: too many of them could not be removed; the others were.
    """
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


def _removed(store: LimitedStore, stale: StaleUpload, failures: SingleFailures) -> bool:
    try:
        removed = store.remove_stale_upload(stale)
    except StorageError as error:
        logger.warning("%s: %s stays for now: %s", store.name, stale.description, error)
        failures.add(error)
        return False
    failures.ended()
    return removed


def _belongs_to_one(stale: StaleUpload, transfers: list[OpenTransfer]) -> bool:
    """Return whether a stale upload may be part of a write that a job will resume; True if that is unknown."""

    def belongs(transfer: OpenTransfer) -> bool:
        token = (*transfer.token.split(":"), transfer.token)
        return any(piece in token or piece.endswith(transfer.path) for piece in stale.token)

    return any(belongs(transfer) for transfer in transfers)


def _was_begun_by(stale: StaleUpload, transfer: OpenTransfer) -> bool:
    """Return whether the catalogue has recorded the beginning of this very upload."""
    return stale.token[-1] in transfer.token.split(":")


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
