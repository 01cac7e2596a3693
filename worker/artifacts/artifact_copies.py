"""Inspect, write and copy server-side the copies of the artifact that a job works on."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeVar

from worker import clock
from worker.artifacts import chunk_repair
from worker.artifacts.kept_beside_bytes import kept_beside, not_kept
from worker.artifacts.store_holds import lifted
from worker.artifacts.stored_digests import RECORDED
from worker.artifacts.verify_copy import BAD, is_overwritten, log_verdict, record_verdict, verdict_on, verify_copy
from worker.catalogue import Artifact, Copy, FinishedCopy, LostLease, VerdictRow
from worker.jobs.running_job import Cancelled, RunningJob
from worker.jobs.upload_checkpoint import CopyCheckpoint
from worker.limits.limited_store import LimitedReader, LimitedStore
from worker.storage import Match, ObjectStat, Verdict, Verification
from worker.storage.driver import Condition, HashedBytes
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
from worker.storage.integrity.verifying_reader import Readable
from zot_artifact_client.contract import PlacedCopy, ReplicateResult, UploadResult

logger = logging.getLogger(__name__)

PlacedT = TypeVar("PlacedT", UploadResult, ReplicateResult)


@contextmanager
def confirmed_after(job: RunningJob, store: LimitedStore, of: Sequence[Artifact]) -> Iterator[None]:
    """Confirm the lease after a write: the worker may have been frozen between its last check and the request.

    A write that raises may have made its copy, too: perhaps only the answer of the store was lost.

    Raises:
        LostLease: another job may have deleted the artifact. The write is noted, and cleanup removes the copy.
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
    """A store accepted the right bytes and returns other ones."""


def conflict(store: LimitedStore, artifact: Artifact) -> Conflict:
    """Return the error about another writer, which wrote to the key of an artifact at the same time."""
    error = Conflict(f"{store.name}: another writer wrote {artifact.path} at the same time")
    error.store = store.name
    return error


def unavailable(store: LimitedStore, reason: str) -> Unavailable:
    """Return the error about a store that cannot do its part now."""
    error = Unavailable(f"{store.name}: {reason}")
    error.store = store.name
    return error


@dataclass(frozen=True, slots=True)
class CopySlot:
    """Where a copy has to be written, and what is under its key now."""

    store: LimitedStore
    copy: Copy
    found: ObjectStat | None
    quarantine: bool
    """The bytes under the key are put into quarantine before they are replaced: no other copy may have them."""
    bad: Sequence[Chunk] = ()
    """The chunks that a read found wrong, if they are known."""


@dataclass(slots=True)
class Records:
    """The results of one object, recorded together with those of other objects of a page, or with the end of a job.

    The end of a job records no verdicts, so a copy that an earlier attempt wrote and did not record counts as unread.
    """

    finished: list[FinishedCopy] = field(default_factory=list)
    verdicts: list[VerdictRow] = field(default_factory=list)
    deleted: list[Copy] = field(default_factory=list)
    tombstoned: list[Artifact] = field(default_factory=list)
    not_kept: dict[str, list[str]] = field(default_factory=dict)
    """By store, what it does not keep beside the bytes. The result of the job has it, the catalogue does not."""


@dataclass(frozen=True, slots=True)
class ArtifactJob:
    """Writes the copies of one artifact for a running job, and records them in the catalogue.

    `records`: collects what a page, or the end of the job, records later; without it, each copy is recorded at once.
    `copies`: by store, the copies that were recorded with the version just now.
    """

    job: RunningJob
    artifact: Artifact
    records: Records | None = None
    copies: Mapping[str, Copy] = field(default_factory=dict)

    def inspect(self, store: LimitedStore) -> CopySlot | None:
        """Return where the copy has to be written; None if the store has it already.

        A good copy is not read again if the store still has the recorded version tag, and the worker wrote or read the
        copy within `sweep.verify.trust`: a tag does not show rot. It is read if the last read failed. Any other object
        under the key is read: a killed job may have finished the copy without recording it.

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
        # The copy of another version is a copy of this one too if only headers differ and the store keeps none.
        same_bytes = held and held[0].digest == artifact.digest and not store.capabilities.user_metadata
        if replaced and not same_bytes:
            return CopySlot(store, copy, found, quarantine=False)  # the version that this upload replaces
        seen = store.verify_object(
            artifact.bucket, artifact.key, artifact.digest, manifest=artifacts.manifest(artifact)
        )
        if seen.verdict == Verdict.ARCHIVED:
            raise Archived(f"{store.name}: what is at {artifact.path} is archived and is kept: {seen.detail}")
        if seen.verdict == Verdict.UNREADABLE:  # it may have the bytes that are wanted
            raise unavailable(store, f"what is at {artifact.path} cannot be read and is kept: {seen.detail}")
        if seen.verdict == Verdict.VERIFIED and seen.version == found.version:
            evidence = {} if found.sha256 else {"adopted": RECORDED}
            self._record_read(copy, seen, self._finished(store, found, evidence))
            return None
        return CopySlot(store, copy, found, quarantine=True, bad=seen.bad)

    def _is_trusted(self, copy: Copy) -> bool:
        if copy.read_at is None or copy.last_verdict == Verdict.UNREADABLE:
            return False
        age = clock.now() - copy.read_at
        return timedelta() <= age < self.job.settings.sweep.verify.trust_of(copy.store)

    def _read_again(self, store: LimitedStore, copy: Copy, found: ObjectStat) -> CopySlot | None:
        """Read a copy whose last full read is too long ago; return None if it is right, else where to write it."""
        seen = verify_copy(self.job, self.artifact, copy, on_bytes=self.job.heartbeat)
        if seen is None:
            raise conflict(store, self.artifact)
        if seen.verdict == Verdict.UNREADABLE:
            raise unavailable(store, f"what is at {self.artifact.path} cannot be read: {seen.detail}")
        if seen.verdict in {Verdict.VERIFIED, Verdict.ARCHIVED}:  # an archived one is as it was written
            return None
        there = None if seen.verdict == Verdict.MISSING else found
        return CopySlot(store, copy, there, quarantine=True, bad=seen.bad)

    def put(
        self, store: LimitedStore, body: Callable[[], Readable | HashedBytes], *, storage_class: str | None = None
    ) -> PlacedCopy:
        """Write the copy unless the store has it already; `body` returns the bytes, and is called for each attempt.

        The first version of an artifact is written without an inspection if the store itself checks `create_only`.

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
        """Write the copy; an object under its key goes into quarantine first where the slot says so.

        The object is replaced only if all bytes of the source match the recorded digest. With `read_back`, the copy is
        recorded together with the verdict of a full read. If the job is killed before that, the copy is not recorded,
        and the next attempt reads it.

        Raises:
            ReadBackMismatch: the store accepted the bytes and returns other ones.
            IntegrityError: the source has other bytes than recorded; the object under the key is unchanged.
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
                    patched = None
                    if isinstance(source, chunk_repair.RepairedChunks):
                        patched = self._patch(store, slot.found, source)
                    made = patched or self._write(store, source, storage_class, Match(slot.found.version))
        except (AlreadyExists, PreconditionFailed) as error:
            raise conflict(store, self.artifact) from error
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
                storage_class=storage_class,
                condition=condition,
                on_bytes=self.job.advance,
                checkpoint=CopyCheckpoint(self.job.catalogue, artifact, store.name),
                existing_key=True,  # an upload's key was checked before it was recorded
                manifest=self.job.catalogue.artifacts.manifest(artifact) if in_parts else None,
                **kept_beside(artifact, store),
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
            if seen.verdict in BAD and is_overwritten(self.job, artifact, store):
                raise conflict(store, artifact)
        if seen.verdict == Verdict.UNREADABLE:  # it may have the right bytes
            raise unavailable(store, f"{artifact.path} was written and cannot be read back: {seen.detail}")
        self._record_read(slot.copy, seen, self._finished(store, made))
        if seen.verdict in BAD:
            raise ReadBackMismatch(
                f"{store.name}: {artifact.path} was written and reads back {seen.verdict}: {seen.detail}"
            )

    def repaired_chunks(self, slot: CopySlot, source: Copy) -> chunk_repair.RepairedChunks | None:
        """Return bytes for a slot that come from the bad copy in it, except its bad chunks, which come from `source`.

        Returns None where all bytes have to come from `source`: the copy is small, or has another size.
        """
        if slot.found is None or not slot.quarantine or slot.found.size != self.artifact.digest.size:
            return None
        manifest = self.job.catalogue.artifacts.manifest(self.artifact)
        if manifest is None or len(manifest) < chunk_repair.FEWEST_CHUNKS:
            return None
        return chunk_repair.RepairedChunks(self.artifact, manifest, slot.store, self.job.stores[source.store], slot.bad)

    def _patch(self, store: LimitedStore, found: ObjectStat, source: chunk_repair.RepairedChunks) -> ObjectStat | None:
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
                    **kept_beside(artifact, store),
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

        Returns None if the provider does not copy, or copied other bytes, which are deleted: the caller then copies
        the bytes itself, and finds out whether the original is corrupt. If the job is killed here, the copy is not
        recorded, and the next attempt reads it.

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
                    checkpoint=CopyCheckpoint(job.catalogue, artifact, store.name),
                    **kept_beside(artifact, store),
                )
        except AlreadyExists as error:
            raise conflict(store, artifact) from error
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
            raise unavailable(store, f"the copy of {artifact.path} from {origin} cannot be read: {seen.detail}")
        if seen.verdict != Verdict.VERIFIED:
            logger.warning("%s: the copy of %s from %s is %s", store.name, artifact.path, origin, seen.verdict)
            self._remove(store, made)
            return None
        if seen.version != made.version:
            raise conflict(store, artifact)
        self._record_read(slot.copy, seen, self._finished(store, made))
        return self.placed(store, "repaired" if slot.copy.state.present else "stored")

    def placed(
        self,
        store: LimitedStore,
        outcome: Literal["stored", "repaired", "already_there"],
        quarantined: str | None = None,
    ) -> PlacedCopy:
        """Return the result for a copy that is in its store now, and log what the store does not keep beside the bytes.

        Also for a copy that was there before: a killed job may have written it without logging that.
        """
        lost = not_kept(self.artifact, store)
        if lost:
            told = (store.name, ", ".join(lost), self.artifact.path)
            logger.info("%s: does not keep %s of %s, the catalogue does", *told)
            if self.records is not None:
                self.records.not_kept[store.name] = lost
        return PlacedCopy(store=store.name, outcome=outcome, quarantined=quarantined, not_kept=tuple(lost))

    def result(self, model: type[PlacedT], placed: Sequence[PlacedCopy]) -> PlacedT:
        """Return the result of a job that has placed these copies."""
        return model(
            **self.artifact.facts,
            unchanged=all(copy.outcome == "already_there" for copy in placed),
            copies=tuple(placed),
        )

    def open(self, copy: Copy) -> LimitedReader:
        """Open a copy to be read once; the read of its end raises IntegrityError if the bytes are wrong."""
        artifact = self.artifact
        return self.job.stores[copy.store].read_object(artifact.bucket, artifact.key, expected=artifact.digest)

    def _remove(self, store: LimitedStore, made: ObjectStat) -> None:
        """Delete a copy that this job made, and nothing that another writer wrote."""
        try:
            store.delete_object(self.artifact.bucket, self.artifact.key, condition=Match(made.version))
        except PreconditionFailed as error:
            raise conflict(store, self.artifact) from error

    def _finished(self, store: LimitedStore, stat: ObjectStat, found: Mapping[str, str] | None = None) -> FinishedCopy:
        return FinishedCopy(self.artifact, store.name, stat.version, {**stat.storage_tags, **(found or {})})

    def _record_copy(self, store: LimitedStore, stat: ObjectStat) -> None:
        finished = self._finished(store, stat)
        if self.records is not None:
            self.records.finished.append(finished)
        else:
            self.job.catalogue.artifacts.finish_copies([finished], now=clock.now())

    def _record_read(self, copy: Copy, seen: Verification, finished: FinishedCopy) -> None:
        """Record a copy that is not recorded yet together with what a full read of it found."""
        if self.records is None or seen.verdict in BAD:  # a bad copy raises an error, so it is recorded now
            record_verdict(self.job, self.artifact, copy, seen, finished)
            return
        self.records.finished.append(finished)
        self.records.verdicts.append(verdict_on(self.job, self.artifact, copy, seen, finished.evidence))
        log_verdict(copy.store, self.artifact.path, seen)

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
            verify_copy(self.job, self.artifact, copy, on_bytes=self.job.heartbeat)  # from now on it is a bad copy
            raise
