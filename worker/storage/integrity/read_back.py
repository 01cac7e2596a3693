"""Read written bytes back from a store that does not refuse damaged ones, before they replace an object."""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from worker.storage.driver import (
    Condition,
    Digest,
    FullDriver,
    HashedBody,
    Match,
    ObjectStat,
    StaleUpload,
    WriteInfo,
)
from worker.storage.errors import (
    NotFound,
    PermanentError,
    PreconditionFailed,
    StorageError,
    TransientError,
    Unavailable,
)
from worker.storage.integrity.chunk_verification import first_bad_chunk
from worker.storage.integrity.manifest import Chunk, Manifest
from worker.storage.integrity.verdict import Verdict, judge
from worker.storage.integrity.verify_object import read_small
from worker.storage.integrity.verifying_reader import OnBytes, VerifyingReader
from worker.storage.keys import PROBE_BUCKET, STAGING_BUCKET, reserved_key
from worker.storage.transfer.resumable_read import open_resumable
from worker.storage.transfer.server_copy import Between

logger = logging.getLogger(__name__)

Send = Callable[[str, str, Condition], ObjectStat]
"""Sends the body of a write to a bucket and key, under a condition."""
_MOST_BAD = 1000
"""Most chunks that are replaced singly, so that the new object has no more parts than a store allows."""


class ReadBack:
    """The writes of one store whose bytes are read back.

    A store with a reserved bucket gets the bytes there first, and copies them to their key when they were read. Without
    a reserved bucket they are read at their key, and replace no object.
    """

    def __init__(self, driver: FullDriver) -> None:
        self._driver = driver
        self._name = driver.name
        self._refuses_damage: bool | None = None
        self._lock = threading.Lock()

    def is_needed(self) -> bool:
        """Return whether the store accepts damaged bytes, or whether that is unknown; it is tried once per process."""
        with self._lock:
            if self._refuses_damage is None:
                try:
                    self._refuses_damage = self.refuses_damage() or False
                except TransientError:
                    return True
                except StorageError:  # such as credentials that may not write the probe
                    self._refuses_damage = False
            return not self._refuses_damage

    def refuses_damage(self) -> bool | None:
        """Send wrong checksums and return whether the store refuses them; None if that cannot be tried.

        Raises:
            StorageError: the store does not answer.
        """
        if not hasattr(self._driver, "refuses_damage") or not self._driver.capabilities.reserved_buckets:
            return None
        key = f"checksum-{secrets.token_hex(8)}"
        return self._driver.refuses_damage(PROBE_BUCKET, key)

    def write(
        self,
        send: Send,
        body: HashedBody | VerifyingReader,
        bucket: str,
        key: str,
        *,
        label: str,
        condition: Condition,
        storage_class: str | None,
        on_bytes: OnBytes | None,
    ) -> ObjectStat:
        """Send a body, read it back and return the stat of the object at its key.

        Args:
            send: sends the body.
            body: its bytes, whose digest is known when they were sent.
            bucket: the logical bucket.
            key: the key in it.
            label: distinguishes these bytes from others of the same key in the reserved bucket.
            condition: see `Driver.put`.
            storage_class: that of the object, in place of the configured one.
            on_bytes: called with the number of bytes after each read of the written object.

        Raises:
            Unavailable: the store has other bytes than were sent; they are deleted.
            PermanentError: without a reserved bucket, an object is there already.
        """
        limits = self._driver.capabilities
        if limits.reserved_buckets and limits.copies:
            staged = send(STAGING_BUCKET, reserved_key(STAGING_BUCKET, f"{label}/{bucket}", key), None)
            self._compare(staged, body.digest, on_bytes, f"{bucket}/{key}")
            return self._swap_in(staged, bucket, key, condition, storage_class)
        self._check_replaces_nothing(bucket, key, condition)
        written = send(bucket, key, condition)
        self._compare(written, body.digest, on_bytes, f"{bucket}/{key}")
        return written

    def patch(
        self,
        found: ObjectStat,
        info: WriteInfo,
        manifest: Manifest,
        bad: Sequence[Chunk],
        read: Callable[[Chunk], bytes | bytearray],
        *,
        between: Between,
        on_bytes: OnBytes | None,
    ) -> ObjectStat | None:
        """Have the store make the right object of a bad one, and put it in its place; only the bad chunks are sent.

        The new object waits in the reserved bucket until all its bytes were read, because the store may copy other
        bytes than were read before. Returns None, with nothing changed, where the store cannot, where most chunks are
        bad, or if the new object is not right.

        Args:
            found: the bad object.
            info: size, digest, metadata and headers of the new object.
            manifest: the digests of the right chunks.
            bad: the chunks that are not right, in their order.
            read: returns the right bytes of a chunk.
            between: called between requests; what it raises ends the write.
            on_bytes: called with the number of bytes after each read of the new object.

        Raises:
            PreconditionFailed: another version, or nothing, is under the key.
        """
        limits = self._driver.capabilities
        possible = limits.patches and limits.reserved_buckets and manifest.chunk_size >= limits.patches
        if not possible or not 0 < len(bad) <= min(len(manifest) // 2, _MOST_BAD):
            return None
        driver, unit = self._driver, manifest.chunk_size
        # A key of its own: two repairs of one object at the same time would overwrite each other's result.
        key = reserved_key(STAGING_BUCKET, f"{secrets.token_hex(8)}/{found.bucket}", found.key)
        replaced = [range(chunk.offset, chunk.offset + chunk.size) for chunk in bad]
        staged = driver.patch(
            found, STAGING_BUCKET, key, info, replaced,
            read=lambda span: read(manifest.chunk(span.start // unit)), unit=unit, between=between,
        )  # fmt: skip
        try:
            right = staged.size == manifest.size and not first_bad_chunk(driver, staged, manifest, on_bytes)
        except BaseException:
            self._discard(staged)
            raise
        if right:
            return self._swap_in(staged, found.bucket, found.key, Match(found.version), info.storage_class)
        self._discard(staged)
        logger.warning(
            "%s: %s/%s: the store copied other bytes than it returned, so all of the object is sent",
            self._name, found.bucket, found.key,
        )  # fmt: skip
        return None

    def iter_staged(self) -> Iterator[StaleUpload]:
        """Yield the objects in the reserved bucket that were not swapped in, also those of running writes."""
        limits = self._driver.capabilities
        if not limits.reserved_buckets or (limits.checks_uploads is True and not limits.patches):
            return
        for row in self._driver.iter_objects(STAGING_BUCKET):
            token = (STAGING_BUCKET, row.version, row.key)
            yield StaleUpload(f"object {STAGING_BUCKET}/{row.key}, not swapped in", row.modified, token)

    def remove_staged(self, stale: StaleUpload) -> bool:
        """Delete an object of `iter_staged`; return False if it is gone or another one."""
        _, version, key = stale.token
        with suppress(PreconditionFailed):
            return self._driver.delete(STAGING_BUCKET, key, condition=Match(version))
        return False

    def _check_replaces_nothing(self, bucket: str, key: str, condition: Condition) -> None:
        if condition == "create_only":
            return
        try:
            self._driver.stat(bucket, key)
        except NotFound:
            return
        way_out = (
            "delete it first, or write under another key"
            if self._driver.capabilities.reserved_buckets
            else f"set stores.{self._name}.reserved_bucket, where new bytes wait until they were read"
        )
        raise PermanentError(
            f"{self._name}: {bucket}/{key}: the store does not refuse bytes that are damaged on the way, so writing "
            f"over the object that is there could lose it: {way_out}"
        )

    def _compare(self, written: ObjectStat, digest: Digest, on_bytes: OnBytes | None, path: str) -> None:
        """Compare the written object with the bytes sent; `path` is its final bucket and key."""
        if self._is_right(written, digest):
            if on_bytes:
                on_bytes(digest.size)
            return
        with open_resumable(self._driver, written.bucket, written.key) as reader:
            found = judge(reader, digest, on_bytes)
        if found.verdict is Verdict.VERIFIED:
            return
        with suppress(PreconditionFailed):  # another writer has replaced the object, which then stays
            self._driver.delete(written.bucket, written.key, condition=Match(written.version))
        raise Unavailable(
            f"{self._name}: {path}: the bytes were damaged on the way to a store that checks no checksums"
        )

    def _is_right(self, written: ObjectStat, digest: Digest) -> bool:
        """Return whether one request returns the right bytes of a small object; False does not prove that it is bad."""
        try:
            return read_small(self._driver, written.bucket, written.key, digest) is not None
        except StorageError:
            return False

    def _swap_in(
        self, staged: ObjectStat, bucket: str, key: str, condition: Condition, storage_class: str | None
    ) -> ObjectStat:
        """Have the store copy the staged object, as it was read, over the old one, and delete the staged one."""
        try:
            return self._driver.copy(
                staged.bucket,
                staged.key,
                bucket,
                key,
                version=staged.version,
                condition=condition,
                storage_class=storage_class,
            )
        finally:
            self._discard(staged)

    def _discard(self, staged: ObjectStat) -> None:
        with suppress(StorageError):  # cleanup removes what is left
            self._driver.delete(staged.bucket, staged.key, condition=Match(staged.version))
