"""One store for all backends: a driver with key rules, hashing, comparison and evidence."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypedDict, cast

from worker.storage.driver import (
    BUFFER_SIZE,
    Capabilities,
    Condition,
    Digest,
    Driver,
    FullDriver,
    HashedBody,
    HashedBytes,
    ListedObject,
    Match,
    ObjectProperties,
    ObjectReader,
    ObjectStat,
    SignedPut,
    SmallPut,
    SmallReads,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    AlreadyExists,
    DigestMismatch,
    InvalidKey,
    InvalidRange,
    NotDeleted,
    NotFound,
    OtherWriter,
    PermanentError,
    PreconditionFailed,
    SizeMismatch,
    StorageError,
)
from worker.storage.identity import Identity, Purpose
from worker.storage.integrity.chunk_verification import (
    MIN_PARALLEL_CHUNKS,
    VerifiedRange,
    bad_chunks,
    first_bad_chunk,
    read_chunk,
)
from worker.storage.integrity.manifest import Chunk, Manifest
from worker.storage.integrity.read_back import ReadBack
from worker.storage.integrity.verdict import Verdict, Verification, stored_digest
from worker.storage.integrity.verify_object import read_ahead, read_small, verdict_of, verify
from worker.storage.integrity.verifying_reader import OnBytes, Readable, VerifiedReader, VerifyingReader, save, write_at
from worker.storage.keys import (
    QUARANTINE_BUCKET,
    STAGING_BUCKET,
    check_bucket,
    check_existing_key,
    check_key,
    check_prefix,
    is_bucket,
    reserved_key,
)
from worker.storage.spooling import spooling_in
from worker.storage.transfer.multipart import MEMORY, Checkpoint, MultipartWrite
from worker.storage.transfer.resumable_read import ResumableReader, open_resumable
from worker.storage.transfer.server_copy import Between, copy_server_side
from worker.storage.writer_record import WriterRecord, read_writer, write_writer

_MAX_OFFSET = 2**63 - 1


class BesideBytes(TypedDict, total=False):
    """What is kept beside the bytes of an object: options of each method of `Store` that makes one."""

    metadata: Mapping[str, str] | None
    properties: ObjectProperties | None


class CopyOptions(BesideBytes, total=False):
    """The options of `Store.copy_object` that a store with limits passes on."""

    checkpoint: Checkpoint | None


class WriteOptions(BesideBytes, total=False):
    """The options of `Store.write_object` that a store with limits passes on."""

    size: int | None
    sha256: str | None
    storage_class: str | None
    condition: Condition
    checkpoint: Checkpoint | None
    existing_key: bool
    manifest: Manifest | None


class Store:
    """One configured store, whatever its backend.

    Checks every bucket name and key before anything is sent, hashes every byte and compares the digests. Reserved
    bucket names are accepted here: callers that take names from users call `check_bucket` first.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        spool_dir: Path | None = None,
        memory: int = MEMORY,
        identity: Identity | None = None,
    ) -> None:
        """Wrap a driver.

        Args:
            driver: the backend.
            spool_dir: where bodies of unknown digest wait on disk for stores that need it first, and parts that are
                too large for memory; the system's temporary directory by default.
            memory: most bytes of an object that one write keeps in memory.
            identity: checks before every use that the store was used under its name before.
        """
        self.name = driver.name  # as it is configured, such as `primary`
        self._driver = cast("FullDriver", driver)
        self._identity = identity
        self._memory = memory
        self._spool_dir = spool_dir
        self._read_back = ReadBack(self._driver)

    @property
    def capabilities(self) -> Capabilities:
        return self._driver.capabilities

    # Objects

    def write_object(
        self,
        bucket: str,
        key: str,
        source: Readable | HashedBytes,
        *,
        size: int | None = None,
        sha256: str | None = None,
        metadata: Mapping[str, str] | None = None,
        properties: ObjectProperties | None = None,
        storage_class: str | None = None,
        condition: Condition = None,
        on_bytes: OnBytes | None = None,
        on_read_back: OnBytes | None = None,
        checkpoint: Checkpoint | None = None,
        existing_key: bool = False,
        manifest: Manifest | None = None,
    ) -> tuple[ObjectStat, Digest]:
        """Write an object atomically and return its stat and the digest of the bytes that were sent.

        Large objects are sent as multipart uploads, several parts at once, where the store has them. A write to a store
        without checksums goes to a reserved bucket, is read back there, and then the store copies it to its key.
        Without a reserved bucket it is read back at its key, and replaces no object.

        Args:
            bucket: the logical bucket.
            key: the key in it.
            source: the bytes, read once, in pieces; hashed bytes are not hashed again.
            size: how many bytes there must be, if known.
            sha256: the SHA-256 they must have, if known.
            metadata: kept if the capabilities have `user_metadata`.
            properties: headers and tags, kept if the capabilities have `user_metadata`.
            storage_class: the store's name of a class or tier, in place of the configured one.
            condition: see `Driver.put`.
            on_bytes: called with the number of bytes after each read of the source.
            on_read_back: called with the number of bytes after each read of the written object.
            checkpoint: records confirmed parts, so that a killed write resumes with the missing ones.
            existing_key: the key is that of an object in another store, so every key that this store can hold is
                allowed.
            manifest: the digests of the chunks, recorded with `sha256`: a multipart upload compares its parts with them
                in place of the whole.

        Raises: SizeMismatch, DigestMismatch: the source has other bytes than announced; nothing was written.
            InvalidKey: nothing was sent.
            SameStore: another configured store is the same physical place.
            StorageError: see `Driver.put`.
        """
        self._check_write(bucket, key, existing_key=existing_key)
        if storage_class and self.capabilities.storage_classes is None:
            raise PermanentError(f"{self.name}: the store has no storage classes; {storage_class!r} was asked for")
        announced = WriteInfo(size, sha256, metadata or {}, storage_class, properties or ObjectProperties())
        with self._spooled(source, announced) as (content, info):
            self._check_size(bucket, key, info.size)
            body: HashedBody | VerifyingReader
            if isinstance(content, HashedBytes):
                body = HashedBody(content, on_bytes)
            else:
                what = f"the source of {bucket}/{key}"
                body = VerifyingReader(content, size=info.size, sha256=info.sha256, what=what, on_bytes=on_bytes)
            in_parts = self._goes_in_parts(info.size)
            if in_parts:
                self._refuse_early(bucket, key, condition)

            def send(at_bucket: str, at_key: str, condition: Condition) -> ObjectStat:
                if not in_parts:
                    return self._driver.put(at_bucket, at_key, body, info, condition=condition)
                parted = MultipartWrite(
                    self._driver, at_bucket, at_key, info, checkpoint or Checkpoint(),
                    manifest=manifest, memory=self._memory, spool_dir=self._spool_dir,
                    other_place=(bucket, key) if (at_bucket, at_key) != (bucket, key) else None,
                )  # fmt: skip
                return parted.run(body, condition)

            if self.checks_uploads():
                return send(bucket, key, condition), body.digest
            stat = self._read_back.write(
                send, body, bucket, key,
                label=str(info.sha256), condition=condition, storage_class=storage_class, on_bytes=on_read_back,
            )  # fmt: skip
            return stat, body.digest

    def write_objects(self, puts: Iterable[SmallPut]) -> list[ObjectStat | StorageError]:
        """Write small objects of different keys as a group, and return the stat or the error of each, in their order.

        Each is atomic by itself and durable when this returns. Only for objects of at most `capabilities.groups` bytes.
        Those without a result have to be written by themselves.
        """
        if not self.capabilities.groups or not self.checks_uploads():
            return []  # without a check, each is read back
        taken, refused = 0, dict[int, StorageError]()

        def allowed() -> Iterator[SmallPut]:
            nonlocal taken
            for put in puts:
                taken += 1
                try:
                    self._check_write(put.bucket, put.key, existing_key=True)
                    self._check_size(put.bucket, put.key, put.body.digest.size)
                except StorageError as error:
                    refused[taken - 1] = error
                else:
                    yield put

        results = iter(self._driver.put_many(allowed()))
        return [refused[number] if number in refused else next(results) for number in range(taken)]

    def expect_writes(self, paths: Iterable[tuple[str, str]]) -> None:
        """Expect new objects under these buckets and keys, so that a store without conditions is asked for all at once.

        The promises of a write stay the same, and not all expected objects need be written.
        """
        if hasattr(self._driver, "expect_writes"):
            self._driver.expect_writes(paths)

    def read_object(
        self, bucket: str, key: str, *, expected: Digest | None = None, on_bytes: OnBytes | None = None
    ) -> VerifiedReader:
        """Open an object; reading it to the end verifies it and raises IntegrityError when it is wrong.

        Without `expected`, the recorded digest, it is compared with the one that the store keeps beside it. `on_bytes`
        is called with the number of bytes after each read.

        Raises:
            NotFound: there is no such object.
            StorageError: see `Driver.open`.
        """
        self._check_read(bucket, key)
        reader = open_resumable(self._driver, bucket, key)
        digest = expected or stored_digest(reader.stat)
        return VerifiedReader(
            reader,
            size=digest.size if digest else reader.stat.size,
            sha256=digest.sha256 if digest else None,
            what=f"{self.name}: {bucket}/{key}",
            on_bytes=on_bytes,
            verified=digest is not None,
        )

    def download_object(
        self,
        bucket: str,
        key: str,
        file: int,
        expected: Digest,
        *,
        manifest: Manifest | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """Write an object to an empty file: when this returns, every byte in it is verified.

        `file` is an open descriptor of a regular file, which is not made durable. With `manifest`, recorded with
        `expected`, a large object is read on several cores, and each chunk is compared in place of the whole.
        `on_bytes` is called with the number of bytes after each read; what it raises passes through.

        Raises:
            IntegrityError: the object has other bytes; the file has some of them.
            OSError: the file cannot be written.
            StorageError: see `Driver.open`.
        """
        if manifest is None or len(manifest) < MIN_PARALLEL_CHUNKS:
            with self.read_object(bucket, key, expected=expected) as reader:
                save(reader, file, on_bytes)
            return
        self._check_read(bucket, key)
        stat = self._driver.stat(bucket, key)
        if stat.size != expected.size:
            raise SizeMismatch(f"{self.name}: {bucket}/{key} has {stat.size} bytes, not the recorded {expected.size}")
        bad = first_bad_chunk(self._driver, stat, manifest, on_bytes, write=partial(write_at, file))
        if bad:
            raise DigestMismatch(
                f"{self.name}: {bucket}/{key}: bytes {bad.offset} to {bad.offset + bad.size} are not those that were "
                "recorded"
            )

    def read_object_range(
        self, bucket: str, key: str, offset: int, length: int, *, manifest: Manifest | None = None
    ) -> VerifiedReader:
        """Open `length` bytes from `offset`; a range past the end is empty.

        With the object's manifest every byte is verified before it is returned, and a corrupt chunk raises
        DigestMismatch. Without it the reader's `verified` is False, because the digest of the whole says nothing about
        a range.
        """
        self._check_read(bucket, key)
        if not (0 <= offset <= _MAX_OFFSET and 0 <= length <= _MAX_OFFSET):
            raise InvalidRange(
                f"{self.name}: {bucket}/{key}: a range has an offset and a length from 0 to {_MAX_OFFSET}, "
                f"these are {offset} and {length}"
            )
        reader: ObjectReader
        if manifest is None:
            reader = ResumableReader(self._driver, bucket, key, offset=offset, length=length)
        else:
            reader = VerifiedRange(self._driver, self._driver.stat(bucket, key), manifest, offset, length)
        size = max(0, min(length, reader.stat.size - offset))
        what = f"{self.name}: {bucket}/{key}: the range of {length} bytes from {offset}"
        return VerifiedReader(reader, size=size, what=what, verified=manifest is not None)

    def read_chunk(self, bucket: str, key: str, chunk: Chunk) -> bytearray:
        """Return the bytes of one chunk of an object's manifest, in memory; every byte is verified.

        Raises:
            DigestMismatch: the object has other bytes there.
            StorageError: see `Driver.open`.
        """
        self._check_read(bucket, key)
        with ResumableReader(self._driver, bucket, key, offset=chunk.offset, length=chunk.size) as reader:
            return read_chunk(reader, chunk)

    def verify_object(
        self,
        bucket: str,
        key: str,
        expected: Digest | None = None,
        *,
        manifest: Manifest | None = None,
        on_bytes: OnBytes | None = None,
    ) -> Verification:
        """Read all bytes of an object and return the verdict; a StorageError becomes a verdict and is not raised.

        Without `expected`, the recorded digest, they are compared with the one that the store keeps beside them. With
        `manifest`, recorded with it, a large object is read on several cores, and the verdict has the bad chunks.
        `on_bytes` is called with the number of bytes after each read; what it raises passes through.
        """
        self._check_existing(bucket, key)
        try:
            self._check_read(bucket, key)
            return verify(self._driver, bucket, key, expected, manifest=manifest, on_bytes=on_bytes)
        except StorageError as error:
            return verdict_of(error, self._driver, bucket, key, expected)

    def verify_objects(self, wanted: Iterable[tuple[str, str, Digest]]) -> Iterator[Verification]:
        """Verify small objects, each given as bucket, key and recorded digest, one after the other.

        Every verdict is that of `verify_object`. More objects may be taken from `wanted` than verdicts were yielded.
        """
        reads = self._small_reads()
        if reads is None:
            for each in wanted:
                yield self.verify_object(*each)
            return
        local, verified = self.capabilities.local, Verdict.VERIFIED  # local: read below the store's own directory
        for each, found in read_ahead(reads, wanted):
            if found is not None and (local or self._is_own(*each[:2])):
                expected = each[2]
                yield Verification(verified, expected.size, expected.sha256, found.version, None, found.sha256)
            else:  # a bad copy gets its verdict from a second read
                yield self.verify_object(*each)

    def read_objects(self, wanted: Iterable[tuple[str, str, Digest]]) -> Iterator[bytes | None]:
        """Yield the bytes of small objects, given as for `verify_objects`; None for one that must be read by itself.

        All bytes that are returned have the recorded digest.
        """
        # A store across a network is read one object at a time: several threads read, and write between two reads.
        reads = self._small_reads() if self.capabilities.local else None
        if reads is None:
            for each in wanted:
                yield self._read_whole(*each)
            return
        for _, found in read_ahead(reads, wanted):
            yield bytes(found.data) if found else None

    def _is_own(self, bucket: str, key: str) -> bool:
        """Return whether an object that was read may be one of this store; `verify_object` says why not."""
        try:
            self._check_read(bucket, key)
        except StorageError:
            return False
        return True

    def _read_whole(self, bucket: str, key: str, expected: Digest) -> bytes | None:
        """Return the bytes of a small object that is right, read in one request; None for any other one."""
        try:
            self._check_read(bucket, key)
            found = read_small(self._driver, bucket, key, expected)
        except StorageError:
            return None  # it is raised again where the object is read by itself
        return bytes(found.data) if found else None

    def stat_object(self, bucket: str, key: str, *, as_copy: bool = False) -> ObjectStat:
        """Return the store's metadata of an object, without reading it. It says nothing about the bytes.

        With `as_copy`, the object may become a copy of the record: raise SameStore if another configured store is the
        same physical place.
        """
        if as_copy:
            self._check_identity("record")
        self._check_read(bucket, key)
        return self._driver.stat(bucket, key)

    def object_exists(self, bucket: str, key: str) -> bool:
        """Return whether the store says that there is such an object."""
        try:
            self.stat_object(bucket, key)
        except NotFound:
            return False
        return True

    def get_object_version(self, bucket: str, key: str) -> str:
        """Return the version tag of an object, also of one that cannot be read: a delete names it.

        It is empty where the store gives none.
        """
        try:
            return self.stat_object(bucket, key).version
        except NotFound:
            raise
        except PermanentError:
            if (version := self._driver.find_version(bucket, key)) is None:
                raise
            return version

    def delete_object(self, bucket: str, key: str, *, condition: Match | None = None) -> bool:
        """Delete an object and return whether there was one; see `Driver.delete`.

        The store is asked again afterwards: it may accept a delete and do nothing.

        Raises:
            NotDeleted: the store accepted the delete and still has the object, or, without a condition, any object.
        """
        if self._is_impossible(bucket, key):
            return False
        self._check_identity("write", bucket)
        if not self._driver.delete(bucket, key, condition=condition):
            return False
        left = self._driver.find_version(bucket, key)
        if left is None or (condition is not None and left != condition.version):
            return True
        if all(row.key != key for row in islice(self._driver.iter_objects(bucket, key), 1)):
            return True  # the store found another object, whose key differs only in Unicode normalisation
        said = f"{self.name}: {bucket}/{key}: the store accepted the delete and still has the object"
        raise NotDeleted(said)

    def quarantine_object(self, bucket: str, key: str, label: str, *, on_bytes: OnBytes | None = None) -> str:
        """Copy an object's present bytes to the quarantine, and return the `bucket/key` of the copy.

        The object itself stays until it is replaced: nothing is deleted first. `label`, such as a job id, distinguishes
        this set of bytes from others of the same key. `on_bytes` is called with the size of every piece, if the store
        cannot copy and the bytes pass through this process.
        """
        self._check_read(bucket, key)
        self._check_identity("write")
        aside = reserved_key(QUARANTINE_BUCKET, f"{bucket}/{label}", key)
        if not self.capabilities.implicit_buckets:
            self._driver.create_bucket(QUARANTINE_BUCKET)
        path = f"{QUARANTINE_BUCKET}/{aside}"
        if self.capabilities.copies:
            with suppress(PermanentError):  # such as a store that copies no parts
                self._driver.copy(bucket, key, QUARANTINE_BUCKET, aside)
                return path
        with self._driver.open(bucket, key) as reader:
            self.write_object(QUARANTINE_BUCKET, aside, reader, on_bytes=on_bytes, existing_key=True)
        return path

    def copy_object(
        self,
        origin: "Store",
        bucket: str,
        key: str,
        expected: Digest,
        *,
        metadata: Mapping[str, str] | None = None,
        properties: ObjectProperties | None = None,
        checkpoint: Checkpoint | None = None,
        between: Between = lambda: None,
    ) -> ObjectStat | None:
        """Copy an object of another store server-side; return None, with nothing done, where that is impossible.

        The bytes do not pass through this process, so the caller must verify the copy before it counts. The destination
        must be empty, because unverified bytes replace nothing. `checkpoint` records the multipart upload of the copy,
        so that cleanup knows it after this process was killed.

        Raises:
            StorageError: see `copy_server_side`.
        """
        self._check_write(bucket, key, existing_key=True)
        info = WriteInfo(expected.size, expected.sha256, metadata or {}, properties=properties or ObjectProperties())
        return copy_server_side(
            origin._driver,  # noqa: SLF001
            self._driver,
            bucket,
            key,
            info,
            between=between,
            checkpoint=checkpoint or Checkpoint(),
        )

    def patch_object(
        self,
        found: ObjectStat,
        manifest: Manifest,
        expected: Digest,
        bad: Sequence[Chunk],
        read: Callable[[Chunk], bytes | bytearray],
        *,
        metadata: Mapping[str, str] | None = None,
        properties: ObjectProperties | None = None,
        between: Between = lambda: None,
        on_read_back: OnBytes | None = None,
    ) -> ObjectStat | None:
        """Replace a bad object by the right one, of which only the bad chunks are sent; None where that is impossible.

        All bytes of the new object are read before it replaces the bad one. With None, nothing has changed.

        Args:
            found: the bad object.
            manifest: the digests of the chunks, recorded with `expected`.
            expected: the recorded digest.
            bad: the bad chunks, in their order; if there are none, the object is read to find them.
            read: returns the right bytes of a chunk.
            metadata: see `write_object`.
            properties: see `write_object`.
            between: called between requests; what it raises passes through.
            on_read_back: called with the number of bytes after each read of the store.

        Raises:
            PreconditionFailed: another version, or nothing, is under the key.
            StorageError: see `FullDriver.patch`; what `read` raises.
        """
        self._check_write(found.bucket, found.key, existing_key=True)
        if not self.capabilities.patches or found.size != expected.size:
            return None
        info = WriteInfo(expected.size, expected.sha256, metadata or {}, properties=properties or ObjectProperties())
        bad = bad or bad_chunks(self._driver, found, manifest, on_read_back)
        return self._read_back.patch(found, info, manifest, bad, read, between=between, on_bytes=on_read_back)

    def sign_put(self, bucket: str, key: str, size: int, seconds: int) -> SignedPut:
        """Return a request with which others write one object; see `FullDriver.sign_put`.

        Raises:
            PermanentError: the store cannot sign such a request.
        """
        self._check_write(bucket, key, existing_key=False)
        if not self.capabilities.signs_puts:
            raise PermanentError(f"{self.name}: the store cannot be written to by signed URLs")
        return self._driver.sign_put(bucket, key, size, seconds)

    def offers_hold(self, bucket: str) -> bool:
        """Return whether the bucket can hold objects itself: it then refuses to delete them, whatever program asks.

        Raises:
            StorageError: the bucket cannot be asked.
        """
        return self.capabilities.holds and self._driver.offers_hold(bucket)

    def set_hold(self, bucket: str, key: str, *, held: bool) -> None:
        """Have the store hold an object, or end that; only for a bucket that offers it."""
        self._check_existing(bucket, key)
        self._check_identity("write", bucket)
        self._driver.set_hold(bucket, key, held=held)

    def delete_held(self, bucket: str, key: str) -> bool:
        """Try to delete an object that is held; return False if the store refuses it. Only for an object of our own."""
        self._check_identity("write", bucket)
        return self._driver.delete_held(bucket, key)

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """Return the object tags that users have set; none where the store has no tags."""
        return {} if self.capabilities.tags is None else self._driver.tags(bucket, key)

    def list_objects(self, bucket: str, prefix: str = "", *, after: str = "") -> Iterator[ListedObject]:
        """Yield objects by the UTF-8 order of their keys; see `Driver.iter_objects`."""
        try:
            check_bucket(bucket, reserved=True)
            check_prefix(prefix)
            check_prefix(after)
        except InvalidKey as error:
            raise InvalidKey(f"{self.name}: {error.message}") from None
        self._check_identity("read", bucket)
        return self._driver.iter_objects(bucket, prefix, after)

    # Buckets and the store itself

    def create_bucket(self, bucket: str) -> bool:
        """Make a bucket; return False if it was there already."""
        self._check_identity("write")
        return self._driver.create_bucket(check_bucket(bucket, reserved=True))

    def bucket_exists(self, bucket: str) -> bool:
        return self._driver.bucket_exists(check_bucket(bucket, reserved=True))

    def list_buckets(self) -> list[str]:
        """Return the names of the buckets that may hold artifacts, in their order.

        Reserved buckets and names that no bucket of an artifact can have are left out. Where logical buckets are real
        ones, only those are known that `buckets` in the settings of the store names.
        """
        self._check_identity("read")
        return sorted(name for name in self._driver.list_buckets() if is_bucket(name))

    def health_check(self) -> None:
        """Raise a StorageError if the store cannot be reached with its credentials."""
        self._driver.check()

    def checks_uploads(self) -> bool:
        """Return whether the store refuses bytes that were damaged on the way; tried once per process.

        Every write to a store that does not, or where that is unknown, is read back.
        """
        known = self.capabilities.checks_uploads
        return not self._read_back.is_needed() if known is None else known

    def refuses_damage(self) -> bool | None:
        """Send wrong checksums and return whether the store refuses them; None if that cannot be tried.

        It cannot be tried without a reserved bucket, nor on a local filesystem, which has no checksums.

        Raises:
            StorageError: the store does not answer.
        """
        self._check_identity("write")
        return self._read_back.refuses_damage()

    def check_identity(self, purpose: Purpose) -> None:
        """Raise unless this is the store that was used under its name before, and no other store is the same.

        A recent check does not count.

        Raises:
            SameStore, OtherStore: it is not; says the way out.
            OtherWriter: another copy of the catalogue writes to it; only to write.
            StorageError: the store does not answer.
        """
        if self._identity:
            self._identity.check(purpose, fresh=True)

    def check_writer(self) -> None:
        """Raise OtherWriter if another copy of the catalogue writes to the store: what it has is not of this catalogue.

        A store that does not answer is found by what is asked next.
        """
        if self._identity:
            try:
                self._identity.check_writer()
            except OtherWriter:
                raise
            except StorageError:
                return

    def writer(self, catalogue: str) -> WriterRecord | None:
        """Return which copy of this catalogue writes to the store, as far as the store has a record of that."""
        self._check_identity("read")
        return read_writer(self._driver, catalogue)

    def set_writer(self, catalogue: str, record: WriterRecord, *, condition: Condition = None) -> None:
        """Replace that record, also where another copy of the catalogue writes to the store."""
        self._check_identity("record")
        write_writer(self._driver, catalogue, record, condition=condition)

    def refuses_reads(self) -> bool:
        """Return whether the store refuses to return its marker, which it has returned before: it refuses all reads."""
        return self._identity is not None and self._identity.is_refused()

    def advice(self) -> list[str]:
        """Return recommendations for the configuration of the store, one sentence each."""
        return self._driver.advice()

    def abort_upload(self, bucket: str, key: str, token: str) -> None:
        """Abort a multipart upload and remove its parts; an upload that has ended is no error."""
        self._check_identity("write", bucket)
        self._driver.abort_upload(bucket, key, token)

    def iter_stale_uploads(self) -> Iterator[StaleUpload]:
        """Yield the unfinished uploads, those that are still being written included."""
        self._check_identity("read")
        yield from self._driver.iter_stale_uploads()
        yield from self._read_back.iter_staged()

    def is_unused_upload(self, stale: StaleUpload, bucket: str, key: str) -> bool:
        """Return whether a stale upload of a store that does not mark uploads is of this object and has no part yet."""
        return not self.capabilities.marks_uploads and self._driver.is_unused_upload(stale, bucket, key)

    def remove_stale_upload(self, stale: StaleUpload) -> bool:
        """Remove a stale upload; return False if it has ended meanwhile or its writer is alive."""
        self._check_identity("write")
        of_ours = stale.token[0] == STAGING_BUCKET
        return self._read_back.remove_staged(stale) if of_ours else self._driver.remove_stale_upload(stale)

    def close(self) -> None:
        self._driver.close()

    # Internals

    def _check_existing(self, bucket: str, key: str) -> None:
        """Check the names of an object that another program may have written."""
        try:
            check_bucket(bucket, reserved=True)
            check_existing_key(bucket, key)
        except InvalidKey as error:
            raise InvalidKey(f"{self.name}: {error.message}") from None

    def _check_read(self, bucket: str, key: str) -> None:
        if self._is_impossible(bucket, key):
            raise NotFound(f"{self.name}: {bucket}/{key} does not exist: the store can have no object of this name")
        self._check_identity("read", bucket)

    def _check_write(self, bucket: str, key: str, *, existing_key: bool) -> None:
        if existing_key and self._is_impossible(bucket, key):
            raise InvalidKey(f"{self.name}: the store can have no object of the name {bucket}/{key}")
        if not existing_key:
            try:
                check_key(check_bucket(bucket, reserved=True), key)
            except InvalidKey as error:
                raise InvalidKey(f"{self.name}: {error.message}") from None
        self._check_identity("write", bucket)

    def _is_impossible(self, bucket: str, key: str) -> bool:
        """Check the names of an object, and return whether this store can have no such object."""
        self._check_existing(bucket, key)
        impossible = self.capabilities.impossible_keys
        return impossible is not None and impossible.search(key) is not None

    def _small_reads(self) -> SmallReads | None:
        """Return the reader of many small objects; None if the driver has none, or the store fails."""
        if not hasattr(self._driver, "small_reads"):
            return None
        try:
            self._check_identity("read")
        except StorageError:
            return None  # each object raises it again
        return self._driver.small_reads()

    def _check_identity(self, purpose: Purpose, bucket: str | None = None) -> None:
        if self._identity:
            self._identity.check(purpose)
            if bucket is not None:
                self._identity.check_bucket(bucket)

    def _check_size(self, bucket: str, key: str, size: int | None) -> None:
        limit = self.capabilities.max_object_size
        if size is not None and limit is not None and size > limit:
            raise SizeMismatch(f"{self.name}: {bucket}/{key} has {size} bytes, the store takes at most {limit}")

    def _goes_in_parts(self, size: int | None) -> bool:
        parts = self.capabilities.parts
        return parts is not None and size is not None and size > max(parts.above, min(parts.min_size, self._memory))

    def _refuse_early(self, bucket: str, key: str, condition: Condition) -> None:
        """Check a condition before gigabytes are sent, because the store checks it only afterwards."""
        if condition is None:
            return
        found = None
        with suppress(NotFound):
            found = self.stat_object(bucket, key)
        if condition == "create_only" and found:
            raise AlreadyExists(f"{self.name}: {bucket}/{key} exists already")
        if isinstance(condition, Match) and (found is None or found.version != condition.version):
            there = f"version {found.version}" if found else "nothing"
            raise PreconditionFailed(
                f"{self.name}: {bucket}/{key} was expected in version {condition.version}, {there} is there"
            )

    @contextmanager
    def _spooled(
        self, source: Readable | HashedBytes, info: WriteInfo
    ) -> Iterator[tuple[Readable | HashedBytes, WriteInfo]]:
        """Yield a source and its size and digest, if need be from a copy on disk.

        Raises:
            OutOfSpace: the disk has no room for the copy.
            PermanentError: no file can be made in the spool directory.
        """
        if isinstance(source, HashedBytes):
            yield source, replace(info, size=source.digest.size, sha256=source.digest.sha256)
            return
        needs_digest = self.capabilities.needs_digest_first
        if not needs_digest or None not in {info.size, info.sha256}:
            yield source, info
            return
        body = VerifyingReader(source, size=info.size, sha256=info.sha256)
        with ExitStack() as held:
            with spooling_in(self._spool_dir):
                spool = held.enter_context(tempfile.TemporaryFile(dir=self._spool_dir, prefix="zot-spool-"))
                while piece := body.read(BUFFER_SIZE):
                    spool.write(piece)
                spool.seek(0)
            yield spool, replace(info, size=body.digest.size, sha256=body.digest.sha256)
