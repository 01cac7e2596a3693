"""The cache of chunks: right bytes whatever the disk does, bounded, and one fetch per chunk."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.waiting import WITHIN, until
from zot_artifact_client import ChunkCache, ClientError

MIB = 1 << 20


def chunk(number: int, size: int = 1000) -> tuple[str, bytes]:
    body = hashlib.sha256(str(number).encode()).digest() * (size // 32) + b"." * (size % 32)
    return hashlib.sha256(body).hexdigest(), body


def unfetchable() -> NoReturn:
    pytest.fail("the chunk was fetched although it is in the cache")


def keep(cache: ChunkCache, *numbers: int, size: int = 1000) -> None:
    for number in numbers:
        sha256, body = chunk(number, size)
        assert cache.chunk(sha256, size, lambda body=body: body) == body


def kept(cache: ChunkCache, number: int, size: int = 1000) -> bool:
    return cache._path(chunk(number, size)[0]).exists()


@pytest.fixture
def cache(tmp_path: Path) -> ChunkCache:
    return ChunkCache(tmp_path / "cache", max_size=100_000, min_free=0)


def test_a_chunk_is_fetched_once(cache: ChunkCache, tmp_path: Path) -> None:
    """The second read of a chunk, also by another cache on the same directory, is one of the disk."""
    keep(cache, 1)
    sha256, body = chunk(1)
    assert cache.chunk(sha256, len(body), unfetchable) == body
    other = ChunkCache(tmp_path / "cache", max_size=100_000, min_free=0)
    assert other.chunk(sha256, len(body), unfetchable) == body
    assert (cache.stat().chunks, cache.stat().bytes, cache.stat().hits, cache.stat().misses) == (1, 1000, 1, 1)


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "directory", "link", "pipe"])
def test_a_damaged_chunk_is_fetched_again(cache: ChunkCache, damage: str, tmp_path: Path) -> None:
    """However a file of the cache is damaged, the reader gets the right bytes, and so does the next one."""
    keep(cache, 1)
    sha256, body = chunk(1)
    path = cache._path(sha256)
    if damage == "flip":
        path.write_bytes(b"?" + body[1:])
    elif damage in {"cut", "empty"}:
        path.write_bytes(body[:500] if damage == "cut" else b"")
    elif damage == "grow":
        path.write_bytes(body + b"more")
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
        if damage == "directory":
            path.mkdir()
        else:
            (tmp_path / "elsewhere").write_bytes(body)
            path.symlink_to(tmp_path / "elsewhere")
    assert cache.chunk(sha256, len(body), lambda: body) == body
    assert cache.chunk(sha256, len(body), lambda: body) == body


def test_a_name_that_is_no_digest_reaches_no_file(cache: ChunkCache, tmp_path: Path) -> None:
    """A digest that a gateway made up as a path removes and reads no file outside the cache."""
    (tmp_path / "mine").write_bytes(b"mine")
    for name in ("../../../mine", str(tmp_path / "mine")):
        assert cache.chunk(name, 4, lambda: b"body") == b"body"
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert cache.stat().chunks == 0


def test_rot_is_found_by_a_verification(cache: ChunkCache) -> None:
    """`verify` reads all, removes what is wrong and counts it; `drop` removes all."""
    keep(cache, 1, 2, 3)
    cache._path(chunk(2)[0]).write_bytes(b"?" * 1000)
    assert cache.verify() == 1
    assert [kept(cache, number) for number in (1, 2, 3)] == [True, False, True]
    cache.drop()
    assert cache.stat().chunks == 0
    keep(cache, *range(50))
    assert cache.stat().chunks == 50


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """The cache never holds more than its size, and keeps what was used last."""
    cache = ChunkCache(tmp_path / "cache", max_size=10_000, min_free=0)
    for number in range(10):
        keep(cache, number)
        os.utime(cache._path(chunk(number)[0]), (number, number))
    sha256, body = chunk(0)
    cache.chunk(sha256, len(body), unfetchable)  # the oldest one is used again
    keep(cache, 10)
    assert kept(cache, 0)
    assert kept(cache, 10)
    assert not kept(cache, 1)
    assert cache.stat().bytes <= 10_000
    keep(cache, 99, size=20_000)
    assert not kept(cache, 99, size=20_000)  # larger than the cache: read, and not kept


def test_the_disk_keeps_what_it_is_to_keep_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks go, and none is kept, while the disk has less free than it should."""
    cache = ChunkCache(tmp_path / "cache", max_size=100_000, min_free=1000)
    keep(cache, 1, 2)
    monkeypatch.setattr(ChunkCache, "_free", lambda self: 1500 - self.stat().bytes + 2000)
    keep(cache, 3)
    assert cache.stat().chunks == 2
    assert kept(cache, 3)
    monkeypatch.setattr(ChunkCache, "_free", lambda self: 500)
    keep(cache, 4)
    assert cache.stat().chunks == 0


def test_a_disk_that_fails_fails_no_read(cache: ChunkCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a removed directory and one that refuses writes leave the reader with the right bytes."""
    real_open = os.open

    def full(path: Any, flags: int, *more: Any, **fields: Any) -> int:
        if flags & os.O_CREAT and "new" in str(path):
            raise OSError(28, "No space left on device")
        return real_open(path, flags, *more, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        keep(cache, 1)
    assert not kept(cache, 1)
    shutil.rmtree(tmp_path / "cache")
    keep(cache, 2)
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match="cannot be used"):
        ChunkCache(tmp_path / "file" / "cache")


def test_what_the_fetch_raises_is_raised(cache: ChunkCache) -> None:
    """An error of the fetch reaches the reader, keeps nothing and blocks no later reader."""
    sha256, body = chunk(1)

    def fails() -> bytes:
        raise ClientError("no gateway")

    for _ in range(2):
        with pytest.raises(ClientError, match="no gateway"):
            cache.chunk(sha256, len(body), fails)
    keep(cache, 1)


def test_many_threads_fetch_a_chunk_once(cache: ChunkCache) -> None:
    """Of all threads that ask for a chunk at the same moment, one fetches it."""
    sha256, body = chunk(1)
    fetched: list[int] = []
    all_ask = threading.Barrier(16)

    def fetch() -> bytes:
        fetched.append(1)
        time.sleep(0.1)  # the others ask meanwhile, and nothing tells that they wait
        return body

    def ask() -> None:
        all_ask.wait(WITHIN)
        assert cache.chunk(sha256, len(body), fetch) == body

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert len(fetched) == 1


def ask_in_process(root: Path, log: Path, number: int, hold: float) -> None:
    cache = ChunkCache(root, max_size=100_000, min_free=0)
    sha256, body = chunk(number)

    def fetch() -> bytes:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(hold)  # the others ask meanwhile, or this process is killed
        return body

    assert cache.chunk(sha256, len(body), fetch) == body


@pytest.fixture
def processes() -> Iterator[Any]:
    yield (context := multiprocessing.get_context("spawn"))  # a fork of a process with threads may hang
    for child in context.active_children():
        child.kill()


def test_many_processes_fetch_a_chunk_once_and_a_killed_one_stops_none(tmp_path: Path, processes: Any) -> None:
    """Of several processes one fetches a chunk; if it is killed while it does, another one fetches it."""
    root, log = tmp_path / "cache", tmp_path / "log"
    ChunkCache(root)
    first = processes.Process(target=ask_in_process, args=(root, log, 1, 600))
    first.start()
    until(log.exists)
    others = [processes.Process(target=ask_in_process, args=(root, log, 1, 0.1)) for _ in range(4)]
    for other in others:
        other.start()
    os.kill(first.pid, signal.SIGKILL)
    for other in others:
        other.join(WITHIN)
    assert [other.exitcode for other in others] == [0] * 4
    assert len(log.read_text().split()) == 2


def write_for_ever(root: Path) -> None:
    cache = ChunkCache(root, max_size=60_000, min_free=0)
    for number in count():
        keep(cache, number % 200)


def test_a_writer_that_was_killed_leaves_no_wrong_chunk(tmp_path: Path, processes: Any) -> None:
    """Processes that are killed while they write leave right chunks only, and their unfinished files are removed."""
    root = tmp_path / "cache"
    cache = ChunkCache(root, max_size=60_000, min_free=0)
    for round_ in range(5):
        child = processes.Process(target=write_for_ever, args=(root,))
        child.start()
        until(lambda seen=round_: cache.stat().chunks > 5 + seen)
        os.kill(child.pid, signal.SIGKILL)
        child.join(WITHIN)
    assert cache.verify() == 0
    stale = root / "new" / "killed"
    stale.write_bytes(b"half")
    os.utime(stale, (1, 1))
    keep(cache, *range(500, 580))
    assert not stale.exists()
    assert cache.stat().bytes <= 60_000


def test_a_process_that_was_forked_keeps_no_lock(cache: ChunkCache) -> None:
    """A fork in the middle of a fetch, as of a server that loads its program first, holds up no later fetch."""
    sha256, body = chunk(1)
    fetching, forked, done = threading.Event(), threading.Event(), threading.Event()

    def fetch() -> bytes:
        fetching.set()
        forked.wait(WITHIN)
        return body

    first = threading.Thread(target=cache.chunk, args=(sha256, len(body), fetch))
    first.start()
    fetching.wait(WITHIN)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        forked.set()
        first.join()
        cache.drop()
        again = threading.Thread(target=lambda: (keep(cache, 1), done.set()), daemon=True)
        again.start()
        assert done.wait(WITHIN)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
