"""Replicate: copy an artifact to more stores, from any copy whose bytes are right."""

from collections.abc import Mapping, Sequence

from worker.artifacts.artifact_copies import ArtifactJob, CopySlot
from worker.artifacts.lock_artifacts_for_job import locked_companions, names_companions_itself
from worker.artifacts.per_store import for_each_store, is_refused, most_retryable
from worker.artifacts.verify_copy import verify_copy
from worker.catalogue import Artifact, Copy, CopyState
from worker.jobs.running_job import RunningJob
from worker.jobs.task import artifact_task
from worker.limits.limited_store import LimitedStore
from worker.limits.snooze import Snooze
from worker.storage import Verdict
from worker.storage.errors import IntegrityError, StorageError, TransientError, Unavailable
from zot_artifact_client.contract import REPLICATE, SWEEP_REPAIR, PlacedCopy, ReplicateRequest, ReplicateResult


class NoGoodSource(IntegrityError):
    """No copy has the bytes that were recorded."""


class BadSource(IntegrityError):
    """A copy that was bad at its last read still is, or its store is not configured."""


def replicate(request: ReplicateRequest, job: RunningJob) -> ReplicateResult:
    """Write a copy that matches the recorded digest to each store that was named, hashed all the way; also companions.

    Where two stores belong to one provider, it copies by itself, and the new copy is read back in full. A source that
    is corrupt is recorded as such, nothing of it stays at the target, and the next source is tried. Copies that were
    bad at their last read are verified before they are copied from, once no good one is left: a disk may be back.

    Raises:
        NotFound: the artifact is not in the catalogue.
        NoGoodSource: naming what is wrong with each copy there is.
        ReadBackMismatch: a repaired copy, or a new one that is read back by the settings, has other bytes.
        StorageError, Snooze: a store did not take its copy; the other stores have theirs.
    """
    artifact = job.catalogue.artifact(request.bucket, request.key)
    alone, companions = names_companions_itself(job), job.catalogue.companions

    def find() -> Sequence[Artifact]:
        return [] if alone else companions.of(request.bucket, request.key)

    with locked_companions(find, job, artifact.path) as others:
        wanted = [artifact, *others]
        job.start(sum(each.digest.size for each in wanted) * len(request.to), "replicating")
        stores = _still_wanted(job, artifact, request.to)
        first, *rest = for_each_store(wanted, lambda each: _replicate(job, each, stores))
    return first.model_copy(update={"companions": tuple(rest)})


def _still_wanted(job: RunningJob, artifact: Artifact, stores: Sequence[str]) -> Sequence[str]:
    """Return where to copy to: a sweep wants the copies that it has begun, and of no version that came after it.

    The upload of such a version may have named other stores.
    """
    parent = job.catalogue.ledger.get(job.parent) if job.parent else None
    if parent is None or not (parent.kind == SWEEP_REPAIR.kind or parent.request.get("claim")):
        return stores
    copies = job.catalogue.artifacts.copies(artifact)
    return [name for name in stores if is_begun(copies, name)]


def is_begun(copies: Mapping[str, Copy], store: str) -> bool:
    """Return whether one of these copies of a version is recorded in a store, whatever its state, and not deleted."""
    copy = copies.get(store)
    return copy is not None and copy.state != CopyState.DELETED


def _replicate(job: RunningJob, artifact: Artifact, stores: Sequence[str]) -> ReplicateResult:
    work = ArtifactJob(job, artifact)
    return work.result(ReplicateResult, replicate_to(work, stores))


def replicate_to(work: ArtifactJob, stores: Sequence[str]) -> list[PlacedCopy]:
    """Copy one artifact to these stores; see `replicate`."""
    job, artifact = work.job, work.artifact
    targets = [job.stores[name] for name in stores]

    def replicate_one(target: LimitedStore) -> PlacedCopy:
        sources = _sources(work, target.name)
        slot = work.inspect(target)
        if slot is None:
            if rewritten := work.rewrite_metadata(target):
                return rewritten
            job.advance(artifact.digest.size)
            return work.placed(target, "already_there")
        failures: list[StorageError | Snooze] = []
        with target.slot():  # a target that takes no job is no reason to open a source
            for source in sources:
                job.step(f"copying from {source.store} to {target.name}")
                try:
                    _check_source(work, source)
                    placed = work.copy_server_side(slot, source.store) or _stream(work, slot, source)
                    return placed.model_copy(update={"source": source.store})
                except (StorageError, Snooze) as error:
                    if error.store != source.store:
                        raise
                    failures.append(error)
                    if source.state.good and not isinstance(error, TransientError | Snooze):
                        verify_copy(job, artifact, source)
        raise _no_source(artifact, failures)

    return for_each_store(targets, replicate_one)


def _sources(work: ArtifactJob, target: str) -> list[Copy]:
    """Return the copies that may be read from: first those verified by a full read, last those that were bad."""
    known = work.job.catalogue.artifacts.copies(work.artifact).values()
    there = [copy for copy in known if copy.state.present and copy.store != target]
    return sorted(there, key=lambda copy: (not copy.state.good, copy.last_verified_at is None))


def _check_source(work: ArtifactJob, source: Copy) -> None:
    """Return if a copy may be copied from; one that was bad at its last read is read in full first.

    Raises:
        BadSource, Unavailable: it is not right now; its `store` is that of the copy.
    """
    if source.store in work.job.stores and source.state.good:
        return
    seen = verify_copy(work.job, work.artifact, source, on_bytes=work.job.heartbeat)
    if seen is not None and seen.verdict == Verdict.VERIFIED:
        return
    said = f"{source.store}: {seen.verdict}: {seen.detail}" if seen else f"{source.store}: it was replaced meanwhile"
    error: StorageError = BadSource(said)
    if seen is not None and isinstance(seen.error, TransientError):
        error = Unavailable(said)
    error.store = source.store
    raise error


def _stream(work: ArtifactJob, slot: CopySlot, source: Copy) -> PlacedCopy:
    """Read a copy and write it to a slot, hashed on the way; read back a repair, and others where the settings say so.

    A store that had a bad copy is not trusted to have a good one now: that read is the first full read of the new copy.
    Of a large artifact whose copy in the slot is corrupt only the bad chunks are read from the other copy. Where the
    store can, it takes the other chunks from the corrupt copy itself.

    Raises:
        ReadBackMismatch: the store has taken the bytes and does not give the same ones back.
        Unavailable: the store has taken the bytes, and they cannot be read back now; another attempt reads them.
        StorageError, Snooze: its `store` tells whether the source or the target failed.
    """
    read_back = slot.copy.state.present or work.job.settings.replication.proof == "reread"
    if (chunks := work.repaired_chunks(slot, source)) is not None:
        return work.write(slot, chunks, read_back=read_back)
    with work.open(source) as reader:
        return work.write(slot, reader, read_back=read_back)


def _no_source(artifact: Artifact, failures: list[StorageError | Snooze]) -> StorageError | Snooze:
    decisive = most_retryable(failures) if failures else None
    if decisive is not None and (isinstance(decisive, TransientError | Snooze) or is_refused(decisive)):
        return decisive
    causes = "; ".join(str(error) for error in failures) or "the catalogue knows of no good copy in another store"
    return NoGoodSource(f"{artifact.path} cannot be replicated, no copy is right: {causes}")


replicate_task = artifact_task(REPLICATE, writes=True)(replicate)
