"""A store replaces the bad chunks of an object by itself: the result is read in full before it is under the key."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NoReturn

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.conftest import BucketUnderTest
from tests.conformance.test_properties import PROPERTIES
from tests.waiting import WITHIN
from worker.storage import ObjectStat
from worker.storage.errors import PreconditionFailed
from worker.storage.integrity.manifest import Chunk, Manifest
from worker.storage.integrity.verifying_reader import OnBytes
from worker.storage.keys import STAGING_BUCKET

KEY = "folder/a large one"
CHUNK = 6 << 20
"""Bytes; S3 copies no smaller ranges than 5 MiB, and the blocks of Azure have 2 MiB here."""
SIZE = 3 * CHUNK + 1000
RIGHT = some_bytes(SIZE)
TAGGED = replace(PROPERTIES, tags="team=core")
MANIFEST = Manifest(
    SIZE, CHUNK, b"".join(hashlib.sha256(RIGHT[at : at + CHUNK]).digest() for at in range(0, SIZE, CHUNK))
)

pytestmark = pytest.mark.needs("patches")


def rotten(numbers: Iterable[int]) -> bytes:
    """Return the right bytes with a wrong one in each of these chunks."""
    data = bytearray(RIGHT)
    for number in numbers:
        data[number * CHUNK + 7] ^= 1
    return bytes(data)


def right_bytes(chunk: Chunk) -> bytes:
    return RIGHT[chunk.offset : chunk.offset + chunk.size]


def repair(
    bucket: BucketUnderTest,
    found: ObjectStat,
    *numbers: int,
    read: Callable[[Chunk], bytes] = right_bytes,
    between: Callable[[], None] = lambda: None,
    on_read_back: OnBytes | None = None,
) -> ObjectStat | None:
    bad = [MANIFEST.chunk(number) for number in numbers]
    return bucket.store.patch_object(
        found, MANIFEST, digest_of(RIGHT), bad, read,
        metadata={"origin": "here"}, properties=TAGGED, between=between, on_read_back=on_read_back,
    )  # fmt: skip


def assert_nothing_staged(bucket: BucketUnderTest) -> None:
    assert list(bucket.store.list_objects(STAGING_BUCKET)) == []


@pytest.mark.parametrize("bad", [(0, 3), (2,)], ids=["ends", "middle"])
def test_only_bad_chunks_are_asked_for(bucket: BucketUnderTest, bad: tuple[int, ...]) -> None:
    """The object is right after it, with what belongs beside its bytes, and nothing waits in the reserved bucket."""
    found, _ = bucket.store.write_object(bucket.name, KEY, source(rotten(bad)), properties=TAGGED)
    asked, tags = list[int](), bucket.store.tags(bucket.name, KEY)

    def read(chunk: Chunk) -> bytes:
        asked.append(chunk.number)
        return right_bytes(chunk)

    made = repair(bucket, found, *bad, read=read)
    assert made is not None
    assert asked == [*bad]
    assert bucket.read(KEY) == RIGHT
    stat = bucket.stat(KEY)
    assert (made.version, made.size) == (stat.version, SIZE)
    assert (stat.sha256, stat.metadata["origin"]) == (digest_of(RIGHT).sha256, "here")
    assert stat.properties == PROPERTIES
    assert bucket.store.tags(bucket.name, KEY) == tags  # none where the server forgets those of what comes in parts
    assert_nothing_staged(bucket)


@pytest.mark.unless("layout")
def test_bad_chunks_are_found_where_they_are_not_known(bucket: BucketUnderTest) -> None:
    """The object is read; where most of it is bad, or nothing, it is left as it is."""
    assert repair(bucket, bucket.write(KEY, rotten([3]))) is not None
    assert bucket.read(KEY) == RIGHT
    assert repair(bucket, bucket.stat(KEY)) is None
    most = rotten([0, 1, 2])
    assert repair(bucket, bucket.write(KEY, most)) is None
    assert bucket.read(KEY) == most


@pytest.mark.unless("layout")
def test_a_result_that_is_not_right_replaces_nothing(bucket: BucketUnderTest) -> None:
    """It was read in full before: the bad bytes stay under the key, and the result is removed."""
    bad = rotten([1, 2])
    assert repair(bucket, bucket.write(KEY, bad), 1) is None
    assert bucket.read(KEY) == bad
    assert_nothing_staged(bucket)


@pytest.mark.unless("layout")
def test_another_repair_changes_no_result_that_was_read(bucket: BucketUnderTest) -> None:
    """If two run at once, each puts the bytes under the key that it has read, and not those of the other one."""
    found, unread, staged, swapped = bucket.write(KEY, rotten([1])), SIZE, threading.Event(), threading.Event()

    def wait(_: int) -> None:
        staged.set()
        swapped.wait(WITHIN)

    def repair_wrongly() -> ObjectStat | None:
        return repair(bucket, found, 1, read=lambda chunk: bytes(chunk.size), on_read_back=wait)

    def begin_another(count: int) -> None:
        nonlocal unread
        unread -= count
        if not unread:
            other.append(pool.submit(repair_wrongly))
            assert staged.wait(WITHIN)

    other = list[Future[ObjectStat | None]]()
    with ThreadPoolExecutor(1) as pool:
        try:
            assert repair(bucket, found, 1, on_read_back=begin_another) is not None
        finally:
            swapped.set()
        assert bucket.read(KEY) == RIGHT
        assert other[0].result() is None
    assert_nothing_staged(bucket)


@pytest.mark.unless("layout")
def test_a_source_that_fails_leaves_the_object_and_nothing_else(bucket: BucketUnderTest) -> None:
    """Its error is raised as it is, and so is that of a job that has to stop."""
    bad = rotten([1])
    found = bucket.write(KEY, bad)

    def fail(*_: Chunk) -> NoReturn:
        raise LookupError("no such chunk")

    with pytest.raises(LookupError, match="no such chunk"):
        repair(bucket, found, 1, read=fail)
    with pytest.raises(LookupError, match="no such chunk"):
        repair(bucket, found, 1, between=fail)
    assert bucket.read(KEY) == bad
    assert_nothing_staged(bucket)


@pytest.mark.unless("layout")
@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_an_object_that_was_overwritten_stays(bucket: BucketUnderTest, late: bool) -> None:
    """Neither are its ranges mixed with those of the bad version, nor is it replaced."""
    found = bucket.write(KEY, rotten([1]))

    def read(chunk: Chunk) -> bytes:
        bucket.write(KEY, b"of another writer")
        return right_bytes(chunk)

    if not late:
        bucket.write(KEY, b"of another writer")
    with pytest.raises(PreconditionFailed):
        repair(bucket, found, 1, read=read if late else right_bytes)
    assert bucket.read(KEY) == b"of another writer"
    assert_nothing_staged(bucket)
