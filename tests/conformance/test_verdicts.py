"""The six verdicts, and reads that detect wrong bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.bodies import digest_of, sizes, some_bytes
from tests.conformance.conftest import BucketUnderTest
from tests.conformance.targets import Target
from worker.storage import Digest, Verdict
from worker.storage.errors import DigestMismatch, SizeMismatch

pytestmark = pytest.mark.reads
SIZES = ((0, 10), (1, 1))


class TestVerdicts:
    @pytest.mark.unless("layout")
    @sizes((0, 0), *SIZES)
    def test_verified(self, bucket: BucketUnderTest, size: int) -> None:
        """Good bytes are `verified`, by the recorded digest and by the one beside the object."""
        data = some_bytes(size)
        version = bucket.write("app", data).version
        for expected in (None, digest_of(data)):
            seen = bucket.store.verify_object(bucket.name, "app", expected)
            assert (seen.verdict, seen.sha256, seen.version) == (Verdict.VERIFIED, digest_of(data).sha256, version)

    @pytest.mark.unless("layout")
    def test_corrupt(self, bucket: BucketUnderTest) -> None:
        """Other bytes of the right size are `corrupt`, and the verdict names the digest that was found."""
        bucket.write("app", b"these bytes")
        seen = bucket.store.verify_object(bucket.name, "app", digest_of(b"other bytes"))
        assert (seen.verdict, seen.sha256) == (Verdict.CORRUPT, digest_of(b"these bytes").sha256)

    def test_missing(self, bucket: BucketUnderTest) -> None:
        """An object that is not there is `missing`."""
        assert bucket.store.verify_object(bucket.name, "app", digest_of(b"")).verdict is Verdict.MISSING

    @pytest.mark.unless("layout")
    def test_size_mismatch(self, bucket: BucketUnderTest) -> None:
        """An object of another size is `size_mismatch`, whatever its bytes."""
        bucket.write("app", b"these bytes")
        seen = bucket.store.verify_object(bucket.name, "app", Digest(3, digest_of(b"these bytes").sha256))
        assert (seen.verdict, seen.size) == (Verdict.SIZE_MISMATCH, 11)


@pytest.mark.needs("files")
class TestRot:
    """Where the objects are files, bytes are changed behind the store's back."""

    @sizes(*SIZES)
    def test_flipped_byte(self, bucket: BucketUnderTest, target: Target, size: int) -> None:
        """One flipped byte is `corrupt` by the digest beside the object, and a full read raises at its end."""
        bucket.write("app", some_bytes(size))
        rot(target, bucket, "app", lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:])
        assert bucket.store.verify_object(bucket.name, "app").verdict is Verdict.CORRUPT
        with pytest.raises(DigestMismatch, match="app"):
            bucket.read("app")

    def test_truncated(self, bucket: BucketUnderTest, target: Target) -> None:
        """A truncated object is `size_mismatch` by the record, and never `verified` without it."""
        bucket.write("app", some_bytes(1_000))
        rot(target, bucket, "app", lambda data: data[:-1])
        recorded = digest_of(some_bytes(1_000))
        assert bucket.store.verify_object(bucket.name, "app", recorded).verdict is Verdict.SIZE_MISMATCH
        assert bucket.store.verify_object(bucket.name, "app").verdict is not Verdict.VERIFIED

    @pytest.mark.unless("claims")
    def test_truncated_read(self, bucket: BucketUnderTest, target: Target) -> None:
        """A full read of a truncated object raises at its end."""
        bucket.write("app", some_bytes(1_000))
        rot(target, bucket, "app", lambda data: data[:-1])
        with pytest.raises((DigestMismatch, SizeMismatch)):
            bucket.read("app")

    def test_quarantine_of_rot(self, bucket: BucketUnderTest, target: Target) -> None:
        """Bad bytes are put aside as they are, still contradicting the digest that came with them."""
        bucket.write("app", some_bytes(100))
        rot(target, bucket, "app", lambda data: b"!" + data[1:])
        place = bucket.store.quarantine_object(bucket.name, "app", "job-1")
        quarantine, _, key = place.partition("/")
        try:
            assert bucket.store.verify_object(quarantine, key, digest_of(some_bytes(100))).verdict is Verdict.CORRUPT
        finally:
            bucket.store.delete_object(quarantine, key)

    def test_foreign_object(self, bucket: BucketUnderTest, target: Target) -> None:
        """An object of another program is listed and read, and is `unverifiable`: its digest is unknown."""
        path = path_of(target, bucket, "theirs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"put here by hand")
        assert bucket.keys() == ["theirs"]
        assert bucket.read("theirs") == b"put here by hand"
        assert bucket.store.verify_object(bucket.name, "theirs").verdict is Verdict.UNVERIFIABLE


def path_of(target: Target, bucket: BucketUnderTest, key: str) -> Path:
    assert target.path_of is not None
    return target.path_of(bucket.name, key)


def rot(target: Target, bucket: BucketUnderTest, key: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object's bytes as a failing disk does: the file keeps its times."""
    path = path_of(target, bucket, key)
    before = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
