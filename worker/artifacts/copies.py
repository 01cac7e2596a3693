"""One copy of one artifact: put it in place, prove it, know what is in its place."""

import logging
import random
from dataclasses import dataclass
from datetime import timedelta

from worker import clock
from worker.catalogue import Artifact, Copy, Finding
from worker.context import Context
from worker.jobs.checkpoint import CopyCheckpoint
from worker.jobs.running_job import Cancelled, RunningJob
from worker.limits.admission import Gate
from worker.storage import Condition, Match, ObjectStat, Store, Verdict, Verification
from worker.storage.errors import AlreadyExists, NotFound, PreconditionFailed, StorageError, Unavailable
from worker.storage.integrity.verifying_reader import Readable
from zot_artifact_client.contract import PlacedCopy

logger = logging.getLogger(__name__)

BAD = {Verdict.CORRUPT, Verdict.MISSING, Verdict.SIZE_MISMATCH}
"""Verdicts that say that the copy is not there as it should be."""
_SOON = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Place:
    """The place for a copy that is not there as it should be, and what lies in it now."""

    artifact: Artifact
    store: Store
    copy: Copy
    found: ObjectStat | None
    keep_found: bool
    """The bytes in the place are nobody's to lose: they go into quarantine before they are replaced."""


def look(context: Context, job: RunningJob, artifact: Artifact, store: Store) -> Place | None:
    """Look at where a copy should be; return None if it is there already.

    Bytes are trusted without reading them only if the store says they are untouched since we wrote or read them;
    anything else in the place is read: it may be a copy that a killed job had finished.

    Raises:
        Unavailable: what lies in the place cannot be read.
        StorageError: the store does not answer.
    """
    copy = context.catalogue.artifacts.ensure_copy(artifact, store.name)
    found = _stat(store, artifact)
    if found is None:
        return Place(artifact, store, copy, None, keep_found=False)
    if copy.state.good and (found.version, found.size) == (copy.tag, artifact.digest.size):
        return None
    held = context.catalogue.artifacts.version_in_store(store.name, artifact.bucket, artifact.key)
    if held and held[0].id != artifact.id and held[1].state.good and held[1].tag == found.version:
        return Place(artifact, store, copy, found, keep_found=False)  # the version that this upload replaces
    with context.gates.enter(store.name, job) as gate:
        seen = store.verify_object(artifact.bucket, artifact.key, artifact.digest, on_bytes=gate.heartbeat)
    if seen.verdict == Verdict.UNREADABLE:  # it may be the very bytes; nothing is replaced that nobody could read
        raise Unavailable(f"{store.name}: what lies at {artifact.path} cannot be read, so it stays: {seen.detail}")
    if seen.verdict == Verdict.VERIFIED and seen.version == found.version:
        _record(context, artifact, store, found)
        return None
    return Place(artifact, store, copy, found, keep_found=True)


def fill(
    context: Context, job: RunningJob, place: Place, source: Readable, *, storage_class: str | None = None
) -> PlacedCopy:
    """Write the artifact's bytes into a place: what is there is set aside first, and replaced only by bytes that match.

    Raises:
        IntegrityError: the source is not what was recorded; the place is as it was.
        Unavailable: somebody else wrote to the place at the same time.
        StorageError: see `Store.write_object`.
    """
    artifact, store, quarantined = place.artifact, place.store, None
    if place.found and place.keep_found:
        quarantined = store.quarantine_object(artifact.bucket, artifact.key, job.id)
        logger.warning("%s: what was found at %s is kept at %s", store.name, artifact.path, quarantined)
    condition: Condition = Match(place.found.version) if place.found else "create_only"
    try:
        with context.gates.enter(store.name, job) as gate:
            stat, _ = store.write_object(
                artifact.bucket,
                artifact.key,
                source,
                size=artifact.digest.size,
                sha256=artifact.digest.sha256,
                metadata=artifact.metadata,
                storage_class=storage_class,
                condition=condition,
                on_bytes=gate.advance,
                checkpoint=CopyCheckpoint(context.catalogue, artifact, store.name),
            )
    except (AlreadyExists, PreconditionFailed) as error:
        raise _overtaken(store, artifact) from error
    _record(context, artifact, store, stat)
    return PlacedCopy(
        store=store.name, outcome="repaired" if place.copy.state.present else "stored", quarantined=quarantined
    )


def fetch(context: Context, job: RunningJob, place: Place, origin: str) -> PlacedCopy | None:
    """Have the provider copy an artifact into an empty place, and record the copy once all of it was read and is right.

    None where it does not, or has copied other bytes, which are then gone again: the bytes have to go through us, and
    that tells whether it is the original that has rotted. A job that is killed here leaves a copy that nobody recorded;
    its next attempt reads that first.

    Raises:
        Unavailable: somebody else wrote to the place at the same time, or the copy cannot be read.
        StorageError: a bad copy cannot be removed.
    """
    artifact, store = place.artifact, place.store
    made = _made_by_provider(context, job, place, origin)
    if made is None:
        return None
    job.step(f"reading back from {store.name}")
    manifest = context.catalogue.artifacts.manifest(artifact)
    try:
        with context.gates.enter(store.name, job) as gate:
            seen = store.verify_object(
                artifact.bucket, artifact.key, artifact.digest, manifest=manifest, on_bytes=gate.advance
            )
    except Cancelled:
        _take_away(store, artifact, made)
        raise
    if seen.verdict == Verdict.UNREADABLE:
        raise Unavailable(f"{store.name}: the copy of {artifact.path} from {origin} cannot be read: {seen.detail}")
    if seen.verdict != Verdict.VERIFIED:
        logger.warning("%s: the copy of %s from %s is %s", store.name, artifact.path, origin, seen.verdict)
        _take_away(store, artifact, made)
        return None
    if seen.version != made.version:
        raise _overtaken(store, artifact)
    _record(context, artifact, store, made)
    _log(context, job, artifact, place.copy, seen)
    return PlacedCopy(store=store.name, outcome="repaired" if place.copy.state.present else "stored")


def verify(context: Context, job: RunningJob, artifact: Artifact, copy: Copy) -> Verification | None:
    """Read all bytes of a copy, record what they are, and return it; None if the copy has been replaced meanwhile.

    A bad read is only a suspicion: the verdict is bad when a second read, on its own, says so too.

    Raises:
        Snooze: the store takes no job now; nothing was read.
    """
    with context.gates.enter(copy.store, job) as gate:
        seen = _read(context, gate, artifact, copy)
    if seen.verdict in BAD and _replaced(context, job, artifact, copy):
        return None
    _log(context, job, artifact, copy, seen)
    return seen


def _log(context: Context, job: RunningJob, artifact: Artifact, copy: Copy, seen: Verification) -> None:
    period = context.settings.sweep.verify.period_of(copy.store)
    finding = Finding(job.id, copy.store, artifact, seen.verdict, seen.sha256, seen.size, seen.detail)
    context.catalogue.verifications.record(
        finding, copy, now=clock.now(), tag=seen.version, due=clock.now() + _next_look(seen.verdict, period)
    )
    if seen.verdict != Verdict.VERIFIED:
        logger.error("%s: %s is %s: %s", copy.store, artifact.path, seen.verdict, seen.detail)


def _read(context: Context, gate: Gate, artifact: Artifact, copy: Copy) -> Verification:
    store = context.stores[copy.store]
    manifest = context.catalogue.artifacts.manifest(artifact)
    seen = store.verify_object(artifact.bucket, artifact.key, artifact.digest, manifest=manifest, on_bytes=gate.advance)
    if seen.verdict in BAD:
        logger.warning("%s: %s looks %s, reading it again", store.name, artifact.path, seen.verdict)
        seen = store.verify_object(artifact.bucket, artifact.key, artifact.digest, on_bytes=gate.heartbeat)
    if seen.verdict == Verdict.UNREADABLE:
        context.gates.failed(gate)
    return seen


def first_look(context: Context, store: str) -> timedelta:
    """Return when a copy that was just written is read for the first time: spread, so that nothing bunches."""
    return context.settings.sweep.verify.period_of(store) * random.uniform(0.05, 0.95)  # noqa: S311 - no secret


def _next_look(verdict: Verdict, period: timedelta) -> timedelta:
    if verdict == Verdict.UNREADABLE:
        return min(_SOON, period / 10)
    return period * random.uniform(0.75, 0.95)  # noqa: S311 - no secret


def _made_by_provider(context: Context, job: RunningJob, place: Place, origin: str) -> ObjectStat | None:
    """Return the copy that the provider made, its bytes unknown; None where it made none.

    Only into an empty place: what lies in one that is not could else be lost to bytes that are not right.
    """
    artifact, store = place.artifact, place.store
    if place.found or not context.settings.replication.server_side:
        return None
    try:
        return store.copy_object(
            context.stores[origin],
            artifact.bucket,
            artifact.key,
            artifact.digest,
            metadata=artifact.metadata,
            between=lambda: job.heartbeat(0),
        )
    except AlreadyExists as error:
        raise _overtaken(store, artifact) from error
    except StorageError as error:
        logger.warning("%s: the provider does not copy %s from %s: %s", store.name, artifact.path, origin, error)
        return None


def _take_away(store: Store, artifact: Artifact, made: ObjectStat) -> None:
    """Remove a copy that is not to stay, and nothing that somebody else has written."""
    try:
        store.delete_object(artifact.bucket, artifact.key, condition=Match(made.version))
    except PreconditionFailed as error:
        raise _overtaken(store, artifact) from error


def _overtaken(store: Store, artifact: Artifact) -> Unavailable:
    return Unavailable(f"{store.name}: somebody else wrote {artifact.path} at the same time")


def _stat(store: Store, artifact: Artifact) -> ObjectStat | None:
    try:
        return store.stat_object(artifact.bucket, artifact.key)
    except NotFound:
        return None


def _record(context: Context, artifact: Artifact, store: Store, stat: ObjectStat) -> None:
    context.catalogue.artifacts.finish_copy(
        artifact,
        store.name,
        tag=stat.version,
        evidence=stat.storage_tags,
        due=clock.now() + first_look(context, store.name),
        now=clock.now(),
    )


def _replaced(context: Context, job: RunningJob, artifact: Artifact, copy: Copy) -> bool:
    """Return whether another version has been written over the copy, by a job that is not over or did not say so."""
    known = context.catalogue.artifacts.copies(artifact).get(copy.store)
    if known is None or not known.state.present:
        return True
    store = context.stores[copy.store]
    for other in context.catalogue.artifacts.unfinished_versions(copy.store, artifact.bucket, artifact.key):
        if (
            store.verify_object(other.bucket, other.key, other.digest, on_bytes=job.heartbeat).verdict
            == Verdict.VERIFIED
        ):
            return True
    return False
