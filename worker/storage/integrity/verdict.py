"""Determine the verdict on a copy from one full read."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from worker.storage.driver import Digest, ObjectReader, ObjectStat
from worker.storage.errors import StorageError
from worker.storage.integrity.manifest import Chunk
from worker.storage.integrity.verifying_reader import OnBytes, VerifyingReader, drain


class Verdict(StrEnum):
    """The result of reading one copy. Only `verified` means that the copy is good."""

    VERIFIED = "verified"
    """All bytes were read and match the recorded digest."""
    CORRUPT = "corrupt"
    """All bytes were read and have another SHA-256."""
    MISSING = "missing"
    """The store says that there is no such object."""
    SIZE_MISMATCH = "size_mismatch"
    """The object has another size than recorded."""
    UNREADABLE = "unreadable"
    """The object could not be read to its end: this says nothing about its bytes."""
    ARCHIVED = "archived"
    """The object is in an archive class and not readable now: this says nothing about its bytes."""
    UNVERIFIABLE = "unverifiable"
    """No digest is recorded to compare the bytes with."""


class Verification(NamedTuple):
    """The outcome of one full read: the verdict and what it is based on."""

    verdict: Verdict
    size: int | None = None
    sha256: str | None = None
    version: str | None = None
    detail: str | None = None
    stored_sha256: str | None = None
    """The SHA-256 that the store keeps beside verified bytes, empty if it keeps none; None where that is unknown."""
    error: StorageError | None = None
    """Why an `unreadable` object could not be read."""
    bad: Sequence[Chunk] = ()
    """All chunks that are wrong, in their order, where a `corrupt` object was compared chunk by chunk."""


def stored_digest(stat: ObjectStat) -> Digest | None:
    """Return the digest that the store keeps with an object, if there is one."""
    return Digest(stat.size, stat.sha256) if stat.sha256 else None


def judge(reader: ObjectReader, expected: Digest | None, on_bytes: OnBytes | None) -> Verification:
    """Read an object to its end and return the verdict; what the reader raises passes through."""
    stat = reader.stat
    if expected is None:
        return Verification(Verdict.UNVERIFIABLE, size=stat.size, version=stat.version, detail="no digest is recorded")
    if stat.size != expected.size:
        return size_mismatch(stat, expected)
    body = VerifyingReader(reader, on_bytes=on_bytes)
    drain(body)
    found = body.digest
    if found == expected:
        stored = stat.sha256 or ""
        return Verification(Verdict.VERIFIED, found.size, found.sha256, stat.version, stored_sha256=stored)
    verdict = Verdict.SIZE_MISMATCH if found.size != expected.size else Verdict.CORRUPT
    detail = f"the bytes have SHA-256 {found.sha256}, not the recorded {expected.sha256}"
    return Verification(verdict, found.size, found.sha256, stat.version, detail)


def size_mismatch(stat: ObjectStat, expected: Digest) -> Verification:
    """Return the verdict on an object whose size is not the recorded one, without reading it."""
    detail = f"the object has {stat.size} bytes, not the recorded {expected.size}"
    return Verification(Verdict.SIZE_MISMATCH, stat.size, None, stat.version, detail)
