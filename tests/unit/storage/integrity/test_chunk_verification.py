"""A large object is read in chunks by several threads: each is verified, and the first bad one is named."""

import ctypes
import hashlib
import io
import mmap
import os
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.memory_driver import MemoryDriver
from tests.waiting import WITHIN
from worker.storage.driver import Capabilities, Digest, ObjectStat, WriteInfo
from worker.storage.errors import AccessDenied, Conflict, DigestMismatch, SizeMismatch, Unavailable
from worker.storage.integrity import chunk_verification
from worker.storage.integrity.chunk_verification import THREADS, first_bad_chunk
from worker.storage.integrity.manifest import CHUNK_SIZE, BadChunks, Manifest
from worker.storage.integrity.verdict import Verdict
from worker.storage.integrity.verifying_reader import VerifyingReader
from worker.storage.store import Store

PLACE = ("releases", "app.tgz")
CHUNK = 1000
COUNT = 40
SIZE = CHUNK * COUNT - 7
CONTENT = hashlib.sha512(b"seed").digest() * (SIZE // 64) + b"e" * (SIZE % 64)


class Faulty(MemoryDriver):
    """The memory store: `before` is called before each read of a range, and the range from `ending` has no bytes."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.before: Callable[[int], None] = lambda _offset: None
        self.ending: int | None = None
        self.local = False

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, local=self.local)

    def open(self, bucket, key, *, offset=0, length=None, uncached=False):
        reader = super().open(bucket, key, offset=offset, length=length)
        receive = reader.readinto

        def readinto(buffer: memoryview) -> int:
            self.before(offset)
            return 0 if offset == self.ending else receive(buffer)

        reader.readinto = readinto
        return reader


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_verification, "WINDOW", 4 * CHUNK)


@pytest.fixture
def driver() -> Faulty:
    return Faulty()


def put(driver: MemoryDriver, *rotten: int) -> tuple[ObjectStat, Manifest]:
    """Put the content with one wrong byte in each of these chunks; return its stat, and the manifest of the right."""
    data = bytearray(CONTENT)
    for number in rotten:
        data[number * CHUNK] ^= 1
    stat = driver.put(*PLACE, VerifyingReader(io.BytesIO(data)), WriteInfo())
    chunks = [CONTENT[at : at + CHUNK] for at in range(0, SIZE, CHUNK)]
    return stat, Manifest(SIZE, CHUNK, b"".join(hashlib.sha256(chunk).digest() for chunk in chunks))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "got", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def expected() -> Digest:
    return Digest(SIZE, hashlib.sha256(CONTENT).hexdigest())


def test_a_file_gets_all_bytes_in_their_places(driver: Faulty, file: int) -> None:
    """What several threads write is the object."""
    _, manifest = put(driver)
    told: list[int] = []
    Store(driver).download_object(*PLACE, file, expected(), manifest=manifest, on_bytes=told.append)
    assert os.pread(file, SIZE + 1, 0) == CONTENT
    assert sum(told) == SIZE


def test_a_download_with_a_bad_chunk_raises_and_names_it(driver: Faulty, file: int) -> None:
    """No download returns with a byte that is not the recorded one."""
    _, manifest = put(driver, 17)
    with pytest.raises(DigestMismatch, match=f"releases/app.tgz: bytes {17 * CHUNK} to {18 * CHUNK}"):
        Store(driver).download_object(*PLACE, file, expected(), manifest=manifest)


@pytest.mark.parametrize("data", [CONTENT[:-1], CONTENT + b"e"])
def test_an_object_of_another_size_is_neither_downloaded_nor_verified(driver: Faulty, file: int, data: bytes) -> None:
    """The size is told, and not that a read ended too early: no later read of the same object would help."""
    _, manifest = put(driver)
    driver.put(*PLACE, VerifyingReader(io.BytesIO(data)), WriteInfo())
    with pytest.raises(SizeMismatch):
        Store(driver).download_object(*PLACE, file, expected(), manifest=manifest)
    assert Store(driver).verify_object(*PLACE, expected(), manifest=manifest).verdict is Verdict.SIZE_MISMATCH


def test_a_chunk_that_ends_too_early_is_not_filled_up(driver: Faulty) -> None:
    """Also where the bytes that are missing would be zeros: the copy does not have them."""
    data = bytes(CHUNK)
    driver.put(*PLACE, VerifyingReader(io.BytesIO(data[:-1])), WriteInfo())
    chunk = Manifest(CHUNK, CHUNK, hashlib.sha256(data).digest()).chunk(0)
    with pytest.raises(Unavailable, match="ended 1 bytes too early"):
        Store(driver).read_chunk(*PLACE, chunk)


@pytest.mark.parametrize("bad", [(0,), (39,), (5, 6), (30, 11, 12)])
def test_the_first_of_several_bad_chunks_is_named(driver: Faulty, bad: tuple[int, ...]) -> None:
    """Whichever thread is the first to find one, the verdict is about the bad chunk that is nearest to the start."""
    stat, manifest = put(driver, *bad)
    for _ in range(20):
        found = first_bad_chunk(driver, stat, manifest)
        assert found
        assert found.number == min(bad)


@pytest.mark.parametrize("bad", [(0,), (30, 11, 12), range(COUNT)])
def test_a_verdict_has_all_bad_chunks(driver: Faulty, bad: tuple[int, ...]) -> None:
    """Also several of one window: a repair replaces these and no others."""
    _, manifest = put(driver, *bad)
    seen = Store(driver).verify_object(*PLACE, expected(), manifest=manifest)
    assert seen.verdict is Verdict.CORRUPT
    assert [chunk.number for chunk in seen.bad] == sorted(bad)
    assert seen.detail
    assert f"bytes {min(bad) * CHUNK} to" in seen.detail


def test_the_bad_chunks_of_the_largest_object_need_little_memory() -> None:
    """Each chunk of an object of 5 TiB is bad: that is a byte for each, beside the digests of the manifest."""
    count = 5 * 1024**4 // CHUNK_SIZE
    manifest = Manifest(count * CHUNK_SIZE, CHUNK_SIZE, bytes(32) * count)
    tracemalloc.start()
    try:
        bad = BadChunks(manifest)
        for number in range(count):
            bad.mark(number)
        assert (len(bad), bad[0].number, sum(1 for _ in bad)) == (count, 0, count)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_slow_thread_does_not_hide_an_earlier_bad_chunk(driver: Faulty) -> None:
    """A window that was begun before a bad chunk was found is read to its end."""
    stat, manifest = put(driver, 3, 4)
    later = threading.Event()

    def wait(offset: int) -> None:
        if offset == 0:
            assert later.wait(WITHIN)
        elif offset > 4 * CHUNK:
            later.set()  # the thread that has found chunk 4 to be bad does not come here
        else:
            threading.Timer(0.1, later.set).start()

    driver.before = wait
    found = first_bad_chunk(driver, stat, manifest)
    assert found
    assert found.number == 3


def test_an_error_of_one_thread_is_raised(driver: Faulty) -> None:
    """What a store raises in a thread is raised to the caller."""
    stat, manifest = put(driver)

    def denied(offset: int) -> None:
        if offset:
            raise AccessDenied("memory: not any more")

    driver.before = denied
    with pytest.raises(AccessDenied, match="not any more"):
        first_bad_chunk(driver, stat, manifest)


def test_an_overwritten_object_is_no_verdict(driver: Faulty) -> None:
    """Bytes of another version are neither verified nor corrupt."""
    stat, manifest = put(driver)
    put(driver)
    with pytest.raises(Conflict, match="overwritten while it was read"):
        first_bad_chunk(driver, stat, manifest)


def test_an_object_with_fewer_bytes_than_announced_is_unreadable(driver: Faulty) -> None:
    """A read that ends early says nothing about the bytes."""
    _, manifest = put(driver)
    driver.ending = 4 * CHUNK
    seen = Store(driver).verify_object(*PLACE, expected(), manifest=manifest)
    assert seen.verdict is Verdict.UNREADABLE


def test_a_caller_who_stops_ends_all_threads(driver: Faulty) -> None:
    """What `on_bytes` raises ends the read after the pieces that are being read, and no thread is left."""
    stat, manifest = put(driver)
    opened: list[int] = []
    driver.before = opened.append

    def cancel(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first_bad_chunk(driver, stat, manifest, cancel)
    assert len(opened) < COUNT
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("verify")]


def test_no_thread_runs_ahead_of_a_caller_who_takes_time(driver: Faulty) -> None:
    """A bandwidth limit, which the caller waits for, holds the threads too: only a few pieces are read meanwhile."""
    stat, manifest = put(driver)
    read: list[int] = []
    driver.before = read.append
    ahead: list[int] = []
    seen = 0

    def slow(count: int) -> None:
        nonlocal seen
        seen += 1
        threading.Event().wait(0.005)
        ahead.append(len(read) - seen)

    assert first_bad_chunk(driver, stat, manifest, slow) is None
    assert max(ahead) <= 6 * THREADS


def test_a_fork_does_not_have_the_buffers() -> None:
    """A disk writes to their pages. After a fork that shared them it could write to those of the child."""
    buffer = chunk_verification._buffers(THREADS)[-1]
    first = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    flags: list[str] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= first < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()
    assert "dc" in flags  # "do not copy area on fork"
    assert first % mmap.PAGESIZE == 0


def test_a_caller_is_told_of_several_pieces_at_once(driver: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """To be told of each piece of a fast disk costs the caller; of a slow read it is told piece by piece."""
    stat, manifest = put(driver)
    monkeypatch.setattr(chunk_verification, "BUFFER_SIZE", 100)
    told: list[int] = []
    assert first_bad_chunk(driver, stat, manifest, told.append) is None
    assert sum(told) == SIZE
    assert len(told) < SIZE // 100
    told.clear()
    monkeypatch.setattr(chunk_verification, "_POLL", 0.0)
    assert first_bad_chunk(driver, stat, manifest, told.append) is None
    assert sum(told) == SIZE
    assert max(told) <= 100


def test_each_thread_has_as_many_windows_of_a_file(driver: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of 64 MiB is one window of a cloud, whose requests cost something; all threads read such a file."""
    monkeypatch.setattr(chunk_verification, "WINDOW", COUNT * CHUNK)
    stat, manifest = put(driver)
    begun: set[int] = set()
    driver.before = begun.add
    assert first_bad_chunk(driver, stat, manifest) is None
    assert begun == {0}
    driver.local = True
    assert first_bad_chunk(driver, stat, manifest) is None
    assert begun == {number * COUNT // THREADS * CHUNK for number in range(THREADS)}
