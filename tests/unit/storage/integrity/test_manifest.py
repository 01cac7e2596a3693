"""A chunk manifest proves every part of an object, and is made of the same bytes as the digest."""

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory_driver import MemoryDriver
from worker.storage.driver import Digest
from worker.storage.errors import DigestMismatch, SizeMismatch
from worker.storage.integrity.manifest import CHUNK_SIZE, Manifest, compute_digests
from worker.storage.integrity.verdict import Verdict
from worker.storage.store import Store

SIZE = 5 * CHUNK_SIZE + 3


@pytest.fixture(scope="module")
def content():
    return hashlib.sha256(b"seed").digest() * (SIZE // 32) + b"end"


@pytest.fixture(scope="module")
def taken(content):
    return compute_digests(io.BytesIO(content), size=len(content), what="the source")


@pytest.fixture
def store(content):
    opened = Store(MemoryDriver("memory"))
    opened.write_object("releases", "app.tgz", io.BytesIO(content))
    return opened


def rot(store, content, at):
    changed = bytearray(content)
    changed[at] ^= 1
    store.write_object("releases", "app.tgz", io.BytesIO(changed))


def test_the_digests_are_those_of_the_whole_and_of_each_chunk(content, taken):
    """Both are what SHA-256 says of the same bytes."""
    digest, manifest = taken
    assert digest == Digest(len(content), hashlib.sha256(content).hexdigest())
    assert len(manifest) == 6
    for chunk in manifest:
        assert chunk.sha256 == hashlib.sha256(content[chunk.offset : chunk.offset + chunk.size]).hexdigest()


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1])
def test_objects_at_the_edge_of_a_chunk_have_as_many_chunks_as_they_need(size):
    """An empty object has no chunk, and no chunk is empty."""
    _, manifest = compute_digests(io.BytesIO(bytes(size)), size=size, what="the source")
    assert sum(chunk.size for chunk in manifest) == size
    assert all(chunk.size for chunk in manifest)


def test_a_source_of_another_size_is_refused():
    """A source that shrinks or grows while it is hashed is not recorded."""
    for size in (2, 4):
        with pytest.raises(SizeMismatch, match=f"has 3 bytes, not the announced {size}"):
            compute_digests(io.BytesIO(b"abc"), size=size, what="the source")


def test_a_manifest_that_does_not_fit_its_object_is_none(taken):
    """Chunks that cannot be those of an object of this size prove nothing."""
    digest, manifest = taken
    assert Manifest.fits(digest, CHUNK_SIZE, manifest.digests) == manifest
    assert Manifest.fits(digest, CHUNK_SIZE, manifest.digests[:-32]) is None


@given(st.integers(0, SIZE + 5), st.integers(0, SIZE))
def test_the_chunks_that_cover_a_range_are_all_it_needs_and_no_more(offset, length):
    """Every byte of the range is in a chunk, and the first and the last chunk hold some of it."""
    manifest = Manifest(SIZE, CHUNK_SIZE, bytes(32 * 6))
    chunks = list(manifest.covering(offset, length))
    end = min(offset + length, SIZE)
    if offset >= end:
        assert not chunks
    else:
        assert chunks[0].offset <= offset < chunks[0].offset + chunks[0].size
        assert chunks[-1].offset < end <= chunks[-1].offset + chunks[-1].size


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 10), (CHUNK_SIZE - 5, 10), (CHUNK_SIZE, 2 * CHUNK_SIZE), (SIZE - 3, 99), (SIZE, 5)]
)
def test_a_range_with_a_manifest_is_proved(store, content, taken, offset, length):
    """The bytes of a range are right and said to be verified."""
    with store.read_object_range("releases", "app.tgz", offset, length, manifest=taken[1]) as reader:
        assert reader.verified
        assert b"".join(reader) == content[offset : offset + length]


def test_rot_is_found_in_its_own_ranges_and_in_no_other(store, content, taken):
    """A flipped bit fails the ranges of its chunk; the others are still good."""
    rot(store, content, 2 * CHUNK_SIZE + 7)
    with store.read_object_range("releases", "app.tgz", 0, CHUNK_SIZE, manifest=taken[1]) as good:
        assert b"".join(good) == content[:CHUNK_SIZE]
    with (
        pytest.raises(DigestMismatch, match=f"bytes {2 * CHUNK_SIZE} to {3 * CHUNK_SIZE}"),
        store.read_object_range("releases", "app.tgz", 3 * CHUNK_SIZE - 1, 1, manifest=taken[1]) as bad,
    ):
        bad.read()


def test_a_range_without_a_manifest_says_that_it_is_not_verified(store):
    """Without chunk digests nothing is claimed for a part."""
    with store.read_object_range("releases", "app.tgz", 0, 10) as reader:
        assert not reader.verified


def test_a_large_object_is_verified_by_its_chunks(store, content, taken):
    """All chunks right is verified; a wrong one is corrupt, and named by its offset."""
    digest, manifest = taken
    assert store.verify_object("releases", "app.tgz", digest, manifest=manifest).verdict == Verdict.VERIFIED
    rot(store, content, SIZE - 1)
    seen = store.verify_object("releases", "app.tgz", digest, manifest=manifest)
    assert seen.verdict == Verdict.CORRUPT
    assert f"bytes {5 * CHUNK_SIZE} to {SIZE}" in seen.detail


def test_every_byte_is_told_of_once(store, taken):
    """Progress adds up to the size, whichever way the object is verified."""
    digest, manifest = taken
    told: list[int] = []
    store.verify_object("releases", "app.tgz", digest, manifest=manifest, on_bytes=told.append)
    assert sum(told) == SIZE
