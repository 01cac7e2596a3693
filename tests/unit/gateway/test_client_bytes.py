"""The client reads artifacts from a gateway that really serves: verified, seekable, cached."""

import asyncio
import hashlib
import io
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.durable import synced
from tests.unit.gateway.conftest import Gateway
from tests.waiting import WITHIN
from worker.gateway.access import TokenVerb
from worker.storage.integrity.manifest import CHUNK_SIZE
from zot_artifact_client import (
    ArtifactChanged,
    ArtifactClient,
    ArtifactNotFound,
    AsyncArtifactClient,
    ChunkCache,
    NoGoodCopy,
    NotAllowed,
)
from zot_artifact_client.chunk_cache import Chunk
from zot_artifact_client.download import RemoteArtifact

PRIME = 65_521  # a length that fits no part: bytes of a wrong offset are other bytes
CONTENT = b"".join((os.urandom(PRIME) * (CHUNK_SIZE // PRIME + 1))[:CHUNK_SIZE] for _ in range(2)) + b"the end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[ArtifactClient]:
    with ArtifactClient(gateway=gateway.url, token=gateway.token()) as made:
        yield made


@pytest.fixture
def cached(gateway: Gateway, tmp_path: Path) -> Iterator[ArtifactClient]:
    with ArtifactClient(gateway=gateway.url, token=gateway.token(), cache=ChunkCache(tmp_path / "cache")) as made:
        yield made


def damage(gateway: Gateway, store: str, key: str, at: int) -> None:
    path = gateway.path(store, key)
    path.write_bytes(path.read_bytes()[:at] + b"\xff\x00\xff" + path.read_bytes()[at + 3 :])


def test_an_artifact_is_a_seekable_file(gateway: Gateway, client: ArtifactClient) -> None:
    """Reads, seeks and lines of an open artifact are those of a local file with the same bytes."""
    gateway.store("app.tgz", CONTENT)
    local, chance = io.BytesIO(CONTENT), random.Random(7)
    with client.open("releases", "app.tgz") as file:
        assert file.raw.shown.sha256 == SHA256
        for _ in range(60):
            place = chance.choice([0, CHUNK_SIZE - 5, 2 * CHUNK_SIZE - 1, chance.randrange(len(CONTENT)), len(CONTENT)])
            count = chance.choice([0, 1, 10, 70_000])
            assert file.seek(place) == local.seek(place)
            assert file.read(count) == local.read(count)
            assert file.tell() == local.tell()
        assert file.seek(-7, os.SEEK_END) == len(CONTENT) - 7
        assert file.read() == b"the end"
        file.seek(0)
        assert file.read() == CONTENT
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_a_file_with_a_long_name_is_downloaded(gateway: Gateway, client: ArtifactClient, tmp_path: Path) -> None:
    """A name of as many bytes as a file system takes is one to download to."""
    gateway.store("app.tgz", b"release")
    name = 85 * "名"
    client.get("releases", "app.tgz", tmp_path / name)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir() if path.is_file()] == [(name, b"release")]


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("content", [b"", b"x", CONTENT[:CHUNK_SIZE], CONTENT])
def test_an_artifact_of_any_size_is_downloaded(
    gateway: Gateway, client: ArtifactClient, tmp_path: Path, content: bytes, manifest: bool
) -> None:
    """The file has the bytes of the artifact, with and without chunks; it is durable, and nothing is left beside it."""
    gateway.store("app ü?#.tgz", content, manifest=manifest)
    target = tmp_path / "got" / "app.tgz"
    target.parent.mkdir()
    target.write_bytes(b"what was there before")
    seen: list[int] = []
    with synced() as disk:
        shown = client.get("releases", "app ü?#.tgz", target, on_progress=lambda told: seen.append(told.bytes_done))
    assert target.read_bytes() == content
    assert disk.keeps(target)
    assert shown.sha256 == hashlib.sha256(content).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == ["app.tgz"]
    assert seen == sorted(seen)
    assert not content or seen[-1] == len(content)
    with client.open("releases", "app ü?#.tgz") as file:
        assert file.read() == content


def test_a_read_changes_the_store_in_mid_object(gateway: Gateway, client: ArtifactClient, tmp_path: Path) -> None:
    """A copy that is rotten in one chunk, and another one in another, give a right download; two in one give none."""
    gateway.store("app.tgz", CONTENT)
    damage(gateway, "primary", "app.tgz", CHUNK_SIZE + 5)
    damage(gateway, "dr", "app.tgz", 5)
    client.get("releases", "app.tgz", tmp_path / "app.tgz")
    assert (tmp_path / "app.tgz").read_bytes() == CONTENT
    damage(gateway, "dr", "app.tgz", CHUNK_SIZE + 9)
    with pytest.raises(NoGoodCopy, match="releases/app.tgz"):
        client.get("releases", "app.tgz", tmp_path / "other.tgz")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["app.tgz"]
    with client.open("releases", "app.tgz") as file:
        assert file.read(100) == CONTENT[:100]
        file.seek(CHUNK_SIZE)
        with pytest.raises(NoGoodCopy):
            file.read(1)


def test_a_file_stays_one_version(gateway: Gateway, client: ArtifactClient) -> None:
    """An artifact that is replaced while it is read is never mixed with what replaces it."""
    gateway.store("app.tgz", CONTENT)
    with client.open("releases", "app.tgz") as file:
        assert file.read(10) == CONTENT[:10]
        gateway.store("app.tgz", CONTENT[::-1])
        file.seek(CHUNK_SIZE + 1)
        with pytest.raises(ArtifactChanged, match="releases/app.tgz"):
            file.read(10)


@pytest.mark.parametrize("manifest", [True, False])
def test_an_open_file_is_read_on_in_a_forked_process(gateway: Gateway, client: ArtifactClient, manifest: bool) -> None:
    """The chunk that was being read ahead at the fork, and the place in what was spooled, are not the child's."""
    gateway.store("app.tgz", CONTENT, manifest=manifest)
    with client.open("releases", "app.tgz") as file:
        assert file.read(CHUNK_SIZE + 10) == CONTENT[: CHUNK_SIZE + 10]  # the third chunk is being read ahead
        rest = CONTENT[CHUNK_SIZE + 10 :]
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child that hangs ends
            os._exit(0 if file.read() == rest else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert file.read() == rest


def test_what_may_not_be_read_is_told(gateway: Gateway, client: ArtifactClient) -> None:
    """An absent artifact, one of another bucket, a wrong token and one without the right are errors of their kinds."""
    gateway.store("app.tgz", b"x", bucket="secret")
    for bucket, key in (("releases", "absent"), ("secret", "app.tgz")):
        with pytest.raises(ArtifactNotFound):
            client.open(bucket, key)
    for given in ("wrong", gateway.token(verbs=(TokenVerb.VERIFY,), name="no-reader")):
        with ArtifactClient(gateway=gateway.url, token=given) as other, pytest.raises(NotAllowed) as refused:
            other.open("releases", "app.tgz")
        assert given not in str(refused.value)


def test_a_chunk_is_fetched_once_for_all_readers(gateway: Gateway, cached: ArtifactClient, tmp_path: Path) -> None:
    """What is in the cache is read without a store, by the digest of its bytes: also of another artifact."""
    gateway.store("app.tgz", CONTENT)
    assert cached.warm("releases", "app.tgz").sha256 == SHA256
    gateway.store("same.tgz", CONTENT)
    for store in ("primary", "dr"):
        gateway.path(store, "app.tgz").unlink()
        gateway.path(store, "same.tgz").unlink()
    cached.get("releases", "same.tgz", tmp_path / "same.tgz")
    assert (tmp_path / "same.tgz").read_bytes() == CONTENT
    with cached.open("releases", "app.tgz") as file:
        assert file.read() == CONTENT
    stat = ChunkCache(tmp_path / "cache").stat()
    assert (stat.chunks, stat.bytes) == (3, len(CONTENT))


def test_a_rotten_cache_is_repaired_from_the_gateway(gateway: Gateway, cached: ArtifactClient, tmp_path: Path) -> None:
    """Chunks that rot on the disk of the cache are fetched again, and no wrong byte is given out."""
    gateway.store("app.tgz", CONTENT)
    cached.warm("releases", "app.tgz")
    for path in (tmp_path / "cache" / "chunks").glob("*/*"):
        path.write_bytes(b"?" + path.read_bytes()[1:])
    with cached.open("releases", "app.tgz") as file:
        assert file.read() == CONTENT
    assert ChunkCache(tmp_path / "cache").verify() == 0


def test_an_asynchronous_service_reads_too(gateway: Gateway, tmp_path: Path) -> None:
    """`read` and `get` give verified bytes, and a download that is cancelled leaves no file."""
    gateway.store("app.tgz", CONTENT)
    seen: list[int] = []

    async def scene() -> None:
        url, given = "redis://127.0.0.1:1/0", gateway.token()
        async with AsyncArtifactClient(url, gateway=gateway.url, token=given) as client:
            assert await client.read("releases", "app.tgz", CHUNK_SIZE - 2, 4) == CONTENT[CHUNK_SIZE - 2 :][:4]
            assert await client.read("releases", "app.tgz", 2 * CHUNK_SIZE) == b"the end"
            path = tmp_path / "app.tgz"
            await client.get("releases", "app.tgz", path, on_progress=lambda told: seen.append(told.bytes_done))
            assert path.read_bytes() == CONTENT
            task = asyncio.create_task(client.get("releases", "app.tgz", tmp_path / "cancelled"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ArtifactNotFound):
                await client.read("releases", "absent")

    asyncio.run(scene())  # waits for the threads
    assert seen == sorted(seen)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["app.tgz"]


def test_a_cancelled_read_fetches_no_further_chunk(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of a read that is cancelled ends with its chunk, so that the rest is neither fetched nor kept."""
    gateway.store("app.tgz", CONTENT)
    fetched: list[int] = []
    begun, cancelled = threading.Event(), threading.Event()
    fetch = RemoteArtifact.chunk

    def chunk(remote: RemoteArtifact, number: int) -> Chunk:
        fetched.append(number)
        begun.set()
        assert cancelled.wait(WITHIN)
        return fetch(remote, number)

    async def scene() -> None:
        async with AsyncArtifactClient(gateway=gateway.url, token=gateway.token()) as client:
            task = asyncio.create_task(client.read("releases", "app.tgz"))
            assert await asyncio.to_thread(begun.wait, WITHIN)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled.set()

    monkeypatch.setattr(RemoteArtifact, "chunk", chunk)
    asyncio.run(scene())  # waits for the threads
    assert fetched == [0]
