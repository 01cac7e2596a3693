"""Verify one object of a store with a full read: in one request, chunk by chunk or in one stream."""

import hashlib
from collections.abc import Iterable, Iterator

from worker.storage.driver import (
    Digest,
    Driver,
    FullDriver,
    ObjectStat,
    SmallRead,
    SmallReads,
    WholeObject,
)
from worker.storage.errors import Archived, NotFound, StorageError
from worker.storage.integrity.chunk_verification import MIN_PARALLEL_CHUNKS, bad_chunks
from worker.storage.integrity.manifest import Manifest
from worker.storage.integrity.verdict import Verdict, Verification, judge, size_mismatch, stored_digest
from worker.storage.integrity.verifying_reader import OnBytes
from worker.storage.transfer.resumable_read import open_resumable


def verify(
    driver: FullDriver,
    bucket: str,
    key: str,
    expected: Digest | None,
    *,
    manifest: Manifest | None,
    on_bytes: OnBytes | None,
) -> Verification:
    """Read all bytes of an object and return the verdict; see `Store.verify_object`.

    Raises:
        StorageError: it cannot be read; see `verdict_of`.
    """
    if expected and manifest and len(manifest) >= MIN_PARALLEL_CHUNKS:
        return _verify_chunks(driver, driver.stat(bucket, key), expected, manifest, on_bytes)
    if expected and (found := read_small(driver, bucket, key, expected, on_bytes)):
        return Verification(Verdict.VERIFIED, expected.size, expected.sha256, found.version, stored_sha256=found.sha256)
    with open_resumable(driver, bucket, key, uncached=True) as reader:
        return judge(reader, expected or stored_digest(reader.stat), on_bytes)


def verdict_of(error: StorageError, driver: Driver, bucket: str, key: str, expected: Digest | None) -> Verification:
    """Return the verdict on an object that cannot be read; the size of an archived one is compared all the same."""
    detail = _said(driver, error)
    if isinstance(error, NotFound):
        return Verification(Verdict.MISSING, detail=detail)
    if not isinstance(error, Archived):
        return Verification(Verdict.UNREADABLE, detail=detail, error=error)
    try:
        stat = driver.stat(bucket, key)
    except NotFound as gone:
        return Verification(Verdict.MISSING, detail=_said(driver, gone))
    except StorageError:
        return Verification(Verdict.ARCHIVED, detail=detail, error=error)
    if expected is not None and stat.size != expected.size:
        return size_mismatch(stat, expected)
    return Verification(Verdict.ARCHIVED, version=stat.version, detail=detail, error=error)


def read_small(
    driver: FullDriver, bucket: str, key: str, expected: Digest, on_bytes: OnBytes | None = None
) -> WholeObject | None:
    """Read a small object in one request and return it if its bytes are right; otherwise return None.

    The caller then reads the object again with the provider's SDK before it counts as bad.
    """
    if not 0 < expected.size <= driver.capabilities.whole_reads:
        return None
    found = driver.read_whole(bucket, key, expected.size)
    if found is None:
        return None
    if on_bytes:
        on_bytes(expected.size)
    return found if hashlib.sha256(found.data).hexdigest() == expected.sha256 else None


def read_ahead(reads: SmallReads, wanted: Iterable[SmallRead]) -> Iterator[tuple[SmallRead, WholeObject | None]]:
    """Yield each small object with its bytes, or with None if it is missing or its bytes are wrong."""
    try:
        for each, read in reads.read(wanted):
            right = read is not None and hashlib.sha256(read.data).hexdigest() == each[2].sha256
            yield each, read if right else None
    finally:
        reads.close()


def _verify_chunks(
    driver: Driver, stat: ObjectStat, expected: Digest, manifest: Manifest, on_bytes: OnBytes | None
) -> Verification:
    if stat.size != expected.size:
        return size_mismatch(stat, expected)
    bad = bad_chunks(driver, stat, manifest, on_bytes, uncached=True)
    if not bad:
        stored = stat.sha256 or ""
        return Verification(Verdict.VERIFIED, stat.size, expected.sha256, stat.version, stored_sha256=stored)
    detail = f"bytes {bad[0].offset} to {bad[0].offset + bad[0].size} are not those that were recorded"
    if len(bad) > 1:
        detail += f"; bad chunks: {len(bad)} of {len(manifest)}"
    return Verification(Verdict.CORRUPT, stat.size, None, stat.version, detail, bad=bad)


def _said(driver: Driver, error: StorageError) -> str:
    """Return the message of an error without the name of the store, which is beside every verdict."""
    return error.message.removeprefix(f"{driver.name}: ")
