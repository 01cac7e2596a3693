"""The client of a gateway that sends wrong bytes, breaks off, is busy, or is no gateway."""

import asyncio
import hashlib
import json
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.servers.process import free_port
from tests.waiting import WITHIN
from zot_artifact_client import (
    ArtifactChanged,
    ArtifactClient,
    AsyncArtifactClient,
    BrokerUnavailable,
    ClientError,
    DamagedBytes,
    GatewayUnavailable,
    InvalidUrl,
    NotAllowed,
    Progress,
    file_upload,
    signed_parts,
)


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
