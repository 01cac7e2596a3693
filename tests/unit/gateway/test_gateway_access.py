"""Nothing is open without a token, and a token opens what it is for and nothing else."""

import hashlib
import json
import logging
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from limits import RateLimitItemPerMinute
from pydantic import ByteSize
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.unit.gateway.conftest import Gateway, serving
from worker import clock
from worker.catalogue import CatalogueUnavailable
from worker.catalogue.access_tokens import AccessTokens
from worker.gateway import jobs, request_admission, server
from worker.gateway.access import TokenVerb, new_token
from worker.gateway.app import openapi
from worker.settings import Settings
from worker.settings.alarms import JobReceiverSettings
from worker.settings.section_models import GatewaySettings

OPERATIONS = [(method, path) for path, methods in openapi()["paths"].items() for method in methods]


def test_every_operation_needs_a_valid_token(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """All operations of the OpenAPI document, and paths that do not exist, answer 401 with the way out."""
    monkeypatch.setattr(request_admission, "_FAILURES", request_admission.RateLimitItemPerSecond(1000))
    for token in (None, "x", "zot_x", f"zot_{'0' * 12}_{'0' * 64}", "zot_\u00fc", "a" * 9000):
        headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
        with httpx.Client(base_url=gateway.url, headers=headers, trust_env=False) as client:
            for method, path in [*OPERATIONS, ("get", "/"), ("get", "/docs"), ("get", "/openapi.json"), ("get", "//")]:
                answer = client.request(method, path.format(bucket="releases", key="a", job_id="x", upload_id="x"))
                assert answer.status_code == 401, path
                assert "WWW-Authenticate" in answer.headers
                assert method == "head" or "zot-artifacts tokens add" in answer.json()["detail"]
            assert client.get("/healthz").json() == {"status": "ok"}


def test_the_whole_secret_counts(gateway: Gateway) -> None:
    """A token whose id is known, with another secret or part of the right one, is none."""
    record, text = new_token("ci", ["releases"], [TokenVerb.READ], now=clock.now(), expires_at=None)
    gateway.context.catalogue.access_tokens.add(record)
    begin, secret = text.rpartition("_")[0], text.rpartition("_")[2]
    last = "1" if secret[-1] == "0" else "0"
    for wrong in (
        f"{begin}_{'0' * 64}",
        f"{begin}_{secret[:-1]}{last}",
        text[:-1],
        f"{text}0",
        f"{begin}_",
        text.upper(),
    ):
        assert gateway.client_of(wrong).get("/v1/artifacts?bucket=releases").status_code == 401
    assert gateway.client_of(text).get("/v1/artifacts?bucket=releases").status_code == 200


def test_a_foreign_bucket_looks_like_an_empty_one(gateway: Gateway) -> None:
    """Whether an artifact exists in a bucket that the token is not for cannot be told: each answer is the same."""
    gateway.store("there", b"secret", bucket="other")
    client = gateway.client("releases")
    for path in ("/v1/artifacts/other/{}", "/v1/objects/other/{}"):
        there, absent = client.get(path.format("there")), client.get(path.format("nothere"))
        assert (there.status_code, absent.status_code) == (404, 404)
        assert there.json()["detail"].replace("there:", "") == absent.json()["detail"].replace("nothere:", "")
    for kind in ("verify", "delete"):
        answers = [
            client.post(f"/v1/jobs/{kind}", json={"bucket": "other", "key": key}) for key in ("there", "nothere")
        ]
        assert [answer.status_code for answer in answers] == [403, 403]
    assert client.get("/v1/artifacts", params={"bucket": "other"}).status_code == 403


def test_a_prefix_is_a_border(gateway: Gateway) -> None:
    """A token for a prefix lists, shows and downloads below it, and not beside it."""
    for key in ("public/a", "public2", "private/a"):
        gateway.store(key, key.encode())
    client = gateway.client("releases/public/", verbs=(TokenVerb.READ,))
    assert client.get("/v1/objects/releases/public/a").text == "public/a"
    assert client.get("/v1/objects/releases/public2").status_code == 404
    assert client.get("/v1/objects/releases/private/a").status_code == 404
    assert client.get("/v1/artifacts", params={"bucket": "releases"}).status_code == 403
    listed = client.get("/v1/artifacts", params={"bucket": "releases", "prefix": "public/"}).json()
    assert [each["key"] for each in listed["artifacts"]] == ["public/a"]


def test_a_verb_that_is_not_allowed_is_refused(gateway: Gateway) -> None:
    """Reading does not allow deleting, and deleting does not allow reading."""
    gateway.store("a", b"x")
    read, delete = (gateway.client(verbs=(verb,), name=verb) for verb in (TokenVerb.READ, TokenVerb.DELETE))
    assert read.post("/v1/jobs/delete", json={"bucket": "releases", "key": "a"}).status_code == 403
    assert delete.get("/v1/objects/releases/a").status_code == 403
    assert delete.get("/v1/artifacts/releases/a").status_code == 403
    batch = {"verb": "delete", "bucket": "releases", "prefix": "x"}
    assert read.post("/v1/jobs/batch", json=batch).status_code == 403


def test_revoked_expired_and_rotated_secrets_stop_at_once(gateway: Gateway) -> None:
    """A rotated secret goes on until its grace is over, and the new one allows the same."""
    tokens, now = gateway.context.catalogue.access_tokens, clock.now()
    record, text = new_token("ci", ["releases"], [TokenVerb.READ], now=now, expires_at=None)
    tokens.add(record)
    old = gateway.client_of(text)
    listing = ("/v1/artifacts?bucket=releases", "/v1/artifacts?bucket=other")
    assert [old.get(path).status_code for path in listing] == [200, 403]
    fresh, text = new_token("ci", ["*"], [], now=clock.now(), expires_at=None)
    assert tokens.rotate("ci", fresh, old_until=clock.now() + timedelta(hours=1))
    new = gateway.client_of(text)
    assert [new.get(path).status_code for path in listing] == [200, 403]
    assert old.get(listing[0]).status_code == 200
    third, _ = new_token("ci", ["*"], [], now=clock.now(), expires_at=None)
    old_until = clock.now()
    assert tokens.rotate("ci", third, old_until=old_until)
    assert [each.get(listing[0]).status_code for each in (old, new)] == [401, 401]
    assert [tokens.get(each.id).expires_at for each in (third, fresh)] == [None, old_until]
    soon, _ = new_token("soon", ["*"], [TokenVerb.READ], now=now, expires_at=clock.now() + timedelta(hours=1))
    tokens.add(soon)
    tokens.rotate(
        "soon", new_token("soon", [], [], now=clock.now(), expires_at=None)[0], old_until=now + timedelta(days=1)
    )
    assert tokens.get(soon.id) == soon, "a rotation makes no secret valid for longer"
    past, text = new_token("past", ["*"], [TokenVerb.READ], now=now, expires_at=now)
    tokens.add(past)
    assert gateway.client_of(text).get(listing[0]).status_code == 401
    assert tokens.revoke("past", clock.now()) == 0
    gone, text = new_token("gone", ["*"], [TokenVerb.READ], now=now, expires_at=None)
    tokens.add(gone)
    client = gateway.client_of(text)
    assert client.get(listing[0]).status_code == 200
    assert tokens.revoke("gone", clock.now()) == 1
    assert client.get(listing[0]).status_code == 401


def test_only_a_hash_of_a_token_is_kept(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """The secret is neither in the catalogue's files nor in the log of the gateway, which names the token."""
    record, text = new_token("ci", ["releases"], [TokenVerb.READ], now=clock.now(), expires_at=None)
    gateway.context.catalogue.access_tokens.add(record)
    secret = text.rpartition("_")[2]
    assert record.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    caplog.set_level(logging.WARNING, "httpx")  # the client's own log is its own affair
    with caplog.at_level(logging.INFO):
        client = gateway.client_of(text)
        client.get(f"/v1/artifacts?bucket=releases&token={text}")
        client.get("/v1/artifacts/releases/none")
        client.get("/v1/artifacts", headers={"Authorization": f"Basic {text}"})
    assert "token ci" in caplog.text
    assert secret not in caplog.text
    assert not any(secret.encode() in file.read_bytes() for file in gateway.settings.home.glob("catalogue*"))


def test_a_token_has_a_rate(
    settings: Settings, open_gateway: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is above the rate of one token gets 429 with Retry-After, while another token is served."""
    # A busy machine takes seconds for the requests.
    monkeypatch.setattr(request_admission, "RateLimitItemPerSecond", RateLimitItemPerMinute)
    slow = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"rate": 3})})
    with open_gateway(slow) as gateway:
        busy, other = gateway.client(name="busy"), gateway.client(name="other")
        answers = [busy.get("/v1/artifacts?bucket=releases") for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 429)
        assert other.get("/v1/artifacts?bucket=releases").status_code == 200


def test_guesses_are_slowed_down(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many wrong tokens from one address get 429, and do not shut out the right one."""
    monkeypatch.setattr(request_admission, "_FAILURES", RateLimitItemPerMinute(10))  # a busy machine takes seconds
    client, guess = gateway.client(), gateway.client_of("zot_x")
    wrong = [guess.get("/v1/jobs/x").status_code for _ in range(30)]
    assert 429 in wrong
    assert client.get("/v1/artifacts?bucket=releases").status_code == 200


def test_a_large_request_is_refused_before_it_is_read(gateway: Gateway) -> None:
    """A body above 1 MiB ends with 413, announced or not; deep JSON and no JSON are 400."""
    client = gateway.client()
    assert client.post("/v1/jobs/verify", content=b"x" * (1 << 20 | 1)).status_code == 413
    assert client.post("/v1/jobs/verify", content=iter([b" " * (1 << 20), b"xx"])).status_code == 413
    for largest in (b" " * (1 << 20), iter([b" " * (1 << 20)])):
        assert client.post("/v1/jobs/verify", content=largest).status_code == 400
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    head = f"POST /v1/jobs/verify HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['Authorization']}"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{head}\r\nContent-Length: {1 << 20 | 1}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 413"
    deep = b'{"bucket":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (deep, b"{", b"[]", b"\xff", json.dumps({"bucket": "b" * 5000, "key": "k"}).encode()):
        answer = client.post("/v1/jobs/verify", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body[:20]
        assert "bbb" not in answer.text


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/artifacts HTTP/1.1\r\nHost: x\r\nX: ", b"GET /healthz HTTP/1.1\r\n\r\nGET /"]
)
def test_a_connection_that_sends_no_head_is_closed(
    settings: Settings, open_gateway: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A client that sends a head byte by byte, or none, is cut off however busy it is."""
    monkeypatch.setattr(server, "_HEAD_WITHIN", 0.5)
    monkeypatch.setattr(server, "_KEEP_ALIVE", 1)
    with open_gateway(settings) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(sent)
            received = b""
            try:
                while piece := connection.recv(4096):
                    received += piece
            except ConnectionResetError:
                pass
        assert received.count(b"HTTP/1.1") <= 1


@pytest.mark.parametrize("size", [17_000, 70_000])
def test_a_head_that_is_too_large_is_refused(gateway: Gateway, size: int) -> None:
    """A head above 16 KiB is 431, 400 or a closed connection, and is not kept."""
    try:
        answer = gateway.client().get("/v1/artifacts", params={"bucket": "releases"}, headers={"X": "y" * size})
    except (httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError):
        return
    assert answer.status_code in {400, 431}


def test_a_request_of_two_lengths_is_the_last_of_its_connection(gateway: Gateway) -> None:
    """With Content-Length and Transfer-Encoding it is 400, and the bytes behind it are no further request."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    for line in ("GET /healthz", "POST /v1/jobs/verify"):
        head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(f"{head}0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_stops_is_ended(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose body sends nothing more gets 408."""
    monkeypatch.setattr(request_admission, "_BODY_WITHIN", 0.3)

    def slow() -> Any:
        yield b"{"
        time.sleep(2)  # the fault: the client does not read the answer before its body has ended
        yield b"}"

    try:
        answer = gateway.client().post("/v1/jobs/verify", content=slow())
    except (httpx.RemoteProtocolError, httpx.WriteError, httpx.ReadError):
        return
    assert answer.status_code == 408


def test_a_client_that_takes_nothing_holds_no_slot(
    settings: Settings, open_gateway: Callable[[Settings], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that the client does not read is aborted, and its slot goes to the next one."""
    monkeypatch.setattr(server, "_TAKE_WITHIN", 0.5)
    one = settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"downloads": 1})})
    with open_gateway(one) as gateway:
        content = bytes(40_000_000)
        gateway.store("app.tgz", content)
        client = gateway.client()
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        head = (
            f"GET /v1/objects/releases/app.tgz HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['Authorization']}"
        )
        with socket.create_connection((host, int(port)), timeout=60) as stuck:
            stuck.sendall(f"{head}\r\n\r\n".encode())
            assert stuck.recv(12) == b"HTTP/1.1 200"
            assert client.get("/v1/objects/releases/app.tgz").content == content


def test_an_answer_waits_for_no_acknowledgement(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sends what is written at once; else each body follows its head when the client has acknowledged it."""
    at_once = []
    before = H11Protocol.connection_made

    def connection_made(protocol: H11Protocol, transport: Any) -> None:
        at_once.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        before(protocol, transport)

    monkeypatch.setattr(H11Protocol, "connection_made", connection_made)
    gateway.client().get("/healthz").raise_for_status()
    assert at_once == [1]


def test_tls_is_served_with_the_given_certificate(gateway: Gateway, tmp_path: Path) -> None:
    """A client that trusts the certificate is served, and plain HTTP on that port is not."""
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    token = gateway.client().headers["Authorization"]
    address = server.Address(certificate=certificate, key=key)
    trusted = ssl.create_default_context(cafile=certificate)
    with (
        serving(gateway.settings, address) as url,
        httpx.Client(base_url=url, verify=trusted, headers={"Authorization": token}, trust_env=False) as client,
    ):
        assert client.get("/v1/artifacts?bucket=releases").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url.replace("https", "http"), trust_env=False)


def test_a_delete_that_cannot_be_undone_needs_a_verb_of_its_own(gateway: Gateway) -> None:
    """A token for deletes sends no `now` and no `allow_last`, alone or in a batch; one with `purge` does."""
    delete = gateway.client(verbs=(TokenVerb.DELETE,), name="delete")
    purge = gateway.client(verbs=(TokenVerb.DELETE, TokenVerb.PURGE), name="purge")
    one, batch = {"bucket": "releases", "key": "a"}, {"verb": "delete", "bucket": "releases", "prefix": "x"}
    asked = [("delete", one | {"now": True}), ("delete", one | {"stores": ["dr"], "allow_last": True}),
             ("batch", batch | {"stores": ["dr"], "allow_last": True})]  # fmt: skip
    for kind, body in asked:
        assert delete.post(f"/v1/jobs/{kind}", json=body).status_code == 403
        assert purge.post(f"/v1/jobs/{kind}", json=body).status_code == 503  # allowed; there is no broker here
    assert delete.post("/v1/jobs/delete", json=one).status_code == 503
    assert gateway.client(verbs=(TokenVerb.PURGE,), name="p").post("/v1/jobs/delete", json=one).status_code == 403


def unavailable(*_of: Any) -> Any:
    """Be a catalogue that restarts."""
    raise CatalogueUnavailable("it restarts")


def test_a_revoked_token_ends_what_still_runs(
    gateway_with_broker: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An upload, a download and a stream of events end when their token is revoked, without the bytes that follow.

    Until then no more than so many requests of the token run at a time, and they outlive a restart of the catalogue.
    """
    gateway = gateway_with_broker
    monkeypatch.setattr(request_admission, "_CHECK_EVERY", 0.0)
    monkeypatch.setattr(request_admission, "_AT_ONCE", 2)
    monkeypatch.setattr(jobs, "_ALIVE", 0.0)
    content = os.urandom(40 << 20)
    gateway.store("app.tgz", content)
    client = gateway.client(name="ci")
    job = client.post("/v1/jobs/verify", json={"bucket": "releases", "key": "app.tgz"}).json()["job"]
    sender = gateway.client(name="sender")
    new = {"bucket": "releases", "key": "a", "size": 2000, "sha256": "0" * 64}
    place = sender.post("/v1/uploads", json=new).headers["Location"]

    def body() -> Iterator[bytes]:
        yield bytes(1000)
        assert gateway.context.catalogue.access_tokens.revoke("sender", clock.now()) == 1
        yield bytes(1000)

    with suppress(httpx.TransportError):
        octets = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
        assert sender.patch(place, content=body(), headers=octets).status_code == 401
    [source] = gateway.settings.staging_dir.glob("*/source")
    assert source.stat().st_size <= 1000
    with (
        client.stream("GET", "/v1/objects/releases/app.tgz") as download,
        client.stream("GET", f"/v1/jobs/{job}/events") as events,
    ):
        received, lines = download.iter_bytes(1 << 16), events.iter_lines()
        count = len(next(received))
        assert next(lines).startswith("event:")
        assert client.get("/v1/artifacts?bucket=releases").status_code == 429
        assert gateway.client(name="other").get("/v1/artifacts?bucket=releases").status_code == 200
        with monkeypatch.context() as restarts:
            restarts.setattr(AccessTokens, "get", unavailable)
            count += sum(len(next(received)) for _ in range(160))  # more than the system keeps of a connection
        assert gateway.context.catalogue.access_tokens.revoke("ci", clock.now()) == 1
        rest: list[int] = []
        with pytest.raises(httpx.RemoteProtocolError):
            rest.extend(len(piece) for piece in received)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert count + sum(rest) < len(content)
    broken_off = [line for line in caplog.messages if "the answer was broken off" in line]
    assert [line.endswith("the token was revoked, or has expired, meanwhile") for line in broken_off] == [True, True]
    assert "Traceback" not in caplog.text, "it is no bug of the gateway"


def test_one_token_has_a_limit_of_open_bytes(settings: Settings, open_gateway: Any) -> None:
    """Uploads that are not complete count together for their token, and for no other one."""
    small = settings.model_copy(update={"gateway": GatewaySettings(max_staged=ByteSize(1000))})
    with open_gateway(small) as gateway:
        one, other = gateway.client(name="one"), gateway.client(name="other")
        new = {"bucket": "releases", "key": "a", "size": 600, "sha256": "0" * 64}
        place = one.post("/v1/uploads", json=new).headers["Location"]
        refused = one.post("/v1/uploads", json=new)
        assert (refused.status_code, "gateway.max_staged" in refused.json()["detail"]) == (429, True)
        assert other.post("/v1/uploads", json=new).status_code == 201
        assert one.delete(place).status_code == 204
        assert one.post("/v1/uploads", json=new).status_code == 201


def test_a_delete_takes_no_companion_that_the_token_is_not_for(gateway: Gateway) -> None:
    """A token for one prefix deletes nothing under another one, although a user has named it as a companion."""
    for key in ("app/a.tgz", "app/a.tgz.sig", "audit/a.json"):
        gateway.store(key, key.encode())
    client = gateway.client("releases/app/", verbs=(TokenVerb.DELETE,))
    one, many = {"bucket": "releases", "key": "app/a.tgz"}, {"verb": "delete", "bucket": "releases", "prefix": "app/"}
    for kind, body in (("delete", one), ("batch", many)):
        assert client.post(f"/v1/jobs/{kind}", json=body).status_code == 503  # allowed; there is no broker here
    gateway.context.catalogue.companions.add("releases", "audit/a.json", "app/a.tgz", by="ana", now=clock.now())
    for kind, body in (("delete", one), ("batch", many)):
        answer = client.post(f"/v1/jobs/{kind}", json=body)
        assert (answer.status_code, "audit/a.json" in answer.json()["detail"]) == (403, True)
    assert client.post("/v1/jobs/delete", json={**one, "stores": ["dr"]}).status_code == 503


def test_a_token_names_no_companion_of_what_it_is_not_for(gateway: Gateway) -> None:
    """Its upload would otherwise keep others from deleting that artifact; the field works within its own keys."""
    client = gateway.client("releases/app/", verbs=(TokenVerb.UPLOAD,))
    new = {"bucket": "releases", "key": "app/a.json", "size": 1, "sha256": "0" * 64}
    answers = [client.post("/v1/uploads", json={**new, "companion_of": of}) for of in ("audit/a", "app/a.tgz")]
    assert [answer.status_code for answer in answers] == [403, 201]
    importer = gateway.client("releases/app/", verbs=(TokenVerb.IMPORT,), name="importer")
    file = {"bucket": "releases", "key": "app/a.json", "source": "/in/a.json"}
    answers = [importer.post("/v1/jobs/upload", json={**file, "companion_of": of}) for of in ("audit/a", "app/a.tgz")]
    assert [answer.status_code for answer in answers] == [403, 503]  # allowed; there is no broker here


def test_a_token_reaches_only_the_webhooks_of_its_buckets(settings: Settings, open_gateway: Any) -> None:
    """A receiver for another bucket, one without `buckets` and one that does not exist get the same answer."""
    hook = {"url": "http://127.0.0.1:9/token", "secret": "a secret of the receiver"}
    hooks = {
        "ci": JobReceiverSettings(**hook, buckets=("releases/app/",)),
        "all": JobReceiverSettings(**hook, buckets=("*",)),
        "old": JobReceiverSettings(**hook),
    }
    with open_gateway(settings.model_copy(update={"webhooks": hooks})) as gateway:
        client = gateway.client("releases")

        def ask(name: str, key: str) -> list[int]:
            one = {"bucket": "releases", "key": key, "notify": [name]}
            staged = {**one, "size": 1, "sha256": "0" * 64}
            many = {"verb": "verify", "bucket": "releases", "prefix": key, "notify": [name]}
            answers = [
                client.post("/v1/jobs/verify", json=one), client.post("/v1/jobs/batch", json=many),
                client.post("/v1/uploads", json=staged),
            ]  # fmt: skip
            return [answer.status_code for answer in answers]

        assert ask("ci", "app/a.tgz") == [503, 503, 201]  # allowed; there is no broker here
        assert ask("all", "b.tgz") == [503, 503, 201]
        assert ask("ci", "b.tgz") == ask("old", "b.tgz") == ask("none", "b.tgz") == [403, 403, 403]
        client = gateway.client("*", name="whole")
        assert ask("old", "c.tgz") == [503, 503, 201]
