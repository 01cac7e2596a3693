"""The client reads artifacts from a gateway that really serves: verified, seekable, cached; and sends jobs over it."""

import asyncio
import fcntl
import hashlib
import io
import json
import os
import random
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.durable import synced
from tests.servers.process import free_port
from tests.servers.proxy import Fault, FaultyProxy, Request, Reset
from tests.unit.gateway.conftest import Gateway
from tests.waiting import WITHIN
from worker.gateway.access import TokenVerb
from worker.storage.integrity.manifest import CHUNK_SIZE
from zot_artifact_client import (
    ArtifactChanged,
    ArtifactClient,
    ArtifactNotFound,
    AsyncArtifactClient,
    BrokerUnavailable,
    ChunkCache,
    ClientError,
    DamagedBytes,
    GatewayUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    InvalidUrl,
    JobState,
    NoGoodCopy,
    NotAllowed,
    Progress,
    UnknownJob,
    file_upload,
    signed_parts,
)
from zot_artifact_client.chunk_cache import Chunk
from zot_artifact_client.contract import VerifyRequest
from zot_artifact_client.download import RemoteArtifact

PRIME = 65_521  # a length that fits no part: bytes of a wrong offset are other bytes
CONTENT = b"".join((os.urandom(PRIME) * (CHUNK_SIZE // PRIME + 1))[:CHUNK_SIZE] for _ in range(2)) + b"the end"
MIB = 1 << 20
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


# A gateway that sends wrong bytes, breaks off and is busy.


@contextmanager
def answering(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            handle(self)

        do_POST = do_DELETE = do_HEAD = do_PATCH = do_PUT = do_GET  # noqa: N815 - the library's names

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(to: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    to.send_response(status)
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), value)
    to.send_header("Content-Length", str(len(body) if length is None else length))
    to.end_headers()
    to.wfile.write(body)
    if length is not None:
        to.close_connection = True


BODY = b"0123456789" * 100
SHOWN = {
    "bucket": "b", "key": "k", "version": 1, "size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest(),
    "created_at": "2026-11-26T09:00:00Z",
    "manifest": {"chunk_size": 600, "total": 2, "first": 0, "sha256": [
        hashlib.sha256(BODY[:600]).hexdigest(), hashlib.sha256(BODY[600:]).hexdigest()]},
}  # fmt: skip


class Faulty:
    """Answers as a gateway does, but for the first `times` requests for bytes, which go wrong in one way."""

    def __init__(self, fault: str, times: int) -> None:
        self.fault = fault
        self.left = times
        self.asked = 0

    def __call__(self, to: BaseHTTPRequestHandler) -> None:
        if to.path.startswith("/v1/artifacts/"):
            answer(to, 200, json.dumps(SHOWN).encode())
            return
        self.asked += 1
        first, last = (int(text) for text in to.headers["Range"].removeprefix("bytes=").split("-"))
        assert to.headers["If-Match"] == f'"{SHOWN["sha256"]}"'
        body = BODY[first : last + 1]
        self.left -= 1
        if self.left < 0:
            answer(to, 206, body)
        elif self.fault == "flip":
            answer(to, 206, b"?" + body[1:])
        elif self.fault == "cut":
            answer(to, 206, body[:100], len(body))
        elif self.fault == "hang up":
            to.close_connection = True
        elif self.fault == "busy":
            answer(to, 503, b'{"type": "urn:zot-artifacts:Unavailable", "detail": "store dr"}', Retry_After="0")
        else:
            answer(to, 200, BODY)


def test_a_request_that_was_one_too_many_is_sent_again(tmp_path: Path) -> None:
    """The gateway has done nothing about it, so that a job without an idempotency key is not sent twice.

    Nor is it sent on a kept connection that the gateway has closed meanwhile, which would be its only try.
    """
    asked: list[str] = []

    def busy(to: BaseHTTPRequestHandler) -> None:
        if to.command == "GET":
            answer(to, 200, json.dumps(SHOWN).encode())
            to.close_connection = True
            return
        to.rfile.read(int(to.headers["Content-Length"]))
        asked.append(to.path)
        if len(asked) <= 2:
            status, told = (429, b'{"type": "urn:zot-artifacts:TooManyRequests", "detail": "send fewer"}')
        else:
            status, told = (503, b'{"type": "urn:zot-artifacts:BrokerUnavailable", "detail": "no broker"}')
        answer(to, status, told, Retry_After="0")

    refused = pytest.raises(BrokerUnavailable)  # which may have sent it
    with answering(busy) as url, ArtifactClient(gateway=url, token="t") as client, refused:
        client.show("b", "k")
        [kept] = client._bytes.gateway._idle.get()  # type: ignore[union-attr]
        assert select.select([kept.sock], [], [], WITHIN)[0]  # the end of the connection is here
        client.verify("b", "k")
    assert asked == ["/v1/jobs/verify"] * 3


@pytest.mark.parametrize("fault", ["flip", "cut", "hang up", "busy"])
def test_a_fault_on_the_way_is_tried_again(fault: str, tmp_path: Path) -> None:
    """Bytes that arrive damaged or not at all are fetched again, and the file is right."""
    with answering(faulty := Faulty(fault, 2)) as url, ArtifactClient(gateway=url, token="t") as client:
        client.get("b", "k", tmp_path / "k")
        assert (tmp_path / "k").read_bytes() == BODY
        assert faulty.asked == 4


def test_an_interim_answer_of_the_gateway_is_not_the_answer(tmp_path: Path) -> None:
    """The client waits for the answer behind 103 (Early Hints) of a proxy, whether it is bytes or an error."""
    faulty = Faulty("busy", 1)

    def handle(to: BaseHTTPRequestHandler) -> None:
        to.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")
        faulty(to)

    with answering(handle) as url, ArtifactClient(gateway=url, token="t") as client:
        client.get("b", "k", tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == BODY
    assert faulty.asked == 3


@pytest.mark.parametrize(
    "fault, error",
    [("flip", DamagedBytes), ("cut", GatewayUnavailable), ("busy", GatewayUnavailable), ("whole", ClientError)],
)
def test_a_fault_that_stays_is_an_error(
    fault: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What never arrives right is an error of its kind, and no byte and no file of it is given out."""
    monkeypatch.setattr("zot_artifact_client.gateway._FIRST_PAUSE", 0.01)
    with answering(Faulty(fault, 1000)) as url, ArtifactClient(gateway=url, token="t") as client:
        with pytest.raises(error):
            client.get("b", "k", tmp_path / "k")
        with client.open("b", "k") as file, pytest.raises(error):
            file.read(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body, length, error",
    [
        (b"?" + BODY[1:], None, DamagedBytes),
        (BODY[:-1], None, DamagedBytes),
        (BODY + b"!", None, DamagedBytes),
        (BODY[:-1], len(BODY), GatewayUnavailable),
    ],
    ids=["flip", "shorter", "longer", "cut"],
)
def test_an_artifact_without_chunks_is_compared_as_a_whole(
    body: bytes, length: int | None, error: type[Exception], tmp_path: Path
) -> None:
    """Bytes that arrive damaged are an error before one of them is given out, also where no chunks are recorded."""
    shown = json.dumps({**SHOWN, "manifest": None}).encode()

    def handle(to: BaseHTTPRequestHandler) -> None:
        if to.path.startswith("/v1/artifacts/"):
            answer(to, 200, shown)
        else:
            answer(to, 200, body, length)

    with answering(handle) as url, ArtifactClient(gateway=url, token="t") as client:
        with pytest.raises(error):
            client.get("b", "k", tmp_path / "k")
        with client.open("b", "k") as file, pytest.raises(error):
            file.read(1)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_takes_no_part_ends_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked a few times; the error is its answer without the URL, a secret, and no byte counts as sent."""
    monkeypatch.setattr(signed_parts, "_FIRST_PAUSE", 0.01)
    (file := tmp_path / "k").write_bytes(BODY)
    rounds, told = list[str](), list[Progress]()

    def handle(to: BaseHTTPRequestHandler) -> None:
        to.rfile.read(int(to.headers["Content-Length"] or 0))
        if to.command == "PUT":
            answer(to, 403, b"<Error/>")
        elif to.path.endswith("/parts"):
            rounds.append(to.path)
            part = {"offset": 0, "size": len(BODY), "url": f"http://{to.headers['Host']}/?sig=secret", "headers": {}}
            missing = {"done": 0, "size": len(BODY), "complete": len(rounds) == 20, "parts": [part]}
            answer(to, 200, json.dumps(missing).encode())
        else:
            answer(to, 201, b'{"upload": "u", "offset": 0, "direct": true}')

    refused = pytest.raises(GatewayUnavailable, match="^the staging store 127.0.0.1 answers 403$")
    with answering(handle) as url, ArtifactClient(gateway=url, token="t") as client, refused:
        client.upload_file(file, "b", "k", on_progress=told.append)
    assert told[-1].bytes_done == 0
    assert len(rounds) < 20


def test_an_upload_goes_on_where_the_gateway_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived by an earlier request is not sent again, and no more is sent of a file that became shorter."""
    monkeypatch.setattr(file_upload, "_FIRST_PAUSE", 0.01)
    (file := tmp_path / "k").write_bytes(BODY)
    sent = list[str]()

    def handle(to: BaseHTTPRequestHandler) -> None:
        to.rfile.read(int(to.headers["Content-Length"] or 0))
        if to.command == "PATCH":
            sent.append(to.headers["Upload-Offset"])
            answer(to, 409, b'{"type": "urn:zot-artifacts:WrongOffset", "detail": "it has all of them"}')
        elif to.command == "HEAD":
            answer(to, 200, b"", Upload_Offset=str(len(BODY)))
        else:
            answer(to, 201, b'{"upload": "u", "offset": 0}')

    def cut(told: Progress) -> None:
        if told.step == "hashing":
            os.truncate(file, 10)

    with answering(handle) as url, ArtifactClient(gateway=url, token="t") as client:
        client.upload_file(file, "b", "k")
        assert sent == ["0"]
        with pytest.raises(ClientError, match="has become shorter"):
            client.upload_file(file, "b", "k", on_progress=cut)


NO_ANSWERS = {
    "not UTF-8": b'{"job": "\xff"}', "HTML": b"<html></html>", "cut": json.dumps(SHOWN).encode()[:-9],
    "a list": b"[]", "a text": b'"ok"', "of another program": b'{"status": "ok"}', "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("body", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_what_no_gateway_answers_is_told(body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever arrives with 200, and whichever client asks, it is one error, which names the URL."""
    monkeypatch.setattr("zot_artifact_client.gateway._TRIES", 1)
    (tmp_path / "file").write_bytes(BODY)

    def handle(to: BaseHTTPRequestHandler) -> None:
        to.rfile.read(int(to.headers["Content-Length"] or 0))
        answer(to, 200, body)

    with answering(handle) as url, ArtifactClient(gateway=url, token="t") as client:
        told = f"gateway {url} answers what no gateway does"
        calls: list[Callable[[], Any]] = [
            partial(client.show, "b", "k"), partial(client.list, "b"), partial(client.status, "j"),
            partial(client.verify, "b", "k"), partial(client.job("j").wait, WITHIN), client.job("j").cancel,
            partial(client.open, "b", "k"), partial(client.upload_file, tmp_path / "file", "b", "k"),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(GatewayUnavailable, match=told):
                call()

        async def scene() -> None:
            async with AsyncArtifactClient(gateway=url, token="t") as client:
                for awaited in (
                    client.show("b", "k"), client.status("j"), client.verify("b", "k"), client.job("j").wait(WITHIN),
                    client.read("b", "k"), client.upload_file(tmp_path / "file", "b", "k"),
                ):  # fmt: skip
                    with pytest.raises(GatewayUnavailable, match=told):
                        await awaited

        asyncio.run(scene())


def test_a_damaged_answer_is_asked_for_again() -> None:
    """The answer after one that was damaged on the way is the one that counts; a status alone is an error."""
    huge = json.dumps({"type": "urn:zot-artifacts:InvalidRequest", "detail": "no" * 50_000}).encode()
    errors = {401: NotAllowed, 403: NotAllowed, 412: ArtifactChanged, 500: GatewayUnavailable}
    answers = [(200, b"\xff"), (200, json.dumps(SHOWN).encode()), *((status, huge) for status in errors)]
    with answering(lambda to: answer(to, *answers.pop(0))) as url, ArtifactClient(gateway=url, token="t") as client:
        assert client.show("b", "k").sha256 == SHOWN["sha256"]
        for error in errors.values():
            with pytest.raises(error):
                client.show("b", "k")


@pytest.mark.parametrize("said", ["-7", "x", None, "1001"])
def test_an_offset_that_is_none_is_told(said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload never goes on from a place that cannot be."""
    monkeypatch.setattr("zot_artifact_client.gateway._TRIES", 1)
    monkeypatch.setattr("zot_artifact_client.file_upload._FIRST_PAUSE", 0.01)
    (tmp_path / "file").write_bytes(BODY)

    def handle(to: BaseHTTPRequestHandler) -> None:
        to.rfile.read(int(to.headers["Content-Length"] or 0))
        if to.command == "POST":
            answer(to, 201, b'{"upload": "u", "offset": 0}')
        elif to.command == "PATCH":
            answer(to, 503, b"")
        else:
            answer(to, 200, b"", **({} if said is None else {"Upload_Offset": said}))

    told = "says that it has 1001 of 1000 bytes" if said == "1001" else "answers what no gateway does"
    with (
        answering(handle) as url,
        ArtifactClient(gateway=url, token="t") as client,
        pytest.raises(GatewayUnavailable, match=told),
    ):
        client.upload_file(tmp_path / "file", "b", "k")


QUARTERS = [hashlib.sha256(BODY[at : at + 250]).hexdigest() for at in range(0, 1000, 250)]
IN_QUARTERS = {"chunk_size": 250, "total": 4, "first": 0, "sha256": QUARTERS[:2]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": 250},
        {"manifest": {**IN_QUARTERS, "chunk_size": 0}},
        {"manifest": {**IN_QUARTERS, "sha256": []}},
        {"manifest": IN_QUARTERS},
    ],
)
def test_an_answer_that_does_not_fit_together_gives_no_bytes(wrong: dict[str, Any], tmp_path: Path) -> None:
    """A size, and digests, that were damaged on the way make no shorter file."""
    shown = {**SHOWN, "manifest": IN_QUARTERS, **wrong}

    def handle(to: BaseHTTPRequestHandler) -> None:
        if "chunks_from=2" in to.path:  # where the other digests are
            answer(to, 200, json.dumps({**shown, "manifest": {**IN_QUARTERS, "first": 2, "sha256": []}}).encode())
        elif to.path.startswith("/v1/artifacts/"):
            answer(to, 200, json.dumps(shown).encode())
        else:
            first, last = (int(text) for text in to.headers["Range"].removeprefix("bytes=").split("-"))
            answer(to, 206, BODY[first : last + 1])

    with answering(handle) as url, ArtifactClient(gateway=url, token="t") as client, pytest.raises(DamagedBytes):
        client.get("b", "k", tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_the_result_of_another_job_is_told() -> None:
    """A status whose result is not of its kind is an error, as it is where the result is waited for."""
    told = {"job": "j", "kind": "verify", "state": "succeeded", "attempts": 1, "result": {"verb": "batch"}}
    with (
        answering(lambda to: answer(to, 200, json.dumps(told).encode())) as url,
        ArtifactClient(gateway=url, token="t") as client,
        pytest.raises(ClientError, match="the result of job j is not that of artifact.verify"),
    ):
        client.status("j")


def test_a_gateway_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that refuses, and one that says nothing, are GatewayUnavailable, which names the URL and no token."""
    monkeypatch.setattr("zot_artifact_client.gateway._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("zot_artifact_client.gateway.Gateway.__init__.__kwdefaults__", {"timeout": 0.2})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            url = f"http://127.0.0.1:{port}"
            with ArtifactClient(gateway=url, token="hunter2") as client, pytest.raises(GatewayUnavailable) as caught:
                client.open("b", "k")
            assert url in str(caught.value)
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["gateway:8484", "ftp://h", "https://user:hunter2@h", "https://h?token=hunter2"])
def test_a_wrong_url_is_one_line(url: str) -> None:
    """A URL that is none, or that carries a secret, is refused in one line without the secret."""
    with pytest.raises(InvalidUrl) as refused:
        ArtifactClient(gateway=url, token="t")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ClientError, match="go together"):
        ArtifactClient(gateway="https://h")
    with pytest.raises(ClientError, match="give broker_url, or gateway and token"):
        ArtifactClient()
    with ArtifactClient("redis://127.0.0.1:1/0") as client, pytest.raises(ClientError, match="give gateway and token"):
        client.open("b", "k")


# Jobs over the gateway, for a program that does not reach the broker.


@pytest.fixture
def over_gateway(gateway_with_broker: Gateway) -> Iterator[ArtifactClient]:
    with ArtifactClient(gateway=gateway_with_broker.url, token=gateway_with_broker.token()) as made:
        yield made


def test_jobs_go_over_the_gateway(over_gateway: ArtifactClient, gateway_with_broker: Gateway) -> None:
    """A job is sent, found by its id, and cancelled; a key is one job; what the gateway refuses is told."""
    job = over_gateway.verify("releases", "app.tgz", idempotency_key="Bau ü 17")
    assert over_gateway.verify("releases", "app.tgz", idempotency_key="Bau ü 17").id == job.id
    with pytest.raises(IdempotencyMismatch):
        over_gateway.verify("releases", "other.tgz", idempotency_key="Bau ü 17")
    assert job.state is JobState.QUEUED
    assert over_gateway.status(job.id).state is JobState.QUEUED
    assert job.cancel() is True
    jobs = over_gateway.submit_many(
        [VerifyRequest(bucket="releases", key="a"), VerifyRequest(bucket="releases", key="b")]
    )
    assert len({each.id for each in jobs}) == 2
    with pytest.raises(UnknownJob):
        over_gateway.job("no-such-job").wait(WITHIN)
    with pytest.raises(InvalidRequest, match="files of the worker's machine"):
        over_gateway.upload_dir("/srv/in", "releases")
    with pytest.raises(InvalidRequest, match="give broker_url"):
        over_gateway.sweep_verify()
    with pytest.raises(NotAllowed):
        over_gateway.verify("other", "app.tgz")
    gateway_with_broker.store("app.tgz", b"release")
    assert [each.key for each in over_gateway.list("releases").artifacts] == ["app.tgz"]
    assert over_gateway.show("releases", "app.tgz").size == 7


def test_services_share_no_upload(gateway_with_broker: Gateway, tmp_path: Path) -> None:
    """The same idempotency key of two services with one token names two files that are sent."""
    way, ids = {"gateway": gateway_with_broker.url, "token": gateway_with_broker.token()}, set()
    for service in ("billing", "shipping"):
        (tmp_path / "file").write_text(service)
        with ArtifactClient(**way, service=service) as client:
            ids.add(client.upload_file(tmp_path / "file", "releases", service, idempotency_key="17").id)
    assert len(ids) == 2


@pytest.fixture
def sending(over_gateway: ArtifactClient, monkeypatch: pytest.MonkeyPatch) -> ArtifactClient:
    """Return a client that sends files in small parts."""
    monkeypatch.setattr("zot_artifact_client.file_upload._PART", 8 * MIB)
    monkeypatch.setattr("zot_artifact_client.file_upload._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("zot_artifact_client.file_upload._LONGEST_PAUSE", 0.1)
    return over_gateway


def staged(gateway: Gateway) -> list[bytes]:
    return [
        path.read_bytes()
        for path in (gateway.settings.home / "staging").rglob("*")
        if path.is_file() and path.stat().st_size > 1000
    ]


def test_a_file_is_sent_without_a_shared_disk(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path
) -> None:
    """All bytes of a file arrive and are announced by their digest, a job is sent, and progress counts them.

    What is cancelled while the digest is computed announces nothing.
    """
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    seen: list[int] = []
    job = sending.upload_file(
        tmp_path / "app.tgz", "releases", "app.tgz", on_progress=lambda told: seen.append(told.bytes_done)
    )
    assert (job.kind, job.state) == ("upload", JobState.QUEUED)
    assert staged(gateway_with_broker) == [CONTENT]
    assert (seen[0], seen[-1], seen == sorted(seen)) == (0, len(CONTENT), True)
    (tmp_path / "empty").touch()
    assert sending.upload_file(tmp_path / "empty", "releases", "empty").state is JobState.QUEUED
    with pytest.raises(FileNotFoundError):
        sending.upload_file(tmp_path / "absent", "releases", "absent")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        sending.upload_file(tmp_path / "fifo", "releases", "fifo")
    with pytest.raises(NotAllowed):
        sending.upload_file(tmp_path / "app.tgz", "other", "app.tgz")

    def cancel(told: Progress) -> None:
        raise ClientError(told.step)

    uploads = list(gateway_with_broker.settings.staging_dir.iterdir())
    with pytest.raises(ClientError, match="hashing"):
        sending.upload_file(tmp_path / "app.tgz", "releases", "app.tgz", on_progress=cancel)
    assert list(gateway_with_broker.settings.staging_dir.iterdir()) == uploads


def test_a_broken_line_loses_no_byte(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload whose connections break continues after the bytes that have arrived, until none arrive any more."""
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    pieces, breaks = file_upload._pieces, [0]

    def breaking(file: Any, offset: int, *more: Any) -> Iterator[bytes]:
        for number, piece in enumerate(pieces(file, offset, *more)):
            if number == 3 and breaks[0] < 8:
                breaks[0] += 1
                raise ConnectionResetError("the line broke")
            yield piece

    monkeypatch.setattr(file_upload, "_pieces", breaking)
    sending.upload_file(tmp_path / "app.tgz", "releases", "app.tgz")
    assert breaks == [8]
    assert staged(gateway_with_broker) == [CONTENT]

    def silent(*_: Any) -> Iterator[bytes]:
        raise ConnectionResetError("the line broke")
        yield b""

    monkeypatch.setattr(file_upload, "_pieces", silent)
    with pytest.raises(GatewayUnavailable):
        sending.upload_file(tmp_path / "app.tgz", "releases", "other.tgz")


def test_an_upload_outlives_a_gateway_that_is_away_for_longer_than_a_query(
    gateway_with_broker: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question how much has arrived is asked again too: a gateway that was killed takes seconds to be back."""
    for module in ("gateway", "file_upload"):
        monkeypatch.setattr(f"zot_artifact_client.{module}._FIRST_PAUSE", 0.01)
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    refused: list[str] = []

    def away(request: Request) -> Fault:
        if request.method in {"PATCH", "HEAD"} and len(refused) < 8:
            refused.append(request.method)
            return Reset()
        return None

    with FaultyProxy(httpx.URL(gateway_with_broker.url).port or 0, away) as proxy:
        way = {"gateway": f"http://127.0.0.1:{proxy.port}", "token": gateway_with_broker.token()}
        with ArtifactClient(**way) as client:
            client.upload_file(tmp_path / "app.tgz", "releases", "app.tgz")
    assert refused == ["PATCH", *["HEAD"] * 7]
    assert staged(gateway_with_broker) == [CONTENT]


def test_a_request_that_the_gateway_still_takes_is_waited_for(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path
) -> None:
    """A part is sent again until the gateway has given up the broken request that holds the upload."""
    (tmp_path / "app.tgz").write_bytes(CONTENT)
    held: list[int] = []

    def hold(told: Progress) -> None:
        if told.step == "sending" and not held:
            [source] = gateway_with_broker.settings.staging_dir.glob("*/source")
            held.append(os.open(source, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            threading.Timer(0.1, os.close, held).start()

    sending.upload_file(tmp_path / "app.tgz", "releases", "app.tgz", on_progress=hold)
    assert staged(gateway_with_broker) == [CONTENT]


def test_a_killed_sender_is_followed_by_another_one(
    sending: ArtifactClient, gateway_with_broker: Gateway, tmp_path: Path
) -> None:
    """Another process with the same idempotency key continues where the killed one was, and it is one job."""
    (tmp_path / "app.tgz").write_bytes(CONTENT)

    def send(on_progress: Callable[[Progress], object]) -> str:
        return sending.upload_file(
            tmp_path / "app.tgz", "releases", "app.tgz", idempotency_key="build-17", on_progress=on_progress
        ).id

    child = os.fork()
    if child == 0:
        try:
            send(lambda told: os.kill(os.getpid(), signal.SIGKILL) if told.bytes_done > 20 * MIB else None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    seen: list[Progress] = []
    job = send(seen.append)
    assert next(told.bytes_done for told in seen if told.step == "sending") >= 16 * MIB
    assert staged(gateway_with_broker) == [CONTENT]
    assert send(lambda told: None) == job
