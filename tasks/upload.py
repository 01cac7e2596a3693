"""Upload: bring the bytes of a source under a key, to every store that should have them."""

from worker import clock
from worker.artifacts import copies
from worker.artifacts.per_store import for_each_store
from worker.artifacts.sources import Source, open_source, remove_staged
from worker.catalogue import Artifact
from worker.context import Context
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.storage import Store
from worker.storage.errors import PermanentError
from worker.storage.keys import check_bucket, check_key
from worker.storage.registry import UnknownStore
from zot_artifact_client.contract import UPLOAD, PlacedCopy, UploadRequest, UploadResult


def upload(request: UploadRequest, context: Context, job: RunningJob) -> UploadResult:
    """Hash the source, record it as a version of the artifact, and write it to each store, hashed again on the way.

    The same bytes again are no new version, and what is already in place is not written again.

    Raises:
        SourceRefused, NotFound: the source is not to be had.
        DigestMismatch: the source is not what the request announced.
        InvalidKey, UnknownStore: nothing was read.
        Superseded: between two attempts a newer version came, or the artifact was deleted; that stands.
        StorageError, Snooze: a store did not take its copy; the other stores have theirs.
    """
    check_key(check_bucket(request.bucket), request.key)
    stores = [context.stores[name] for name in _stores(request, context)]
    _check_classes(request, stores)
    context.gates.check_any(store.name for store in stores)  # or else the source would be read for nothing
    with open_source(request.source, context.settings) as source:
        job.start(source.size * (1 + len(stores)), "hashing the source")
        digest, manifest = source.digests(request.sha256, job.advance)
        artifact = context.catalogue.artifacts.record(
            request.bucket,
            request.key,
            digest,
            request.metadata,
            clock.now(),
            manifest=manifest,
            stores=[store.name for store in stores],
            job=job.id,
        )
        placed = for_each_store(
            stores,
            lambda store: _place(context, job, artifact, store, source, request.storage_classes.get(store.name)),
        )
    return UploadResult(
        bucket=artifact.bucket,
        key=artifact.key,
        version=artifact.version,
        size=digest.size,
        sha256=digest.sha256,
        unchanged=all(copy.outcome == "already_there" for copy in placed),
        copies=tuple(placed),
    )


def _stores(request: UploadRequest, context: Context) -> tuple[str, ...]:
    return request.stores or context.settings.placement_of(request.bucket, request.key)


def _check_classes(request: UploadRequest, stores: list[Store]) -> None:
    for name in request.storage_classes:
        store = next((store for store in stores if store.name == name), None)
        if store is None:
            raise UnknownStore(f"storage_classes names {name!r}, which the upload does not go to")
        if not store.capabilities.storage_classes:
            raise PermanentError(f"{name}: the store has no storage classes; leave it out of storage_classes")


def _place(  # noqa: PLR0917 - the last is the only one that is not always there
    context: Context, job: RunningJob, artifact: Artifact, store: Store, source: Source, storage_class: str | None
) -> PlacedCopy:
    with context.gates.enter(store.name, job):
        job.step(f"writing to {store.name}")
        place = copies.look(context, job, artifact, store)
        if place is None:
            job.advance(source.size)
            return PlacedCopy(store=store.name, outcome="already_there")
        return copies.fill(context, job, place, source.rewind(), storage_class=storage_class)


def remove_source(request: UploadRequest, context: Context) -> None:
    """Remove the source of an upload that has ended, if it was staged for it."""
    if request.staged:
        remove_staged(request.source, context.settings)


upload_task = artifact_task(UPLOAD, writes=True, at_end=remove_source)(upload)
