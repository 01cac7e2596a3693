"""Downloads from the gateway: only verified bytes, from whichever copy is right, in ranges and conditionally."""

import asyncio
import base64
import hashlib
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from pydantic import ByteSize

from tests.unit.gateway.conftest import Gateway
from tests.waiting import WITHIN, until
from worker import clock
from worker.artifacts.verified_download import VerifiedDownload
from worker.catalogue import Scope
from worker.gateway import objects
from worker.gateway.services import Services
from worker.settings import Settings
from worker.settings.section_models import StoreLimits
from worker.storage import Store
from worker.storage.integrity.manifest import CHUNK_SIZE, Chunk

CONTENT = os.urandom(CHUNK_SIZE) + os.urandom(CHUNK_SIZE) + b"the end"


def damage(gateway: Gateway, store: str, key: str, at: int) -> None:
    path = gateway.path(store, key)
    path.write_bytes(path.read_bytes()[:at] + b"\xff\x00\xff" + path.read_bytes()[at + 3 :])


def take(answer: httpx.Response, into: bytearray) -> None:
    for piece in answer.iter_raw():
        into += piece


def repr_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_an_object_arrives_with_its_digest_as_tag_and_header(gateway: Gateway) -> None:
    """The body is right, the ETag is the SHA-256, and both digest headers have it; HEAD says the same."""
    artifact = gateway.store("app.tgz", CONTENT)
    with gateway.client() as client:
        got = client.get("/v1/objects/releases/app.tgz")
        head = client.head("/v1/objects/releases/app.tgz")
    assert got.content == CONTENT
    for answer in (got, head):
        assert answer.status_code == 200
        assert answer.headers["ETag"] == f'"{artifact.digest.sha256}"'
        assert answer.headers["Repr-Digest"] == answer.headers["Content-Digest"] == repr_digest(CONTENT)
        assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert head.content == b""


def test_a_download_changes_the_copy_in_mid_object(gateway: Gateway) -> None:
    """Each store has another chunk that is rotten: the client gets all bytes right."""
    gateway.store("app.tgz", CONTENT)
    damage(gateway, "primary", "app.tgz", CHUNK_SIZE + 5)
    damage(gateway, "dr", "app.tgz", 5)
    assert gateway.client().get("/v1/objects/releases/app.tgz").content == CONTENT


def test_a_store_that_is_slow_is_replaced_in_mid_object(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chunk comes from the other store meanwhile; a store that alone has the artifact is waited for."""
    monkeypatch.setattr("worker.artifacts.verified_download._PATIENCE", 0.01)
    gateway.store("app.tgz", CONTENT)
    gateway.store("alone.tgz", CONTENT, stores=("primary",))
    read, goes_on = Store.read_chunk, threading.Event()

    def slow(store: Store, bucket: str, key: str, chunk: Chunk) -> bytes | bytearray:
        if (store.name, chunk.number) == ("primary", 1):
            goes_on.wait()
        return read(store, bucket, key, chunk)

    monkeypatch.setattr(Store, "read_chunk", slow)
    try:
        assert gateway.client().get("/v1/objects/releases/app.tgz").content == CONTENT
    finally:
        goes_on.set()
    assert gateway.client(name="other").get("/v1/objects/releases/alone.tgz").content == CONTENT


def test_a_bad_copy_is_told_although_the_next_store_answered_first(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are right already when the first read ends; its copy is as bad as one that was waited for."""
    monkeypatch.setattr("worker.artifacts.verified_download._PATIENCE", 0.01)
    artifact = gateway.store("app.tgz", CONTENT)
    damage(gateway, "primary", "app.tgz", 5)
    read, goes_on, told = Store.read_chunk, threading.Event(), queue.SimpleQueue[str]()

    def slow(store: Store, bucket: str, key: str, chunk: Chunk) -> bytes | bytearray:
        if store.name == "primary":
            goes_on.wait()
        return read(store, bucket, key, chunk)

    monkeypatch.setattr(Store, "read_chunk", slow)
    download = VerifiedDownload(
        gateway.context, artifact, on_bad=lambda store, error: told.put(f"{store} {type(error).__name__}")
    )
    try:
        assert bytes(next(download.pieces(0, 10))) == CONTENT[:10]
        assert told.empty()
    finally:
        goes_on.set()
    assert told.get(timeout=WITHIN) == "primary DigestMismatch"


def test_a_slow_store_is_asked_last_although_it_was_first(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that was asked meanwhile had no time yet: the next chunk is asked of it, and not of the slow one."""
    monkeypatch.setattr("worker.artifacts.verified_download._PATIENCE", 0.01)
    gateway.store("app.tgz", CONTENT)
    read, other_is_asked, goes_on = Store.read_chunk, threading.Event(), threading.Event()
    asked: list[str] = []

    def slow(store: Store, bucket: str, key: str, chunk: Chunk) -> bytes | bytearray:
        if chunk.number == 0 and store.name == "primary":
            other_is_asked.wait()
        elif chunk.number == 0:
            other_is_asked.set()
            goes_on.wait()
        elif chunk.number == 1:
            asked.append(store.name)
        return read(store, bucket, key, chunk)

    monkeypatch.setattr(Store, "read_chunk", slow)
    try:
        assert gateway.client().get("/v1/objects/releases/app.tgz").content == CONTENT
    finally:
        goes_on.set()
    assert asked[0] == "dr"


def test_a_store_that_is_gone_is_replaced(gateway: Gateway) -> None:
    """A missing object is read from the next store."""
    gateway.store("app.tgz", CONTENT)
    gateway.path("primary", "app.tgz").unlink()
    gateway.path("dr", "app.tgz").rename(gateway.path("dr", "moved"))
    gateway.store("app.tgz", CONTENT, stores=("dr",))
    assert gateway.client().get("/v1/objects/releases/app.tgz").content == CONTENT


def test_rot_in_all_copies_never_reaches_the_client(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """The connection ends before the rotten chunk, what came before it is right, and the log says why."""
    gateway.store("app.tgz", CONTENT)
    for store in ("primary", "dr"):
        damage(gateway, store, "app.tgz", CHUNK_SIZE + 5)
    received = bytearray()
    with gateway.client().stream("GET", "/v1/objects/releases/app.tgz") as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            take(answer, received)
    assert bytes(received) == CONTENT[:CHUNK_SIZE]
    until(lambda: "broken off: releases/app.tgz: no copy is right; see" in caplog.text)
    assert "Traceback" not in caplog.text, "it is no bug of the gateway"


def test_rot_at_the_beginning_of_all_copies_is_a_bad_gateway(gateway: Gateway) -> None:
    """Nothing is sent, and the answer names the stores and the way out."""
    gateway.store("app.tgz", CONTENT)
    for store in ("primary", "dr"):
        damage(gateway, store, "app.tgz", 5)
    answer = gateway.client().get("/v1/objects/releases/app.tgz")
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:zot-artifacts:NoGoodCopy")
    for word in ("primary", "dr", "zot-artifacts verify releases/app.tgz"):
        assert word in answer.json()["detail"]


def test_an_object_without_a_manifest_is_verified_as_a_whole_first(gateway: Gateway) -> None:
    """Without recorded chunks, a rotten last byte is found before the first one is sent; ranges are right too."""
    gateway.store("app.tgz", CONTENT, manifest=False)
    damage(gateway, "primary", "app.tgz", len(CONTENT) - 3)
    client = gateway.client()
    assert client.get("/v1/objects/releases/app.tgz").content == CONTENT
    part = client.get("/v1/objects/releases/app.tgz", headers={"Range": "bytes=-7"})
    assert (part.status_code, part.content) == (206, b"the end")
    damage(gateway, "dr", "app.tgz", len(CONTENT) - 3)
    assert client.get("/v1/objects/releases/app.tgz").status_code == 502


def test_a_paused_store_is_not_read(gateway: Gateway) -> None:
    """With all copies in paused stores, the answer says so."""
    gateway.store("app.tgz", b"x", stores=("primary",))
    gateway.context.catalogue.pauses.begin(Scope.STORE, "primary", reason=None, now=clock.now())
    answer = gateway.client().get("/v1/objects/releases/app.tgz")
    assert (answer.status_code, "paused" in answer.json()["detail"]) == (404, True)


RANGES = {
    "bytes=0-0": (0, 0),
    "bytes=5-": (5, len(CONTENT) - 1),
    "bytes=-7": (len(CONTENT) - 7, len(CONTENT) - 1),
    f"bytes={CHUNK_SIZE - 2}-{CHUNK_SIZE + 1}": (CHUNK_SIZE - 2, CHUNK_SIZE + 1),
    f"bytes={CHUNK_SIZE}-{2 * CHUNK_SIZE - 1}": (CHUNK_SIZE, 2 * CHUNK_SIZE - 1),
    "bytes=1-99999999999999999999": (1, len(CONTENT) - 1),
    "bytes=-99999999999999999999": (0, len(CONTENT) - 1),
}


def test_one_range_is_sent(gateway: Gateway) -> None:
    """The bytes of the range, its Content-Range, and a Content-Digest where it is within one chunk."""
    gateway.store("app.tgz", CONTENT)
    client = gateway.client()
    for range_, (first, last) in RANGES.items():
        answer = client.get("/v1/objects/releases/app.tgz", headers={"Range": range_})
        assert (answer.status_code, answer.headers["Content-Range"]) == (206, f"bytes {first}-{last}/{len(CONTENT)}")
        assert answer.content == CONTENT[first : last + 1]
        within = first // CHUNK_SIZE == last // CHUNK_SIZE
        assert answer.headers.get("Content-Digest") == (repr_digest(answer.content) if within else None)


NO_RANGES = (
    "bytes=0-0,2-3", "bytes=" + ",".join(f"{n}-{n}" for n in range(900)), "bytes=5-2", "bytes=-", "bytes=a-b",
    "items=0-1", "bytes=--1", f"bytes=0-{'9' * 5000}", "bytes=\u0660-\u0669".encode().decode("latin-1"),
)  # fmt: skip


def test_what_is_no_single_range_gets_all_bytes(gateway: Gateway) -> None:
    """Many, reversed, absurd and malformed ranges are ignored, as RFC 9110 allows."""
    gateway.store("app.tgz", b"0123456789")
    client = gateway.client()
    for range_ in NO_RANGES:
        answer = client.get("/v1/objects/releases/app.tgz", headers={"Range": range_.encode("latin-1")})
        assert (answer.status_code, answer.content) == (200, b"0123456789"), range_[:50]


def test_a_range_beyond_the_end_is_416(gateway: Gateway) -> None:
    """The answer has the size."""
    gateway.store("app.tgz", b"0123456789")
    client = gateway.client()
    for range_ in ("bytes=10-", "bytes=10-20", "bytes=-0"):
        answer = client.get("/v1/objects/releases/app.tgz", headers={"Range": range_})
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */10")


def test_conditions_compare_the_digest(gateway: Gateway) -> None:
    """If-None-Match saves the bytes, If-Match refuses others, If-Range decides between a part and all."""
    tag = f'"{gateway.store("app.tgz", b"0123456789").digest.sha256}"'
    client = gateway.client()

    def get(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get("/v1/objects/releases/app.tgz", headers=named)

    assert get(If_None_Match=f'"x", W/{tag}').status_code == 304
    assert get(If_None_Match="*").content == b""
    assert get(If_None_Match='"x"').status_code == 200
    assert get(If_Match='"x"').status_code == 412
    assert get(If_Match=f"W/{tag}").status_code == 412
    assert get(If_Match=tag).status_code == 200
    assert get(If_Range=tag, Range="bytes=0-1").content == b"01"
    assert get(If_Range='"x"', Range="bytes=0-1").content == b"0123456789"
    assert get(If_Range="Thu, 26 Nov 2026 09:00:00 GMT", Range="bytes=0-1").content == b"0123456789"


def test_an_empty_object_is_sent(gateway: Gateway) -> None:
    """No byte, and the digest of none."""
    gateway.store("empty", b"")
    answer = gateway.client().get("/v1/objects/releases/empty")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Digest"] == repr_digest(b"")


def test_a_hostile_key_adds_no_header(gateway: Gateway) -> None:
    """Line ends and quotes in a key of another program are percent-encoded; an artifact is never shown as a page."""
    key = 'a\r\nSet-Cookie: x="1"; .html'
    gateway.store(key, b"<script>", content_type="text/html", cache_control="public")
    answer = gateway.client().get("/v1/objects/releases/a%0D%0ASet-Cookie%3A%20x%3D%221%22%3B%20.html")
    assert (answer.status_code, answer.content) == (200, b"<script>")
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''a%0D%0A")
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_path_that_is_no_key_is_refused(gateway: Gateway) -> None:
    """Escapes, reserved segments, NUL, invalid UTF-8 and what is too long never reach a store."""
    client = gateway.client()
    for path in ("..%2F..%2Fcatalogue.sqlite3", "a/%2e%2e/b", ".zot-tmp/x", "a%00b", "%ff%fe", "", "x" * 1100):
        target = {"target": f"/v1/objects/releases/{path}".encode()}  # otherwise httpx would resolve `..` itself
        answer = client.send(httpx.Request("GET", gateway.url, headers=client.headers, extensions=target))
        assert answer.status_code in {400, 404}, path


def test_a_slot_is_free_again_after_each_download(settings: Any, open_gateway: Callable[[Any], Any]) -> None:
    """With room for one download, one after the other is served: also after one that broke off, or could not begin."""
    one = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"downloads": 1})})
    with open_gateway(one) as gateway:
        gateway.store("app.tgz", CONTENT)
        gateway.store("lost.tgz", b"lost")
        for store in one.stores:
            gateway.path(store, "lost.tgz").unlink()
        client = gateway.client()
        with client.stream("GET", "/v1/objects/releases/app.tgz") as answer:
            next(answer.iter_raw())
        for _ in range(3):
            assert client.get("/v1/objects/releases/lost.tgz").status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            assert client.get("/v1/objects/releases/app.tgz").content == CONTENT


def test_a_slot_is_free_again_if_the_answer_cannot_begin(settings: Settings) -> None:
    """A client that has gone, or a token that was revoked, before the first bytes are sent keeps no slot."""
    one = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"downloads": 1})})

    async def gone(_: Any) -> None:
        raise ConnectionResetError

    async def download() -> None:
        services = Services(one)
        slot = await services.take_slot(60)
        pieces = objects._Pieces(memoryview(piece) for piece in [b"second"])
        body = objects._stream(services, pieces, memoryview(b"first"))
        free = partial(services.free_slot, slot, pieces.close)
        answer = objects._Download(body, free, HTTPStatus.OK, {})
        with pytest.raises(ConnectionResetError):
            await answer.stream_response(gone)
        await services.take_slot(60)

    asyncio.run(download())


def test_a_download_heeds_the_limits_of_stores(settings: Settings, open_gateway: Any) -> None:
    """A store whose breaker is open or that is paused is not asked, and bytes are taken from its bandwidth."""
    limited = settings.model_copy(update={"store_limits": {"dr": StoreLimits(bytes_per_second=ByteSize(1 << 30))}})
    with open_gateway(limited) as gateway:
        gateway.store("app.tgz", CONTENT)
        client, admission = gateway.client(), gateway.services.context.admission
        taken: list[tuple[str, int]] = []
        real = admission.take_bandwidth
        admission.take_bandwidth = lambda store, count, *more: (taken.append((store, count)), real(store, count, *more))
        for _ in range(limited.breaker.failures):
            admission.record_failure("primary")
        damage(gateway, "primary", "app.tgz", 5)  # it would be read first
        assert client.get("/v1/objects/releases/app.tgz").content == CONTENT
        assert {store for store, _ in taken} == {"dr"}
        assert sum(count for _, count in taken) == len(CONTENT)
        for _ in range(limited.breaker.failures):
            admission.record_failure("dr")
        refused = client.get("/v1/objects/releases/app.tgz")
        assert (refused.status_code, "breaker" in refused.text) == (503, True)
