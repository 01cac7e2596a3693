"""Answers that no server of HTTP gives: every verb of every driver raises a StorageError, or what it may return."""

import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest

from tests.conformance.bodies import digest_of, some_bytes, source
from tests.conformance.targets import AZURITE_API, PART
from worker.storage import AzureConfig, GcsConfig, Match, S3Config, Store, StoreConfig
from worker.storage.azure import client as azure_client
from worker.storage.cloud.response_body import LONGEST_ANSWER
from worker.storage.configured_stores import open_driver
from worker.storage.driver import StaleUpload, WriteInfo
from worker.storage.errors import StorageError
from worker.storage.gcs import client as gcs_client
from worker.storage.s3 import providers

BUCKET = "releases"
OBJECT = (
    'ETag: "abc"',
    "Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT",
    "x-ms-blob-type: BlockBlob",
    "Content-Length: 5",
)


def _raw(body: bytes = b"hello", status: str = "200 OK", *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def _with(*lines: str) -> bytes:
    return _raw(b"hello", "200 OK", *lines, *OBJECT)


def _json(body: bytes, status: str = "200 OK") -> bytes:
    return _raw(body, status, "Content-Type: application/json", f"Content-Length: {len(body)}")


def _xml(body: bytes, status: str = "200 OK") -> bytes:
    return _raw(body, status, "Content-Type: application/xml", f"Content-Length: {len(body)}")


ANSWERS = (
    b"",
    b"HTTP/1.1 2",
    b"hello world",
    b"HTTP/1.1 abc OK\r\n\r\n",
    _raw(b"", "999 What", "Content-Length: 0"),
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + _with(),
    _with("Content-Length: 7"),
    _with('ETag: "other"', "x-amz-meta-sha256: aa", "x-amz-meta-sha256: bb", "x-ms-meta-sha256: aa"),
    _raw(b"hello", "200 OK", "Content-Length: five"),
    _raw(b"hello", "200 OK", "Content-Length: -5", *OBJECT[:3]),
    _raw(b"hello", "200 OK", f"Content-Length: {'9' * 5000}", *OBJECT[:3]),
    _raw(b"hel", "200 OK", *OBJECT),
    _with("Content-Encoding: gzip"),
    _with("Content-Encoding: x-\xf1"),
    _raw(b"zz\r\nhello", "200 OK", "Transfer-Encoding: chunked", *OBJECT[:3]),
    _raw(b"5\r\nhel", "200 OK", "Transfer-Encoding: chunked", *OBJECT[:3]),
    _with(f"X-Long: {'a' * 70_000}"),
    _with(*(f"X-{number}: a" for number in range(200))),
    _with("no colon here"),
    _with('ETag: "a\x00b"', "x-amz-meta-a: \xff", "x-ms-meta-a: \xff", "Last-Modified: \xff"),
    _with("Last-Modified: Wed, 21 Oct 30345 07:28:00 GMT", "x-ms-creation-time: Wed, 21 Oct 30345 07:28:00 GMT"),
    _with("x-ms-blob-committed-block-count: many", "x-amz-mp-parts-count: many", "x-amz-missing-meta: x"),
    _with("x-amz-object-lock-retain-until-date: never", "x-ms-tag-count: many", "Content-Range: bytes a-b/c"),
    _xml(b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>app</Key><Si"),
    _xml(b"<ListBucketResult><Contents/><Contents><Key/></Contents></ListBucketResult>"),
    _xml(b"<EnumerationResults><Blobs><Blob/><Blob><Name/></Blob></Blobs></EnumerationResults>"),
    _xml('<?xml version="1.0" encoding="utf-16"?><a/>'.encode("utf-16")),
    _json(b"null"),
    _json(b"[]"),
    _json(b"[" * 100_000),
    _json(b'{"kind": "storage#objects", "items": [null, 5, {}, {"name": 5}]}'),
    _json(b'{"name": ["x"], "generation": {}, "size": null, "updated": 7, "done": false, "resource": 5}'),
    _json(b'{"error": {"errors": ["x"], "message": null}}', "400 Bad Request"),
    _raw(b"", "302 Found", "Location: file:///etc/passwd", "Content-Length: 0"),
    _raw(b"", "307 Temporary Redirect", "Location: http://[bad", "Content-Length: 0"),
    _raw(b"", "308 Resume", "Range: bytes=0-zz", "Content-Length: 0"),
    _xml(b"<Error><Code>Acc", "403 Forbidden"),
    _raw(b"\xff\xfe\x00", "404 Not Found", "Content-Length: 3"),
    _raw(b"", "429 Slow", "Retry-After: Wed, 21 Oct 30345 07:28:00 GMT", "Content-Length: 0"),
    _raw(b"", "503 Busy", "Retry-After: -5", "Content-Length: 0"),
)
STALE = StaleUpload("far: an upload", datetime(2026, 1, 1, tzinfo=UTC), ("real", "releases/app", "5"))
ONE = WriteInfo(1, digest_of(b"x").sha256)
VERBS: dict[str, Callable[..., object]] = {
    "stat": lambda store, _token: store.stat_object(BUCKET, "app"),
    "read": lambda store, _token: b"".join(store.read_object(BUCKET, "app", expected=digest_of(b"hello"))),
    "range": lambda store, _token: b"".join(store.read_object_range(BUCKET, "app", 1, 3)),
    "list": lambda store, _token: list(store.list_objects(BUCKET)),
    "write": lambda store, _token: store.write_object(BUCKET, "app", source(b"x"), condition="create_only"),
    "write_parts": lambda store, _token: store.write_object(BUCKET, "app", source(some_bytes(PART + 1))),
    "upload_part": lambda store, token: store._driver.upload_part(BUCKET, "app", token, 1, b"x"),
    "list_parts": lambda store, token: store._driver.list_parts(BUCKET, "app", token),
    "complete": lambda store, token: store._driver.complete_upload(BUCKET, "app", token, [], ONE),
    "abort": lambda store, token: store.abort_upload(BUCKET, "app", token),
    "delete": lambda store, _token: store.delete_object(BUCKET, "app", condition=Match("5")),
    "copy": lambda store, _token: store._driver.copy(BUCKET, "app", "zot-quarantine", "app"),
    "check": lambda store, _token: store.health_check(),
    "stale": lambda store, _token: list(store.iter_stale_uploads()),
    "remove_stale": lambda store, _token: store.remove_stale_upload(STALE),
    "create_bucket": lambda store, _token: store.create_bucket(BUCKET),
    "checksums": lambda store, _token: store.refuses_damage(),
    "advice": lambda store, _token: store.advice(),
}


class RawServer:
    """Reads each request and sends `answer` as it is, and `piece` after it until `most` bytes. A context manager.

    It keeps the heads of the requests in `asked`, and counts what it sends in `sent`.
    """

    def __init__(self) -> None:
        self.answer = b""
        self.piece, self.most = b"", 0
        self.asked: list[bytes] = []
        self.sent = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client, self.answer), daemon=True).start()

    def _serve(self, client: socket.socket, answer: bytes) -> None:
        with client, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                if not (data := client.recv(65536)):
                    return
                received += data
            head, _, body = received.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            left = int(lengths[0].partition(b":")[2]) - len(body) if lengths else 0
            if b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            while left > 0 and (data := client.recv(1 << 20)):
                left -= len(data)
            self.asked.append(head)
            client.sendall(answer)
            sent = 0
            while sent < self.most:
                client.sendall(self.piece)
                sent += len(self.piece)
                self.sent += len(self.piece)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


def _config(kind: str, endpoint: str) -> StoreConfig:
    if kind == "s3":
        keys = {"access_key_id": "a", "secret_access_key": "b"}
        return S3Config.model_validate(
            {"bucket": "real", "endpoint": endpoint, "read_back": False, "part_size": PART} | keys
        )
    if kind == "gcs":
        return GcsConfig.model_validate(
            {
                "bucket": "real",
                "endpoint": endpoint,
                "anonymous": True,
                "project": "t",
                "read_back": False,
                "part_size": PART,
            }
        )
    own = {"account_url": f"{endpoint}/account", "account_key": "a2V5", "api_version": AZURITE_API}
    return AzureConfig.model_validate({"container": "real", "read_back": False, "part_size": PART} | own)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDKs close no broken connection
@pytest.mark.parametrize(("kind", "token"), [("s3", "writer:upload"), ("gcs", "token"), ("azure", "token")])
def test_no_answer_leaves_a_driver_as_another_exception(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, token: str
) -> None:
    """Whatever a gateway sends, each verb ends, and what it raises is a StorageError that names the store."""
    monkeypatch.setattr(providers, "ATTEMPTS", 1)
    monkeypatch.setattr(azure_client, "RETRIES", 0)
    monkeypatch.setattr(gcs_client, "RETRY_FOR", 0.01)
    store = Store(open_driver("far", _config(kind, server.endpoint)), spool_dir=tmp_path)
    wrong = []
    with _no_garbage_collection():
        for server.answer in ANSWERS:
            for verb, ask in VERBS.items():
                try:
                    ask(store, token)
                except StorageError as error:
                    if "far" not in error.message:
                        wrong.append((verb, server.answer[:80], error.message))
                except Exception as error:  # noqa: BLE001
                    wrong.append((verb, server.answer[:80], repr(error)))
    assert wrong == []
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "500 Broken"])
@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_an_answer_without_end_fills_no_memory(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: str
) -> None:
    """An answer that is no object is given up where it is longer than any that a store gives."""
    monkeypatch.setattr(providers, "ATTEMPTS", 1)
    monkeypatch.setattr(azure_client, "RETRIES", 0)
    monkeypatch.setattr(gcs_client, "RETRY_FOR", 0.01)
    store = Store(open_driver("far", _config(kind, server.endpoint)), spool_dir=tmp_path)
    server.answer = _raw(b"", status, "Content-Type: application/xml", "Transfer-Encoding: chunked", *OBJECT[:3])
    server.piece, server.most = b"100000\r\n" + b"<" * 0x100000 + b"\r\n", 8 * LONGEST_ANSWER
    with pytest.raises(StorageError, match="far"):
        VERBS["list"](store, "token")
    assert server.sent < server.most / 2
    for verb in ("stat", "read", "write"):  # a write is done if the head of the answer says so
        server.sent = 0
        with contextlib.suppress(StorageError):
            VERBS[verb](store, "token")
        assert server.sent < server.most / 2, verb
    store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(("kind", "token"), [("s3", "writer:upload"), ("gcs", "token"), ("azure", "token")])
def test_a_store_sends_no_request_elsewhere(
    server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, token: str, status: str
) -> None:
    """No request, with an object's bytes or a signature, goes to the host that a store's answer names.

    The SDK of S3 does not lose such an answer either, and asks for the bucket at most once.
    """
    monkeypatch.setattr(providers, "ATTEMPTS", 1)
    monkeypatch.setattr(azure_client, "RETRIES", 0)
    monkeypatch.setattr(gcs_client, "RETRY_FOR", 0.01)
    store = Store(open_driver("far", _config(kind, server.endpoint)), spool_dir=tmp_path)
    with RawServer() as other:
        other.answer = _raw(b"", "404 Not Found", "Content-Length: 0")
        server.answer = _raw(
            b"", status, f"Location: {other.endpoint}/real/x", "Content-Length: 0", "Connection: close"
        )
        told = []
        for ask in VERBS.values():
            try:
                ask(store, token)
            except StorageError as error:
                told.append(error.message)
        if kind == "s3":
            assert [message for message in told if "correct `region` or `endpoint`" not in message] == []
        assert 0 < len(server.asked) < 4 * len(VERBS)
        assert other.asked == []
    store.close()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect no garbage: pytest cannot tell of an open socket while deep JSON is at the limit of the recursion."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_BLOB = (
    b"<Blob><Name>other/app</Name><Properties><Etag>x</Etag><Content-Length>1</Content-Length>"
    b"<BlobType>BlockBlob</BlobType></Properties></Blob>"
)
LISTINGS = {
    "s3": _xml(b"<ListBucketResult><Contents><Key>other/app</Key><Size>1</Size></Contents></ListBucketResult>"),
    "gcs": _json(b'{"kind": "storage#objects", "items": [{"name": "other/app", "size": "1", "generation": "5"}]}'),
    "azure": _xml(b"<EnumerationResults><Blobs>" + _BLOB + b"</Blobs></EnumerationResults>"),
}
"""A listing with an object of another prefix."""


@pytest.mark.parametrize("kind", LISTINGS)
def test_a_store_that_ignores_prefixes_shows_no_other_bucket(server: RawServer, kind: str) -> None:
    """A key outside of the prefix that was asked for ends the listing, so that nothing acts on what is elsewhere."""
    store = Store(open_driver("far", _config(kind, server.endpoint)))
    server.answer = LISTINGS[kind]
    asked: list[Callable[[], object]] = [
        lambda: list(store.list_objects(BUCKET)),
        lambda: list(store.list_objects(BUCKET, "part/")),
        lambda: store.bucket_exists(BUCKET),
    ]
    if kind == "gcs":  # the others' uploads have no names below a prefix
        asked.append(lambda: list(store.iter_stale_uploads()))
    for ask in asked:
        with pytest.raises(StorageError, match="ignores prefixes"):
            ask()
    store.close()
