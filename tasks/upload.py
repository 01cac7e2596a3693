"""Upload: write the bytes of a source under a key, to every store that should have them."""

import logging
from contextlib import AbstractContextManager

from worker import clock
from worker.artifacts.artifact_copies import ArtifactJob, Records
from worker.artifacts.parts_staged_in_store import assembled, is_staged_in_store, remove_parts
from worker.artifacts.per_store import check_beside_bytes, check_size, for_each_store
from worker.artifacts.sources import HashedSource, Source, open_source, remove_partial, remove_staged
from worker.artifacts.waiting_uploads import closed_stores, lacking
from worker.catalogue.nearest_key import HINT
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore, LimitedStores, NoJob
from worker.limits.snooze import Snooze
from worker.storage.configured_stores import UnknownStore
from worker.storage.errors import NotFound, StorageError
from worker.storage.keys import check_bucket, check_key
from zot_artifact_client.contract import UPLOAD, PlacedCopy, UploadRequest, UploadResult

logger = logging.getLogger(__name__)


def upload(request: UploadRequest, job: RunningJob) -> UploadResult:
    """Hash the source, record it as a version of the artifact, and write it to each store, hashed again on the way.

    The same bytes again are no new version unless the request names other metadata or headers, and a copy that a store
    has already is not written again.

    Raises:
        SourceRefused, NotFound: the source cannot be opened.
        DigestMismatch: the source is not what the request announced.
        InvalidKey, UnknownStore, InvalidMetadata: nothing was read.
        PermanentError: a store has no such storage class; nothing was read.
        SizeMismatch: it is larger than one of the stores can hold; nothing was written.
        NotFound, WrongCompanion, OnHold: it cannot be a companion of the artifact that the request names.
        Superseded: between two attempts a newer version was recorded, or the artifact was deleted; that is kept.
        StorageError, Snooze: a store did not take its copy; the other stores have theirs.
    """
    stores = _stores_of(request, job)
    if job.snoozed_since:
        _check_can_go_on(request, stores, job)
    job.step("opening the source")
    with _open(request, job) as source:
        check_size(source.size, stores, f"{request.bucket}/{request.key}")
        job.start(source.size * (1 + len(stores)), "hashing the source")
        content = source.hashed(request.sha256, job.advance)
        work = _record(request, content, stores, job)

        def write(store: LimitedStore) -> PlacedCopy:
            job.step(f"writing to {store.name}")
            return work.put(store, content.body, storage_class=request.storage_classes.get(store.name))

        written = for_each_store(stores, write)
        if (of := request.companion_of) is not None:
            by = f"job {job.id}"
            job.catalogue.companions.add(request.bucket, request.key, of, by=by, now=clock.now())
        return work.result(UploadResult, written)


def _stores_of(request: UploadRequest, job: RunningJob) -> list[LimitedStore]:
    """Return the stores that the upload writes to; raise before the source is read if the upload cannot be done."""
    check_key(check_bucket(request.bucket), request.key)
    bucket, key, catalogue = request.bucket, request.key, job.catalogue
    if (of := request.companion_of) is not None:
        _check_is_there(bucket, of, job)
        catalogue.companions.check(bucket, key, of)
    placed_as = of or (catalogue.companions.placed_as(bucket, key) if job.settings.placement_rules else key)
    names = request.stores or job.settings.placement_of(bucket, placed_as)
    for name in request.storage_classes:
        if name not in names:
            raise UnknownStore(f"storage_classes names {name!r}, which the upload does not go to")
    check_beside_bytes(request, job.stores, names)
    return job.stores.admitting(names)


def _check_is_there(bucket: str, of: str, job: RunningJob) -> None:
    try:
        job.catalogue.artifact(bucket, of)
    except NotFound as error:
        bare = of.removeprefix(f"{bucket}/")
        if bare == of:
            raise
        told = error.message.partition(HINT)[0]
        raise NotFound(f"{told}; name the artifact of a companion by the key without the bucket, {bare!r}") from None


def _check_can_go_on(request: UploadRequest, stores: list[LimitedStore], job: RunningJob) -> None:
    """Raise Snooze if only stores that take no job now lack their copies: the source is not read for them."""
    names = [store.name for store in stores]
    closed = closed_stores(names, job.stores)
    if closed and not lacking({(request.bucket, request.key): names}, closed, job):
        raise min(closed.values(), key=lambda error: error.seconds)


def _open(request: UploadRequest, job: RunningJob) -> AbstractContextManager[Source]:
    """Open the source: a file, a URL, or the parts that a client has written into a store."""
    if is_staged_in_store(request.source):
        return assembled(request.source, job.stores, job.settings, job=job.id, heartbeat=job.heartbeat)
    return open_source(request.source, job.settings, job=job.id, sha256=request.sha256, heartbeat=job.heartbeat)


def _record(request: UploadRequest, content: HashedSource, stores: list[LimitedStore], job: RunningJob) -> ArtifactJob:
    """Record the version and the copies that are to be written, before any store is written to."""
    recorded = job.catalogue.artifacts.record(
        request.bucket, request.key, content.digest, request.metadata, clock.now(), manifest=content.manifest,
        stores=[store.name for store in stores], job=job.id, properties=request.properties, replaces_headers=True,
        stores_named=request.stores is not None, durable=False,
    )  # fmt: skip
    # Copies of a small artifact are recorded with the end of the job, in one transaction: to read them again costs
    # little.
    records = Records(finished=job.finished) if content.in_memory else None
    return ArtifactJob(job, recorded.artifact, records, recorded.copies)


def remove_source(request: UploadRequest, context: Context, job: str) -> None:
    """Remove what was staged for an upload that has ended, or downloaded."""
    if is_staged_in_store(request.source):
        try:
            remove_parts(request.source, LimitedStores(context.stores, context.admission, NoJob(job)), job=job)
        except (StorageError, Snooze) as error:
            logger.warning("job %s: its staged parts stay until the cleanup sweep: %s", job, error)
    elif request.staged:
        remove_staged(request.source, context.settings, job)
    elif "://" in request.source:
        remove_partial(context.settings, job)


upload_task = artifact_task(UPLOAD, writes=True, at_end=remove_source)(upload)
