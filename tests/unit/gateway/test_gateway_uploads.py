"""Uploads to the gateway: resumed at the byte that arrived, and enqueued once with the announced digest."""

import base64
import hashlib
import logging
import os
import resource
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.durable import synced
from tests.servers.gateway import GatewayProcess
from tests.unit.gateway.conftest import Gateway, serving
from tests.waiting import until
from worker import clock
from worker.context import Context
from worker.gateway import uploads
from worker.gateway.access import TokenVerb, new_token
from worker.gateway.services import Services
from worker.gateway.staging import Staging
from worker.settings import Settings

CONTENT = os.urandom(3_000_000)
OCTETS = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}


@pytest.fixture
def gateway(gateway_with_broker: Gateway) -> Gateway:
    return gateway_with_broker


def asked(content: bytes = CONTENT, key: str = "app.tgz", **more: Any) -> dict[str, Any]:
    return {
        "bucket": "releases", "key": key, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **more,
    }  # fmt: skip


def append(client: httpx.Client, place: str, offset: int, content: Any) -> httpx.Response:
    return client.patch(place, headers={**OCTETS, "Upload-Offset": str(offset)}, content=content)


def offset(client: httpx.Client, place: str) -> int:
    answer = client.head(place)
    assert answer.status_code == 200
    return int(answer.headers["Upload-Offset"])


def sent(gateway: Gateway, id_: str) -> dict[str, Any] | None:
    """Return the request of the job that was sent, if one was."""
    services = Services(gateway.settings)
    try:
        found = services.waiting_job(id_)
    finally:
        services.close()
    return found.payload if found else None


def test_a_tus_upload_becomes_one_job(gateway: Gateway) -> None:
    """Created by the headers of tus, sent in two parts that survive a power cut, and enqueued with its digest."""
    client, staging = gateway.client(), gateway.settings.staging_dir
    fields = {key: value for key, value in asked().items() if key != "size"}
    metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())
    metadata += f",filename {base64.b64encode(b'x.tgz').decode()},stores {base64.b64encode(b'primary').decode()}"
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(CONTENT)), "Upload-Metadata": metadata}
    with synced() as disk:
        made = client.post("/v1/uploads", headers=headers)
        assert (made.status_code, made.headers["Upload-Offset"]) == (201, "0")
        place = made.headers["Location"]
        assert all(disk.keeps(path) for path in staging.iterdir() if path.is_file())
        assert append(client, place, 0, CONTENT[:1000]).headers["Upload-Offset"] == "1000"
        assert [disk.keeps(path) for path in staging.glob("*/*")] == [True]
        assert offset(client, place) == 1000
        last = append(client, place, 1000, CONTENT[1000:])
    assert (last.status_code, last.headers["Upload-Offset"]) == (204, str(len(CONTENT)))
    job = last.headers["Zot-Job"]
    request = sent(gateway, job)
    assert request is not None
    source = Path(str(request.pop("source")))
    assert request == {**fields, "stores": ["primary"], "staged": True}
    assert (source.read_bytes(), source.parent) == (CONTENT, staging / job)
    assert disk.keeps(source)
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued"
    late = [client.delete(place), append(client, place, len(CONTENT), b"")]
    assert [(answer.status_code, answer.json()["type"]) for answer in late] == [(409, "urn:zot-artifacts:JobSent")] * 2
    assert source.read_bytes() == CONTENT


def test_the_version_and_the_extensions_are_described(gateway: Gateway) -> None:
    """OPTIONS tells what a client can expect; another version of tus is 412."""
    client = gateway.client()
    described = client.options("/v1/uploads")
    assert described.headers["Tus-Version"] == "1.0.0"
    assert described.headers["Tus-Extension"] == "creation,expiration,termination"
    wrong = client.post("/v1/uploads", json=asked(), headers={"Tus-Resumable": "0.2.2"})
    assert (wrong.status_code, wrong.headers["Tus-Version"]) == (412, "1.0.0")


def test_what_arrived_before_the_line_broke_stays(gateway: Gateway) -> None:
    """A client that goes away in the middle continues at the offset that HEAD returns."""
    client = gateway.client()
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    head = (
        f"PATCH {place} HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['Authorization']}\r\n"
        f"Upload-Offset: 0\r\nContent-Type: {OCTETS['Content-Type']}\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as line:
        line.sendall(head.encode() + CONTENT[:2_000_000])
    until(lambda: offset(client, place) == 2_000_000)
    until(lambda: append(client, place, 2_000_000, CONTENT[2_000_000:]).status_code == 204)  # 423 until it is noticed
    [source] = gateway.settings.staging_dir.glob("*/source")
    assert source.read_bytes() == CONTENT
    gateway.settings.staging_dir.rename(gateway.settings.home / "away")
    gateway.settings.staging_dir.touch()
    answer = client.post("/v1/uploads", json=asked())
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:zot-artifacts:Unavailable"), "it is not full"
    assert "staging directory of the gateway cannot be written: Not a directory" in answer.json()["detail"]


def test_a_wrong_offset_changes_nothing(gateway: Gateway) -> None:
    """Bytes at another offset are 409 with the right one; more than announced is 413; another type is 415."""
    client = gateway.client()
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    assert append(client, place, 0, CONTENT[:10]).status_code == 204
    for wrong in (0, 5, 11, 10**18):
        answer = append(client, place, wrong, b"x")
        assert (answer.status_code, answer.headers["Upload-Offset"]) == (409, "10")
    assert append(client, place, 10, CONTENT[10:] + b"x").status_code == 413
    assert client.patch(place, headers={"Upload-Offset": "10"}, content=b"x").status_code == 415
    assert client.patch(place, headers={**OCTETS, "Upload-Offset": "-1"}, content=b"x").status_code == 400
    there = offset(client, place)
    assert append(client, place, there, CONTENT[there:]).status_code == 204


def test_two_requests_do_not_append_at_once(gateway: Gateway) -> None:
    """While one sends, another one is 423, and the bytes are right in the end."""
    client = gateway.client()
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield CONTENT[:2_000_000]
        begun.set()
        go_on.wait(60)
        yield CONTENT[2_000_000:]

    first = threading.Thread(target=lambda: append(client, place, 0, slow()))
    first.start()
    begun.wait(60)
    until(lambda: any(each.stat().st_size for each in gateway.settings.staging_dir.glob("*/source")))
    other = gateway.client_of(client.headers["Authorization"].removeprefix("Bearer "))
    answer = until(lambda: (got := append(other, place, 0, b"x")).status_code != 409 and got)
    assert answer.status_code == 423
    go_on.set()
    first.join()
    [source] = gateway.settings.staging_dir.glob("*/source")
    assert source.read_bytes() == CONTENT


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Have the system refuse to write more bytes than that into a file."""
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))


def test_a_disk_that_takes_no_more_is_told_in_the_middle(gateway: Gateway) -> None:
    """Bytes that the disk does not take are 507, and the upload goes on from those that it took."""
    client = gateway.client()
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    with limited(2_000_000):
        answer = append(client, place, 0, CONTENT)
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:zot-artifacts:NoRoom")
    there = offset(client, place)
    assert there <= 2_000_000
    assert append(client, place, there, CONTENT[there:]).status_code == 204
    [source] = gateway.settings.staging_dir.glob("*/source")
    assert source.read_bytes() == CONTENT


def test_a_failed_put_leaves_nothing_without_a_key(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    """A PUT that fails in the middle leaves no bytes. With an idempotency key they stay, and a second PUT resumes."""
    client = gateway.client()
    digest = base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()
    with limited(2_000_000):
        answer = client.put(
            "/v1/objects/releases/app.tgz", content=CONTENT, headers={"Repr-Digest": f"sha-256=:{digest}:"}
        )
    assert answer.status_code == 507
    assert list(gateway.settings.staging_dir.iterdir()) == []
    headers = {"Repr-Digest": f"sha-256=:{digest}:", "Idempotency-Key": uuid4().hex}
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    named = {**headers, "Host": "x", "Authorization": client.headers["Authorization"], "Content-Length": len(CONTENT)}
    head = "PUT /v1/objects/releases/app.tgz HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in named.items())
    with caplog.at_level(logging.INFO):
        with socket.create_connection((host, int(port))) as line:
            line.sendall(f"{head}\r\n".encode() + CONTENT[:1_000_000])
        until(lambda: "PUT /v1/objects/releases/app.tgz 400" in caplog.text)
    [state] = gateway.settings.staging_dir.glob("*.upload")
    assert sent(gateway, state.stem) is None
    [source] = gateway.settings.staging_dir.glob("*/source")
    assert source.read_bytes() == CONTENT[:1_000_000]
    assert client.put("/v1/objects/releases/app.tgz", content=CONTENT, headers=headers).status_code == 202
    assert source.read_bytes() == CONTENT


def test_a_new_upload_reads_no_ended_ones(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many uploads a day had, a new one reads the states of those alone whose bytes are there."""
    client, read = gateway.client(), []
    for _ in range(10):
        place = client.post("/v1/uploads", json=asked(b"x")).headers["Location"]
        assert append(client, place, 0, b"x").status_code == 204
        shutil.rmtree(gateway.settings.staging_dir / place.rpartition("/")[2])  # as a worker does in the end
    find = Staging.find
    monkeypatch.setattr(Staging, "find", lambda self, id_: (read.append(id_), find(self, id_))[1])
    assert client.post("/v1/uploads", json=asked()).status_code == 201
    assert len(read) == 1


def test_an_object_is_put_in_one_request(gateway: Gateway) -> None:
    """PUT with the digest answers with the job; without it, or with another length, nothing is enqueued."""
    client = gateway.client()
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
    headers = {"Repr-Digest": digest, "Content-Type": "application/gzip", "Idempotency-Key": uuid4().hex}
    answers = [client.put("/v1/objects/releases/a%20b", content=CONTENT, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["job"] == answers[1].json()["job"]
    request = sent(gateway, answers[0].json()["job"])
    assert request is not None
    assert (request["key"], request["content_type"]) == ("a b", "application/gzip")
    assert client.put("/v1/objects/releases/a", content=CONTENT).status_code == 400
    assert client.put("/v1/objects/releases/a", content=CONTENT, headers={"Repr-Digest": "md5=:x:"}).status_code == 400
    assert client.put("/v1/objects/releases/a", content=iter([b"x"]), headers=headers).status_code == 400


def test_both_forms_take_every_field_of_an_upload(gateway: Gateway) -> None:
    """The headers of tus and of a PUT name stores, metadata, tags, storage classes and headers like a request does."""
    client = gateway.client()
    digest = hashlib.sha256(b"").hexdigest()
    wanted = {
        "metadata": {"build": "7"}, "tags": {"team": "core + ops", "kept": ""}, "storage_classes": {"primary": "COLD"},
        "stores": ["primary", "dr"], "content_language": "de", "cache_control": "no-store",
    }  # fmt: skip
    written = {
        "metadata": "build=7", "tags": "team=core%20%2B%20ops&kept=", "storage_classes": "primary=COLD",
        "stores": "primary,dr", "content_language": "de", "cache_control": "no-store",
    }  # fmt: skip

    def encoded(**fields: str) -> str:
        return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())

    at = encoded(bucket="releases", key="tus", sha256=digest, **written)
    made = client.post("/v1/uploads", headers={"Upload-Length": "0", "Upload-Metadata": at, "Tus-Resumable": "1.0.0"})
    repr_digest = f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    headers = {"Repr-Digest": repr_digest, "Upload-Metadata": encoded(**written), "Content-Encoding": "gzip"}
    put = client.put("/v1/objects/releases/put", content=b"", headers=headers)
    assert (made.status_code, put.status_code) == (201, 202), (made.text, put.text)
    for job, more in ((made.json()["upload"], {}), (put.json()["job"], {"content_encoding": "gzip"})):
        request = sent(gateway, job)
        assert request is not None
        assert request | wanted | more == request
    for wrong in ("x", "a=1&a=2", "a=%ff"):
        refused = client.put(
            "/v1/objects/releases/k", content=b"", headers={**headers, "Upload-Metadata": encoded(tags=wrong)}
        )
        assert (refused.status_code, "tags" in refused.text) == (400, True)


def test_a_size_beside_another_length_is_refused(gateway: Gateway) -> None:
    """The length that a request announces is the size: a tus upload or a PUT whose metadata says another is 400."""
    client, digest = gateway.client(), hashlib.sha256(CONTENT).digest()

    def metadata(**fields: str) -> str:
        return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())

    named = {"bucket": "releases", "key": "app.tgz", "sha256": digest.hex()}
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(CONTENT))}
    put = {"Repr-Digest": f"sha-256=:{base64.b64encode(digest).decode()}:"}
    for size in ("1", "0", "3000001", "x"):
        wrong = client.post("/v1/uploads", headers={**tus, "Upload-Metadata": metadata(**named, size=size)})
        also = client.put(
            "/v1/objects/releases/a", content=CONTENT, headers={**put, "Upload-Metadata": metadata(size=size)}
        )
        assert [(each.status_code, "size is" in each.json()["detail"]) for each in (wrong, also)] == [(400, True)] * 2
    assert list(gateway.settings.staging_dir.glob("*/source")) == []
    same = client.post("/v1/uploads", headers={**tus, "Upload-Metadata": metadata(**named, size=str(len(CONTENT)))})
    assert (same.status_code, same.headers["Upload-Length"]) == (201, str(len(CONTENT)))


def test_an_empty_upload_is_complete_at_once(gateway: Gateway) -> None:
    """No byte has to be sent for none; a token that sends bytes sees the job, and one that names files does not."""
    sender, importer = (gateway.client(verbs=(verb,), name=verb) for verb in (TokenVerb.UPLOAD, TokenVerb.IMPORT))
    made = sender.post("/v1/uploads", json=asked(b""))
    assert made.json()["complete"]
    assert sent(gateway, made.headers["Zot-Job"]) is not None
    answers = [client.get(f"/v1/jobs/{made.headers['Zot-Job']}").status_code for client in (sender, importer)]
    assert answers == [200, 404]


def test_an_upload_belongs_to_its_token(gateway: Gateway) -> None:
    """Another token neither sees, continues nor ends it; a prefix and a verb are held to; keys are checked."""
    client, other = gateway.client(name="one"), gateway.client(name="two")
    reader = gateway.client(verbs=(TokenVerb.READ,), name="reader")
    below = gateway.client("releases/ci/", name="below")
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    same = {"Idempotency-Key": uuid4().hex}
    keyed = [each.post("/v1/uploads", json=asked(), headers=same).headers["Location"] for each in (client, other)]
    assert keyed[0] != keyed[1]
    assert client.post("/v1/uploads", json=asked(size=5), headers=same).status_code == 422
    assert other.head(place).status_code == append(other, place, 0, b"x").status_code == 404
    assert other.delete(place).status_code == 404
    assert reader.post("/v1/uploads", json=asked()).status_code == 403
    assert below.post("/v1/uploads", json=asked()).status_code == 403
    assert below.post("/v1/uploads", json=asked(key="ci/a")).status_code == 201
    for wrong in ({"key": "../a"}, {"bucket": "zot-probe"}, {"source": "/etc/passwd"}, {"staged": True}, {"size": -1},
                  {"sha256": "x"}, {"stores": ["nope"]}, {"nope": 1}):  # fmt: skip
        assert gateway.client("*", name=uuid4().hex).post("/v1/uploads", json=asked(**wrong)).status_code == 400, wrong
    for bad in ("..", "..%2f..%2fcatalogue", "x" * 300, ".upload"):
        assert client.head(f"/v1/uploads/{bad}").status_code in {400, 404}
    assert gateway.context.catalogue.access_tokens.revoke("one", clock.now()) == 1
    less = gateway.client("releases/ci/", name="one")
    assert less.head(place).status_code == append(less, place, 0, b"x").status_code == 403


def test_an_upload_ends_by_delete_and_by_age(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A given-up upload leaves nothing, and one that is not continued expires."""
    client = gateway.client()
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    assert client.delete(place).status_code == 204
    assert client.head(place).status_code == 404
    assert list(gateway.settings.staging_dir.iterdir()) == []
    headers = {"Idempotency-Key": "again"}
    place = client.post("/v1/uploads", json=asked(), headers=headers).headers["Location"]
    append(client, place, 0, CONTENT[:10])
    later = clock.now() + timedelta(days=2)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert client.head(place).status_code == 404
    monkeypatch.undo()
    assert offset(client, place) == 10


def test_the_same_upload_again_leaves_the_bytes_to_its_job(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of an upload whose job waits for longer than uploads are kept is that job, whose bytes stay."""
    client, key = gateway.client(), {"Idempotency-Key": "build-17"}
    place = client.post("/v1/uploads", json=asked(), headers=key).headers["Location"]
    assert append(client, place, 0, CONTENT).status_code == 204
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + timedelta(days=3))
    again = client.post("/v1/uploads", json=asked(), headers=key)
    assert (again.headers["Location"], again.json()["complete"]) == (place, True)
    [source] = gateway.settings.staging_dir.glob("*/source")
    assert source.read_bytes() == CONTENT


def test_an_expired_upload_whose_job_waits_keeps_its_bytes(gateway: Gateway) -> None:
    """A gateway that died before it recorded its job gives the bytes of that job to no new upload, however late."""
    client, headers = gateway.client(), {"Idempotency-Key": uuid4().hex}
    place = client.post("/v1/uploads", json=asked(), headers=headers).headers["Location"]
    job = append(client, place, 0, CONTENT).headers["Zot-Job"]
    staging = Staging(gateway.settings)
    upload = staging.find(job)
    assert upload is not None
    staging._write(replace(upload, sent=False))
    os.utime(gateway.settings.staging_dir / f"{job}.upload", (0, 0))
    assert staging.find(job) is None
    other = client.post("/v1/uploads", json=asked(key="other.tgz"), headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "urn:zot-artifacts:IdempotencyMismatch")
    again = client.post("/v1/uploads", json=asked(), headers=headers)
    assert (again.status_code, again.headers["Zot-Job"], again.headers["Upload-Offset"]) == (
        201,
        job,
        str(len(CONTENT)),
    )
    assert staging.source(upload).read_bytes() == CONTENT


def test_a_job_that_has_taken_its_bytes_is_not_asked_for_again(gateway: Gateway) -> None:
    """Once the ledger has the job of an upload, no byte of it is wanted, whatever the gateway has recorded."""
    client, headers = gateway.client(), {"Idempotency-Key": uuid4().hex}
    place = client.post("/v1/uploads", json=asked(), headers=headers).headers["Location"]
    job = append(client, place, 0, CONTENT).headers["Zot-Job"]
    staging, request = Staging(gateway.settings), sent(gateway, job)
    upload = staging.find(job)
    assert upload is not None
    assert request is not None
    gateway.context.catalogue.ledger.acquire(
        job, "upload", request, owner="test", writes_to=None, parent=None, now=clock.now(),
        lease=gateway.settings.jobs.lease,
    )  # fmt: skip
    staging.source(upload).write_bytes(CONTENT[:5])
    staging._write(replace(upload, sent=False))
    for answer in (client.head(place), client.post("/v1/uploads", json=asked(), headers=headers)):
        assert (answer.headers["Upload-Offset"], answer.headers["Zot-Job"]) == (str(len(CONTENT)), job)


def test_too_much_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    """What is larger than the setting is 413, and what the disk has no room for 507."""
    client = gateway.client()
    assert client.post("/v1/uploads", json=asked() | {"size": (1 << 40) + 1}).status_code == 413
    assert client.post("/v1/uploads", json=asked() | {"size": 1 << 40}).status_code == 507
    assert list(gateway.settings.staging_dir.iterdir()) == []


def test_a_body_that_trickles_is_ended(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bytes than the least in the window end the request, and what arrived stays."""
    monkeypatch.setattr(uploads, "_WINDOW", -1.0)
    client = gateway.client()
    place = client.post("/v1/uploads", json=asked()).headers["Location"]
    assert append(client, place, 0, b"x" * 100).status_code == 408
    assert offset(client, place) == 100


def test_without_a_broker_complete_bytes_wait(settings: Settings, open_gateway: Any) -> None:
    """The last byte is answered by 503 until the job can be sent; HEAD does not say that it is complete either."""
    with open_gateway(settings) as gateway:
        client = gateway.client()
        place = client.post("/v1/uploads", json=asked()).headers["Location"]
        assert append(client, place, 0, CONTENT).status_code == 503
        assert client.head(place).status_code == 503


def prepared(settings: Settings) -> str:
    """Make the catalogue of a gateway, and return a token that may upload."""
    settings.prepare()
    context = Context.open(settings)
    record, text = new_token("ci", ["releases"], [TokenVerb.UPLOAD], now=clock.now(), expires_at=None)
    context.catalogue.access_tokens.add(record)
    context.close()
    return text


def test_a_client_that_goes_in_the_middle_of_a_request_is_no_bug(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Its line may be cut in the JSON that begins an upload; the gateway logs the request, and no traceback."""
    text = prepared(settings)
    with caplog.at_level(logging.INFO), serving(settings) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {text}\r\nContent-Length: 99\r\n\r\n{{"
            )
            connection.sendall(head.encode())
        until(lambda: "POST /v1/uploads" in caplog.text)
    assert "Traceback" not in caplog.text


def test_a_killed_gateway_loses_no_byte_and_sends_one_job(tmp_path: Path, broker: Settings) -> None:
    """After kill -9 in an upload it continues there; after one between the job and its record, it is complete."""
    text = prepared(broker)
    assert broker.broker is not None
    with (
        GatewayProcess(tmp_path, broker.home, broker.broker.get_secret_value()) as process,
        httpx.Client(base_url=process.url, headers={"Authorization": f"Bearer {text}"}, timeout=60) as client,
    ):
        place = client.post("/v1/uploads", json=asked()).headers["Location"]

        def broken() -> Iterator[bytes]:
            yield CONTENT[:2_000_000]
            staged = broker.staging_dir / place.rpartition("/")[2] / "source"
            until(lambda: staged.stat().st_size > 0)
            process.kill()
            yield CONTENT[2_000_000:]

        with pytest.raises(httpx.TransportError):
            append(client, place, 0, broken())
        process.restart()
        there = offset(client, place)
        assert 0 < there <= 2_000_000
        job = append(client, place, there, CONTENT[there:]).headers["Zot-Job"]
        staging = Staging(broker)
        upload = staging.find(job)
        assert upload is not None
        staging._write(type(upload)(upload.id, upload.token, upload.size, upload.request, sent=False))
        assert offset(client, place) == len(CONTENT)
        assert text.rpartition("_")[2] not in process.log
    services = Services(broker)
    found = services.waiting_job(job)
    services.close()
    assert found is not None
    assert Path(str(found.payload["source"])).read_bytes() == CONTENT
