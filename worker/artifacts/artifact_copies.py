"""Inspect, write, copy server-side and verify the copies of the artifact that a job works on."""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from worker import clock
from worker.artifacts.chunk_repair import RepairedChunks
from worker.artifacts.store_holds import lifted
from worker.artifacts.stored_digests import RECORDED, stored_sha256_of
from worker.catalogue import (
    Artifact,
    Copy,
    Finding,
    FindingKind,
    FinishedCopy,
    LostLease,
    NewFinding,
    Outcome,
    PageCopy,
    VerdictRow,
)
from worker.jobs.running_job import Cancelled, RunningJob
from worker.jobs.upload_checkpoint import CopyCheckpoint
from worker.limits.limited_store import LimitedReader, LimitedStore
from worker.storage import Match, ObjectStat, Verdict, Verification
from worker.storage.cloud.metadata import is_header
from worker.storage.cloud.object_tags import decode_tags, fit
from worker.storage.driver import Condition, HashedBytes, ObjectProperties
from worker.storage.errors import (
    AlreadyExists,
    Archived,
    Conflict,
    IntegrityError,
    NotFound,
    PreconditionFailed,
    StorageError,
    Unavailable,
)
from worker.storage.integrity.manifest import CHUNK_SIZE, Chunk
from worker.storage.integrity.verifying_reader import OnBytes, Readable
from zot_artifact_client.contract import PlacedCopy, ReplicateResult, UploadResult

logger = logging.getLogger(__name__)

PlacedT = TypeVar("PlacedT", UploadResult, ReplicateResult)

BAD = {Verdict.CORRUPT, Verdict.MISSING, Verdict.SIZE_MISMATCH}
"""The verdicts that say that the bytes of a copy are missing or wrong."""
_DETAIL = 500
RETRY_UNREADABLE = timedelta(hours=1)
"""The longest time until a copy that could not be read is read again."""
_ARCHIVED_AGAIN = (0.7, 0.9)
"""The parts of the period between which an archived copy is asked for again: that costs one request and no restore."""


def not_configured(store: str) -> str:
    """Return the message about a copy in a store that is not configured any more."""
    way_out = f"add it to `stores` again, or `zot-artifacts stores forget {store}`"
    return f"the store {store!r} is not configured: {way_out}"


def asked_again_at(verdict: Verdict, period: timedelta, now: datetime) -> datetime | None:
    """Return when a copy without an answer is due again; None for any other, whose period says it."""
    if verdict is Verdict.UNREADABLE:
        return now + min(RETRY_UNREADABLE, period / 10)
    if verdict is Verdict.ARCHIVED:
        return now + period * random.uniform(*_ARCHIVED_AGAIN)  # noqa: S311 - it spreads load and protects nothing
    return None


def suspicion(of: Artifact | PageCopy, store: str, seen: Verification, job: str) -> NewFinding:
    """Return the finding about a copy that one read found bad."""
    evidence = {"verdict": seen.verdict.value, "detail": (seen.detail or "")[:_DETAIL], "job": job}
    return NewFinding(FindingKind.SUSPECT, store, of.bucket, of.key, of.version, evidence)


def kept_properties(artifact: Artifact, store: LimitedStore) -> ObjectProperties | None:
    """Return the headers and tags of an artifact that a store keeps beside the bytes; None if it keeps none."""
    if not store.capabilities.user_metadata:
        return None
    valid = {name: value for name, value in artifact.properties.items() if name == "tags" or is_header(value)}
    properties = ObjectProperties(**valid)
    return properties if fit(properties.tags, store.capabilities.tags) else replace(properties, tags=None)


def kept_metadata(artifact: Artifact, store: LimitedStore) -> Mapping[str, str]:
    """Return the metadata of an artifact that a store can keep: another store, where it was found, may keep more."""
    rules = store.capabilities.metadata
    return artifact.metadata if rules is None else rules.kept(artifact.metadata)


@contextmanager
def confirmed_after(job: RunningJob, store: LimitedStore, of: Sequence[Artifact]) -> Iterator[None]:
    """Confirm the lease after copies were written: a worker that was frozen in a request has made them later.

    A write that ends in an error may have made its copy, too: it may be the answer of the store that was lost.

    Raises:
        LostLease: they may have been deleted meanwhile; the cleanup then removes what was written.
    """
    try:
        yield
    finally:
        try:
            job.confirm_lease()
        except LostLease:
            job.catalogue.artifacts.note_late_writes(of, store.name)
            raise


class ReadBackMismatch(IntegrityError):
    """A store has taken the right bytes and does not give them back."""


@dataclass(frozen=True, slots=True)
class CopySlot:
    """Where a copy has to be written, and what is under its key now."""

    store: LimitedStore
    copy: Copy
    found: ObjectStat | None
    quarantine: bool
    """The bytes under the key may be the last of their kind: they go into quarantine before they are replaced."""
    bad: Sequence[Chunk] = ()
    """The chunks that a read found wrong, if they are known; the repair reads all bytes before it replaces any."""


@dataclass(slots=True)
class Records:
    """What is to be recorded of an object of a page together with that of others, or with the end of a job.

    The end of a job records no verdicts: a copy whose write an earlier attempt did not record counts as not read.
    """

    finished: list[FinishedCopy] = field(default_factory=list)
    verdicts: list[VerdictRow] = field(default_factory=list)
    deleted: list[Copy] = field(default_factory=list)
    tombstoned: list[Artifact] = field(default_factory=list)
    not_kept: dict[str, list[str]] = field(default_factory=dict)
    """By store, what it does not keep beside the bytes; it is for the result and not for the catalogue."""


@dataclass(frozen=True, slots=True)
class ArtifactJob:
    """A running job's work on the copies of one artifact. What it reads or writes is recorded in the catalogue.

    `records`: in place of that, it is kept here until a page or the end of the job records it.
    `copies`: those that were recorded with a new version just now, by store.
    """

    job: RunningJob
    artifact: Artifact
    records: Records | None = None
    copies: Mapping[str, Copy] = field(default_factory=dict)

    def inspect(self, store: LimitedStore) -> CopySlot | None:
        """Return where the copy has to be written; None if the store has it already.

        Bytes are trusted without reading them only if the store says that they are unchanged since we wrote or read
        them, and if that was within `sweep.verify.trust`: a store does not notice rot. They are also read if
        the last read failed. Anything else under the key is read: it may be a copy that a killed job had finished.

        Raises:
            Unavailable: what is under the key cannot be read, so it is not replaced.
            StorageError, Snooze: the store does not answer, or takes no job now.
            LostLease: while the worker was frozen, another job has begun to write to the artifact.
        """
        artifact, artifacts = self.artifact, self.job.catalogue.artifacts
        copy = self.copies.get(store.name) or artifacts.ensure_copy(artifact, store.name)
        try:
            found = store.stat_object(artifact.bucket, artifact.key, as_copy=True)
        except NotFound:
            return CopySlot(store, copy, None, quarantine=False)
        unchanged = copy.state.good and (found.version, found.size) == (copy.tag, artifact.digest.size)
        if unchanged and self._is_trusted(copy):
            return None
        self.job.confirm_lease()
        if unchanged:
            return self._read_again(store, copy, found)
        held = artifacts.version_in_store(store.name, artifact.bucket, artifact.key)
        replaced = held and held[0].id != artifact.id and held[1].state.good and held[1].tag == found.version
        if held and replaced and not self._has_all_of(store, held[0]):
            return CopySlot(store, copy, found, quarantine=False)  # the version that this upload replaces
        seen = store.verify_object(
            artifact.bucket, artifact.key, artifact.digest, manifest=artifacts.manifest(artifact)
        )
        if seen.verdict == Verdict.ARCHIVED:
            raise Archived(f"{store.name}: what is at {artifact.path} is archived and is kept: {seen.detail}")
        if seen.verdict == Verdict.UNREADABLE:  # it may have the bytes that are wanted
            raise self.unavailable(store, f"what is at {artifact.path} cannot be read and is kept: {seen.detail}")
        if seen.verdict == Verdict.VERIFIED and seen.version == found.version:
            evidence = {} if found.sha256 else {"adopted": RECORDED}
            self._record_verdict(copy, seen, self._finished(store, found, evidence))
            return None
        return CopySlot(store, copy, found, quarantine=True, bad=seen.bad)

    def _has_all_of(self, store: LimitedStore, other: Artifact) -> bool:
        """Return whether a copy of another version is one of this one too: only headers differ, and it keeps none."""
        return other.digest == self.artifact.digest and not store.capabilities.user_metadata

    def _is_trusted(self, copy: Copy) -> bool:
        if copy.read_at is None or copy.last_verdict == Verdict.UNREADABLE:
            return False
        age = clock.now() - copy.read_at
        return timedelta() <= age < self.job.settings.sweep.verify.trust_of(copy.store)

    def _read_again(self, store: LimitedStore, copy: Copy, found: ObjectStat) -> CopySlot | None:
        """Read a copy whose last full read is long ago; return None if it is right, else where it has to be written."""
        seen = self.verify(copy, on_bytes=self.job.heartbeat)
        if seen is None:
            raise self._conflict(store)
        if seen.verdict == Verdict.UNREADABLE:
            raise self.unavailable(store, f"what is at {self.artifact.path} cannot be read: {seen.detail}")
        if seen.verdict in {Verdict.VERIFIED, Verdict.ARCHIVED}:  # an archived one is as it was written
            return None
        there = None if seen.verdict == Verdict.MISSING else found
        return CopySlot(store, copy, there, quarantine=True, bad=seen.bad)

    def put(
        self, store: LimitedStore, body: Callable[[], Readable | HashedBytes], *, storage_class: str | None = None
    ) -> PlacedCopy:
        """Write the copy unless the store has it already; `body` returns the bytes, once for each write that is tried.

        A new artifact is written without asking what is under its key, where the store itself refuses to replace it.

        Raises: as `inspect` and `write`.
        """
        if self.copies and self.artifact.version == 1 and store.capabilities.conditional_writes:
            with suppress(AlreadyExists):
                self._record_copy(store, self._write(store, body(), storage_class, "create_only"))
                return self.placed(store, "stored")
        slot = self.inspect(store)
        if slot is None:
            self.job.advance(self.artifact.digest.size)
            return self.placed(store, "already_there")
        return self.write(slot, body(), storage_class=storage_class)

    def write(
        self,
        slot: CopySlot,
        source: Readable | HashedBytes,
        *,
        storage_class: str | None = None,
        read_back: bool = False,
    ) -> PlacedCopy:
        """Write the copy. What is under its key is replaced only by bytes that match, and kept in quarantine.

        With `read_back`, the copy is recorded together with what a full read of it found. A job that is killed before
        that leaves a copy that is not recorded; its next attempt reads that first.

        Raises:
            ReadBackMismatch: the store has taken the bytes and does not give the same ones back.
            IntegrityError: the source is not what was recorded; what was under the key is unchanged.
            Conflict: another writer wrote to the key at the same time.
            Unavailable: the copy cannot be read back now.
            StorageError, Snooze: see `LimitedStore.write_object`.
        """
        store, quarantined = slot.store, None
        if slot.found and slot.quarantine:
            quarantined = store.quarantine_object(self.artifact.bucket, self.artifact.key, self.job.id)
            logger.warning("%s: what was found at %s is kept at %s", store.name, self.artifact.path, quarantined)
        held = self.job.unlimited_stores[store.name]
        try:
            if slot.found is None:
                made = self._write(store, source, storage_class, "create_only")
            else:
                with lifted(self.job.catalogue, held, self.artifact.bucket, self.artifact.key):
                    patched = self._patch(store, slot.found, source) if isinstance(source, RepairedChunks) else None
                    made = patched or self._write(store, source, storage_class, Match(slot.found.version))
        except (AlreadyExists, PreconditionFailed) as error:
            raise self._conflict(store) from error
        if read_back:
            self._read_back(slot, made)
        else:
            self._record_copy(store, made)
        return self.placed(store, "repaired" if slot.copy.state.present else "stored", quarantined)

    def _write(
        self, store: LimitedStore, source: Readable | HashedBytes, storage_class: str | None, condition: Condition
    ) -> ObjectStat:
        artifact = self.artifact
        in_parts = store.capabilities.parts is not None and artifact.digest.size > CHUNK_SIZE
        with confirmed_after(self.job, store, [artifact]):
            stat, _ = store.write_object(
                artifact.bucket,
                artifact.key,
                source,
                size=artifact.digest.size,
                sha256=artifact.digest.sha256,
                metadata=kept_metadata(artifact, store),
                properties=kept_properties(artifact, store),
                storage_class=storage_class,
                condition=condition,
                on_bytes=self.job.advance,
                checkpoint=CopyCheckpoint(self.job.catalogue, artifact, store.name),
                existing_key=True,  # an upload's key was checked before it was recorded
                manifest=self.job.catalogue.artifacts.manifest(artifact) if in_parts else None,
            )
        return stat

    def _read_back(self, slot: CopySlot, made: ObjectStat) -> None:
        """Read a copy that was written just now, a second time if the first read finds it bad, and record both.

        Raises: as `write`.
        """
        artifact, store = self.artifact, slot.store
        where = artifact.bucket, artifact.key
        self.job.step(f"reading back from {store.name}")
        manifest = self.job.catalogue.artifacts.manifest(artifact)
        seen = store.verify_object(*where, artifact.digest, manifest=manifest, on_bytes=self.job.heartbeat)
        if seen.verdict in BAD:
            logger.warning("%s: %s reads back %s, reading it again", store.name, artifact.path, seen.verdict)
            seen = store.verify_object(*where, artifact.digest, on_bytes=self.job.heartbeat)
            if seen.verdict in BAD and self._is_overwritten(store):
                raise self._conflict(store)
        if seen.verdict == Verdict.UNREADABLE:  # it may have the right bytes
            raise self.unavailable(store, f"{artifact.path} was written and cannot be read back: {seen.detail}")
        self._record_verdict(slot.copy, seen, self._finished(store, made))
        if seen.verdict in BAD:
            raise ReadBackMismatch(
                f"{store.name}: {artifact.path} was written and reads back {seen.verdict}: {seen.detail}"
            )

    def repaired_chunks(self, slot: CopySlot, source: Copy) -> RepairedChunks | None:
        """Return the bytes for a slot, of which only the bad chunks are read from `source`.

        Returns None if all of them have to come from there.
        """
        if slot.found is None or not slot.quarantine or slot.found.size != self.artifact.digest.size:
            return None
        manifest = self.job.catalogue.artifacts.manifest(self.artifact)
        return RepairedChunks.of(self.artifact, manifest, slot.store, self.job.stores[source.store], slot.bad)

    def _patch(self, store: LimitedStore, found: ObjectStat, source: RepairedChunks) -> ObjectStat | None:
        """Have the store itself replace the bad chunks of a copy; return None, with nothing changed, if it cannot.

        Raises:
            PreconditionFailed: another writer wrote to the key at the same time.
            StorageError, Snooze: the source failed, or the store takes no job now.
        """
        artifact = self.artifact
        if not self.job.settings.replication.server_side:
            return None
        try:
            with confirmed_after(self.job, store, [artifact]):
                made = store.patch_object(
                    found,
                    source.manifest,
                    artifact.digest,
                    source.known_bad,
                    source.read_good,
                    metadata=kept_metadata(artifact, store),
                    properties=kept_properties(artifact, store),
                )
        except PreconditionFailed:
            raise
        except StorageError as error:
            if error.store != store.name:
                raise
            logger.warning(
                "%s: the store replaces no single chunks of %s, so all of it is sent: %s",
                store.name, artifact.path, error,
            )  # fmt: skip
            return None
        if made is not None:
            self.job.advance(artifact.digest.size)
        return made

    def copy_server_side(self, slot: CopySlot, origin: str) -> PlacedCopy | None:
        """Have the provider copy the artifact to a free key, read the copy in full, and record it if it is right.

        Returns None where the provider does not copy, or has copied other bytes, which are then deleted: then the
        worker copies the bytes itself, which shows whether the original is corrupt. A job that is killed here leaves a
        copy that is not recorded; its next attempt reads that first.

        Raises:
            Conflict: another writer wrote to the key at the same time.
            Unavailable: the copy cannot be read.
            StorageError, Snooze: a bad copy cannot be removed; one of the stores takes no job now.
        """
        if slot.found or not self.job.settings.replication.server_side:
            return None  # the provider would replace the bytes under the key before the new ones are verified
        artifact, store, job = self.artifact, slot.store, self.job
        where = artifact.bucket, artifact.key
        try:
            with confirmed_after(job, store, [artifact]):
                made = store.copy_object(
                    job.stores[origin],
                    *where,
                    artifact.digest,
                    metadata=kept_metadata(artifact, store),
                    properties=kept_properties(artifact, store),
                    checkpoint=CopyCheckpoint(job.catalogue, artifact, store.name),
                )
        except AlreadyExists as error:
            raise self._conflict(store) from error
        except StorageError as error:
            logger.warning("%s: the provider does not copy %s from %s: %s", store.name, artifact.path, origin, error)
            return None
        if made is None:
            return None
        job.step(f"reading back from {store.name}")
        manifest = job.catalogue.artifacts.manifest(artifact)
        try:
            seen = store.verify_object(*where, artifact.digest, manifest=manifest, on_bytes=job.advance)
        except Cancelled:
            self._remove(store, made)
            raise
        if seen.verdict == Verdict.UNREADABLE:
            raise self.unavailable(store, f"the copy of {artifact.path} from {origin} cannot be read: {seen.detail}")
        if seen.verdict != Verdict.VERIFIED:
            logger.warning("%s: the copy of %s from %s is %s", store.name, artifact.path, origin, seen.verdict)
            self._remove(store, made)
            return None
        if seen.version != made.version:
            raise self._conflict(store)
        self._record_verdict(slot.copy, seen, self._finished(store, made))
        return self.placed(store, "repaired" if slot.copy.state.present else "stored")

    def placed(
        self,
        store: LimitedStore,
        outcome: Literal["stored", "repaired", "already_there"],
        quarantined: str | None = None,
    ) -> PlacedCopy:
        """Return a copy that is there now, and log what its store does not keep beside the bytes.

        This includes a copy that was there before, because a killed job may have written it.
        """
        lost = self.not_kept(store)
        if lost:
            told = (store.name, ", ".join(lost), self.artifact.path)
            logger.info("%s: does not keep %s of %s, the catalogue does", *told)
            if self.records is not None:
                self.records.not_kept[store.name] = lost
        return PlacedCopy(store=store.name, outcome=outcome, quarantined=quarantined, not_kept=tuple(lost))

    def not_kept(self, store: LimitedStore) -> list[str]:
        """Return the names of the properties of the artifact that a store does not keep beside the written copy."""
        kept, artifact = store.capabilities, self.artifact
        lost = sorted(
            name
            for name, value in artifact.properties.items()
            if not kept.user_metadata or (name != "tags" and not is_header(value))
        )
        if kept.user_metadata and not self._has_tags(store):
            lost.append("tags")
        if artifact.metadata and not kept.user_metadata:
            lost.append("metadata")
        elif kept_metadata(artifact, store) != artifact.metadata:
            lost.append("some metadata")
        return lost

    def _has_tags(self, store: LimitedStore) -> bool:
        """Return whether the written copy has the tags of the artifact: some stores ignore what they do not know."""
        wanted = decode_tags(self.artifact.properties.get("tags"))
        if not wanted:
            return True
        try:
            return store.tags(self.artifact.bucket, self.artifact.key) == wanted
        except StorageError as error:
            logger.warning("%s: the tags of %s cannot be read: %s", store.name, self.artifact.path, error)
            return False

    def result(self, model: type[PlacedT], placed: Sequence[PlacedCopy]) -> PlacedT:
        """Return the result of a job that has placed these copies."""
        return model(
            **self.artifact.facts,
            unchanged=all(copy.outcome == "already_there" for copy in placed),
            copies=tuple(placed),
        )

    def open(self, copy: Copy) -> LimitedReader:
        """Open a copy to be read once; its end raises IntegrityError if the bytes are not the recorded ones."""
        artifact = self.artifact
        return self.job.stores[copy.store].read_object(artifact.bucket, artifact.key, expected=artifact.digest)

    def verify(self, copy: Copy, *, on_bytes: OnBytes | None = None) -> Verification | None:
        """Read all bytes of a copy, record the verdict and return it; None if the copy has been replaced meanwhile.

        One bad read makes a copy suspect. The verdict is bad if a second, independent read confirms it. A copy in a
        store that is not configured is unreadable. `on_bytes` is by default the job's `advance`.

        Raises:
            Snooze: the store takes no job now; nothing is recorded.
        """
        artifact, job = self.artifact, self.job
        if copy.store not in job.stores:
            seen = Verification(Verdict.UNREADABLE, artifact.digest, detail=not_configured(copy.store))
            self._record_verdict(copy, seen)
            return seen
        store = job.stores[copy.store]
        where = artifact.bucket, artifact.key
        manifest = job.catalogue.artifacts.manifest(artifact)
        with store.slot():
            seen = store.verify_object(*where, artifact.digest, manifest=manifest, on_bytes=on_bytes or job.advance)
            if seen.verdict in BAD:
                findings = job.catalogue.findings
                of = suspicion(artifact, copy.store, seen, job.id)
                findings.see([of], now=clock.now())
                confirmed = self.confirm(copy)
                if confirmed is None:
                    findings.end_suspicion(copy.store, artifact.bucket, artifact.key, now=clock.now())
                    return None
                if confirmed.verdict not in BAD:
                    what = "%s: %s is %s at the second read, and was %s at the first one"
                    logger.warning(what, store.name, artifact.path, confirmed.verdict, seen.verdict)
                same = (confirmed.verdict, confirmed.version) == (seen.verdict, seen.version)
                seen = confirmed._replace(bad=seen.bad) if same else confirmed
        self._record_verdict(copy, seen)
        return seen

    def confirm(self, copy: Copy) -> Verification | None:
        """Read a suspect copy a second time, independently; None if the copy has been replaced meanwhile."""
        store = self.job.stores[copy.store]
        seen = store.verify_object(self.artifact.bucket, self.artifact.key, self.artifact.digest)
        return None if seen.verdict in BAD and self._replaced(copy) else seen

    def _replaced(self, copy: Copy) -> bool:
        """Return whether another version was written over the copy, by a job that has not recorded it yet."""
        artifacts = self.job.catalogue.artifacts
        known = artifacts.copies(self.artifact)[copy.store]
        return not known.state.present or self._is_overwritten(self.job.stores[copy.store])

    def _is_overwritten(self, store: LimitedStore) -> bool:
        """Return whether under the key are the bytes of a version that a job writes and has not recorded yet."""
        artifacts = self.job.catalogue.artifacts
        return any(
            store.verify_object(other.bucket, other.key, other.digest).verdict == Verdict.VERIFIED
            for other in artifacts.unfinished_versions(
                store.name, self.artifact.bucket, self.artifact.key, only_open=True
            )
            if other.id != self.artifact.id
        )

    def _remove(self, store: LimitedStore, made: ObjectStat) -> None:
        """Delete a copy that this job made, and nothing that another writer wrote."""
        try:
            store.delete_object(self.artifact.bucket, self.artifact.key, condition=Match(made.version))
        except PreconditionFailed as error:
            raise self._conflict(store) from error

    def _conflict(self, store: LimitedStore) -> Conflict:
        error = Conflict(f"{store.name}: another writer wrote {self.artifact.path} at the same time")
        error.store = store.name
        return error

    @staticmethod
    def unavailable(store: LimitedStore, reason: str) -> Unavailable:
        """Return the error about a store that cannot do its part now."""
        error = Unavailable(f"{store.name}: {reason}")
        error.store = store.name
        return error

    def _finished(self, store: LimitedStore, stat: ObjectStat, found: Mapping[str, str] | None = None) -> FinishedCopy:
        return FinishedCopy(self.artifact, store.name, stat.version, {**stat.storage_tags, **(found or {})})

    def _record_copy(self, store: LimitedStore, stat: ObjectStat) -> None:
        finished = self._finished(store, stat)
        if self.records is not None:
            self.records.finished.append(finished)
        else:
            self.job.catalogue.artifacts.finish_copies([finished], now=clock.now())

    def _record_verdict(self, copy: Copy, seen: Verification, finished: FinishedCopy | None = None) -> None:
        """Record what a full read has found; of a copy that was not recorded, together with the copy, or neither."""
        now, period = clock.now(), self.job.settings.sweep.verify.period_of(copy.store)
        retry_at = asked_again_at(seen.verdict, period, now)
        finding = Finding(
            self.job.id, copy.store, self.artifact, seen.verdict, seen.sha256, seen.size, seen.detail,
            stored_sha256_of(
                self.job.stores, self.artifact, copy.store, finished.evidence if finished else copy.evidence, seen
            ),
        )  # fmt: skip
        if self.records is not None and finished and seen.verdict not in BAD:  # what is bad fails, and is recorded now
            self.records.finished.append(finished)
            self.records.verdicts.append(VerdictRow.of(Outcome(finding, copy, seen.version, retry_at)))
        else:
            self.job.catalogue.verifications.record(
                finding, copy, tag=seen.version, now=now, retry_at=retry_at, finished=finished
            )
        if seen.verdict != Verdict.VERIFIED:
            level = logging.INFO if seen.verdict == Verdict.ARCHIVED else logging.ERROR
            logger.log(level, "%s: %s is %s: %s", copy.store, self.artifact.path, seen.verdict, seen.detail)

    def rewrite_metadata(self, store: LimitedStore) -> PlacedCopy | None:
        """Write a copy with right bytes again if its metadata is known to be wrong; return None if it is not.

        The copy is its own source: it is read in full while it is written, replaced only if its bytes are right, and
        read back.

        Raises:
            IntegrityError: its bytes are not right any more; nothing was written, and that is recorded.
            StorageError, Snooze: see `write`.
        """
        if not self.job.catalogue.findings.has_wrong_metadata(self.artifact, store.name):
            return None
        copy = self.job.catalogue.artifacts.copies(self.artifact)[store.name]
        try:
            with self.open(copy) as reader:
                return self.write(CopySlot(store, copy, reader.stat, quarantine=False), reader, read_back=True)
        except ReadBackMismatch:
            raise
        except IntegrityError:
            self.verify(copy, on_bytes=self.job.heartbeat)  # from now on it is a bad copy
            raise
