"""The six verdicts, and reading that notices."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.bodies import digest_of, some_bytes
from tests.conformance.conftest import Room
from tests.conformance.targets import PART, Target
from worker.storage import Digest, Verdict
from worker.storage.errors import DigestMismatch, SizeMismatch

SIZES = (10, PART + 1)


class TestVerdicts:
    @pytest.mark.parametrize("size", [0, *SIZES])
    def test_verified(self, room: Room, size: int) -> None:
        """Good bytes are `verified`, by the recorded digest and by the one beside the object."""
        data = some_bytes(size)
        version = room.write("app", data).version
        for expected in (None, digest_of(data)):
            seen = room.store.verify_object(room.bucket, "app", expected)
            assert (seen.verdict, seen.sha256, seen.version) == (Verdict.VERIFIED, digest_of(data).sha256, version)

    def test_corrupt(self, room: Room) -> None:
        """Other bytes of the right size are `corrupt`, and the verdict names the digest that was found."""
        room.write("app", b"these bytes")
        seen = room.store.verify_object(room.bucket, "app", digest_of(b"other bytes"))
        assert (seen.verdict, seen.sha256) == (Verdict.CORRUPT, digest_of(b"these bytes").sha256)

    def test_missing(self, room: Room) -> None:
        """An object that is not there is `missing`."""
        assert room.store.verify_object(room.bucket, "app", digest_of(b"")).verdict is Verdict.MISSING

    def test_size_mismatch(self, room: Room) -> None:
        """An object of another size is `size_mismatch`, whatever its bytes."""
        room.write("app", b"these bytes")
        seen = room.store.verify_object(room.bucket, "app", Digest(3, digest_of(b"these bytes").sha256))
        assert (seen.verdict, seen.size) == (Verdict.SIZE_MISMATCH, 11)


class TestRot:
    """Where the objects are files, bytes are changed behind the store's back."""

    @pytest.mark.parametrize("size", SIZES)
    def test_flipped_byte(self, room: Room, target: Target, size: int) -> None:
        """One flipped byte is `corrupt` by the digest beside the object, and a full read raises at its end."""
        room.write("app", some_bytes(size))
        rot(target, room, "app", lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:])
        assert room.store.verify_object(room.bucket, "app").verdict is Verdict.CORRUPT
        with pytest.raises(DigestMismatch, match="app"):
            room.read("app")

    def test_truncated(self, room: Room, target: Target) -> None:
        """A truncated object is `size_mismatch` by the record, and never `verified` without it."""
        room.write("app", some_bytes(1_000))
        rot(target, room, "app", lambda data: data[:-1])
        recorded = digest_of(some_bytes(1_000))
        assert room.store.verify_object(room.bucket, "app", recorded).verdict is Verdict.SIZE_MISMATCH
        assert room.store.verify_object(room.bucket, "app").verdict is not Verdict.VERIFIED

    @pytest.mark.unless("claims")
    def test_truncated_read(self, room: Room, target: Target) -> None:
        """A full read of a truncated object raises at its end."""
        room.write("app", some_bytes(1_000))
        rot(target, room, "app", lambda data: data[:-1])
        with pytest.raises((DigestMismatch, SizeMismatch)):
            room.read("app")

    def test_quarantine_of_rot(self, room: Room, target: Target) -> None:
        """Bad bytes are put aside as they are, still contradicting the digest that came with them."""
        room.write("app", some_bytes(100))
        rot(target, room, "app", lambda data: b"!" + data[1:])
        place = room.store.quarantine_object(room.bucket, "app", "job-1")
        bucket, _, key = place.partition("/")
        try:
            assert room.store.verify_object(bucket, key, digest_of(some_bytes(100))).verdict is Verdict.CORRUPT
        finally:
            room.store.delete_object(bucket, key)

    def test_foreign_object(self, room: Room, target: Target) -> None:
        """An object that others put there is listed and read, and is `unverifiable`: nobody knows its digest."""
        path = path_of(target, room, "theirs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"put here by hand")
        assert room.keys() == ["theirs"]
        assert room.read("theirs") == b"put here by hand"
        assert room.store.verify_object(room.bucket, "theirs").verdict is Verdict.UNVERIFIABLE


def path_of(target: Target, room: Room, key: str) -> Path:
    if target.path_of is None:
        pytest.skip(f"{target.name} keeps no files that could be changed behind its back")
    return target.path_of(room.bucket, key)


def rot(target: Target, room: Room, key: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object's bytes as a failing disk does: the file keeps its times."""
    path = path_of(target, room, key)
    before = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
