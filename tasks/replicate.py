"""Replicate: bring copies of an artifact to more stores, from any copy whose bytes are right."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from worker.artifacts import copies
from worker.artifacts.per_store import for_each_store, most_retryable
from worker.catalogue import Artifact, Copy
from worker.context import Context
from worker.jobs.running_job import RunningJob, Snooze
from worker.jobs.task import artifact_task
from worker.storage import Store, Verdict
from worker.storage.errors import IntegrityError, StorageError, TransientError
from worker.storage.integrity.verifying_reader import Readable
from zot_artifact_client.contract import REPLICATE, PlacedCopy, ReplicateRequest, ReplicateResult


class NoGoodSource(IntegrityError):
    """No copy has the bytes that were recorded."""


class ReadBackMismatch(IntegrityError):
    """A store has taken the right bytes and does not give them back."""


def replicate(request: ReplicateRequest, context: Context, job: RunningJob) -> ReplicateResult:
    """Bring a copy that matches the recorded digest to each store that was named, hashed all the way.

    Where two stores are of one provider it copies by itself, and the new copy is read back in full. A source that turns
    out rotten is recorded as such, nothing of it stays at the target, and the next one is tried.

    Raises:
        NotFound: the artifact is not in the catalogue.
        NoGoodSource: naming what is wrong with each copy there is.
        ReadBackMismatch: a store was asked for the copy back, as `replication.proof` wants it, and gave other bytes.
        StorageError, Snooze: a store did not take its copy; the other stores have theirs.
    """
    artifact = context.artifact(request.bucket, request.key)
    targets = [context.stores[name] for name in request.to]
    job.start(artifact.digest.size * len(targets), "replicating")
    placed = for_each_store(targets, lambda target: _enter(context, job, artifact, target))
    return ReplicateResult(
        bucket=artifact.bucket,
        key=artifact.key,
        version=artifact.version,
        size=artifact.digest.size,
        sha256=artifact.digest.sha256,
        unchanged=all(copy.outcome == "already_there" for copy in placed),
        copies=tuple(placed),
    )


def _enter(context: Context, job: RunningJob, artifact: Artifact, target: Store) -> PlacedCopy:
    with context.gates.enter(target.name, job):
        return _place(context, job, artifact, target)


def _place(context: Context, job: RunningJob, artifact: Artifact, target: Store) -> PlacedCopy:
    sources = _sources(context, artifact, target)
    place = copies.look(context, job, artifact, target)
    if place is None:
        job.advance(artifact.digest.size)
        return PlacedCopy(store=target.name, outcome="already_there")
    unfit: list[StorageError | Snooze] = []
    for copy in sources:
        job.step(f"copying from {copy.store} to {target.name}")
        try:
            placed = copies.fetch(context, job, place, copy.store) or _stream(context, job, place, copy)
            return placed.model_copy(update={"source": copy.store})
        except _SourceError as error:
            unfit.append(error.cause)
            if not isinstance(error.cause, TransientError | Snooze):
                copies.verify(context, job, artifact, copy)
    raise _no_source(artifact, unfit)


def _stream(context: Context, job: RunningJob, place: copies.Place, copy: Copy) -> PlacedCopy:
    """Read a copy and write it to a place, hashed on the way.

    Raises:
        _SourceError: the copy cannot be read, or is not what was recorded; the place is as it was.
    """
    with _open(context, job, place.artifact, copy) as source:
        placed = copies.fill(context, job, place, source)
    _prove(context, job, place.artifact, place.store)
    return placed


def _prove(context: Context, job: RunningJob, artifact: Artifact, target: Store) -> None:
    """Read the new copy back, where the settings ask for that proof.

    Raises:
        ReadBackMismatch: the store has taken the bytes and does not give the same ones back.
    """
    if context.settings.replication.proof != "reread":
        return
    job.step(f"reading back from {target.name}")
    copy = context.catalogue.artifacts.copies(artifact)[target.name]
    seen = copies.verify(context, job, artifact, copy)
    if seen is not None and seen.verdict != Verdict.VERIFIED:
        raise ReadBackMismatch(
            f"{target.name}: {artifact.path} was written and reads back {seen.verdict}: {seen.detail}"
        )


def _sources(context: Context, artifact: Artifact, target: Store) -> list[Copy]:
    """Return the copies that may be read from, those first that were proved by a full read."""
    known = context.catalogue.artifacts.copies(artifact).values()
    good = [copy for copy in known if copy.state.good and copy.store != target.name]
    return sorted(good, key=lambda copy: copy.last_verified_at is None)


def _no_source(artifact: Artifact, unfit: list[StorageError | Snooze]) -> StorageError | Snooze:
    decisive = most_retryable(unfit) if unfit else None
    if isinstance(decisive, TransientError | Snooze):
        return decisive
    causes = "; ".join(str(error) for error in unfit) or "the catalogue knows of no good copy in another store"
    return NoGoodSource(f"{artifact.path} cannot be replicated, no copy is right: {causes}")


class _SourceError(Exception):
    """It was the source that failed, not the target."""

    def __init__(self, cause: StorageError | Snooze) -> None:
        super().__init__(cause)
        self.cause = cause


class _Source:
    """A copy that is being read, telling its own failures from those of the store that is written to."""

    def __init__(self, reader: Readable, blame: Callable[[StorageError], None]) -> None:
        self._reader = reader
        self._blame = blame

    def read(self, size: int, /) -> bytes:
        try:
            return self._reader.read(size)
        except StorageError as error:
            self._blame(error)
            raise _SourceError(error) from error


@contextmanager
def _open(context: Context, job: RunningJob, artifact: Artifact, copy: Copy) -> Iterator[_Source]:
    blame = partial(context.gates.blame, copy.store)
    with ExitStack() as entered:
        try:
            gate = entered.enter_context(context.gates.enter(copy.store, job))
            store = context.stores[copy.store]
            reader = store.read_object(artifact.bucket, artifact.key, expected=artifact.digest, on_bytes=gate.heartbeat)
        except (StorageError, Snooze) as error:
            blame(error)
            raise _SourceError(error) from error
        entered.enter_context(reader)
        yield _Source(reader, blame)


replicate_task = artifact_task(REPLICATE, writes=True)(replicate)
