"""The plain requests of small writes: which answer is taken for that of which request, and what is kept open."""

import socket
import threading
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest

from tests.waiting import WITHIN
from worker.storage.cloud import plain_requests
from worker.storage.cloud.error_mapping import Origin
from worker.storage.cloud.plain_requests import Answer, BucketEndpoint, RealObject
from worker.storage.cloud.small_writes import PlainWrites, Provider
from worker.storage.errors import StorageError
from worker.storage.transfer.send_in_slices import SLICE

EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"
WRITTEN = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(WITHIN)
        yield made


def _url(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}/bucket"


def _writes(listening: socket.socket) -> PlainWrites:
    """Return the small writes of a store whose answer gives its status alone."""
    provider = Provider(
        lambda _real: BucketEndpoint(_url(listening), lambda _method, _url, headers: headers),
        lambda answer: {"status": answer.status},
        lambda _answer: None,
        (),
        lambda _error, _origin, what: StorageError(what),
    )
    return PlainWrites(Origin("far", _url(listening), None), provider)


def _sent(endpoint: BucketEndpoint, name: str, method: str = "PUT") -> Answer:
    return endpoint.send(method, f"{endpoint.url}/{name}", {"Content-Length": "0"}, b"", patience=WITHIN)


def test_a_late_answer_is_not_that_of_the_next_write(listening: socket.socket) -> None:
    """After an interim answer the connection is closed: the final answer would count as that of the next request."""

    def serve() -> None:
        first, _ = listening.accept()
        with first:
            first.recv(1 << 16)
            first.sendall(EARLY)
            if first.recv(1 << 16):  # a second request
                first.sendall(WRITTEN)
                return
        second, _ = listening.accept()
        with second:
            second.recv(1 << 16)
            second.sendall(REFUSED)

    server = threading.Thread(target=serve)
    server.start()
    endpoint = BucketEndpoint(_url(listening), lambda _method, _url, headers: headers)
    statuses = [_sent(endpoint, name).status for name in ("one", "two")]
    server.join(WITHIN)
    endpoint.free.pop().close()
    assert statuses == [103, 412]


def test_connections_to_few_buckets_are_kept(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose logical buckets are real ones keeps connections to a bounded number of them."""
    monkeypatch.setattr(plain_requests, "KEPT_BUCKETS", 2)
    served = []

    def serve() -> None:
        for _ in range(3):
            connection, _address = listening.accept()
            connection.settimeout(WITHIN)
            connection.recv(1 << 16)
            connection.sendall(WRITTEN)
            served.append(connection)

    server = threading.Thread(target=serve)
    server.start()
    writes = _writes(listening)
    for real in ("one", "two", "three"):
        assert writes.put(RealObject(real, "key", f"{real}/key"), b"", {}) == {"status": 200}
    server.join(WITHIN)
    assert served[0].recv(1) == b""
    for connection in served[1:]:
        connection.settimeout(0)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(WITHIN)
    writes.close()
    for connection in served:
        assert connection.recv(1) == b""
        connection.close()


@pytest.mark.parametrize("size", [0, 1000, SLICE + 1, 3 * SLICE])
def test_a_request_is_what_its_headers_say(listening: socket.socket, size: int) -> None:
    """The store gets one request: its host, its headers and exactly the bytes, however many sends they take."""
    data = bytes(range(256)) * (size // 256 + 1)
    data, got = data[:size], bytearray()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(WITHIN)
            while not got.endswith(b"\r\n\r\n" + data) and (received := connection.recv(1 << 16)):
                got.extend(received)
            connection.sendall(WRITTEN)

    server = threading.Thread(target=serve)
    server.start()
    endpoint = BucketEndpoint(_url(listening), lambda _method, _url, headers: headers)
    headers = {"Content-Length": str(size), "x-amz-meta-a": "b"}
    answer = endpoint.send("PUT", f"{endpoint.url}/a%20b", headers, data, patience=WITHIN)
    server.join(WITHIN)
    endpoint.close()
    assert answer.is_written
    host = f"127.0.0.1:{listening.getsockname()[1]}"
    lines = ("PUT /bucket/a%20b HTTP/1.1", f"Host: {host}", f"Content-Length: {size}", "x-amz-meta-a: b", "", "")
    assert bytes(got) == "\r\n".join(lines).encode() + data


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "ä", "a\x7f"])
def test_a_header_that_the_store_would_read_otherwise_is_not_sent(listening: socket.socket, value: str) -> None:
    """No value ends its line and begins another header, and no key is normalised; the SDK writes the object then."""
    writes = _writes(listening)
    assert writes.put(RealObject("one", "key", "one/key"), b"", {"x-amz-meta-a": value}) is None
    assert writes.put(RealObject("one", "a/../key", "one/a/../key"), b"", {}) is None
    listening.settimeout(0)
    with pytest.raises(BlockingIOError):
        listening.accept()


ANSWERS = {
    "written": (WRITTEN, True),
    "created, with many headers": (
        b'HTTP/1.1 201 Created\r\nETag: "a:b"\r\nX-Amz-Id-2:  c \r\ncontent-length: 0\r\nDate: Fri\r\n\r\n',
        True,
    ),
    "refused, with a body": (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope", True),
    "written, with a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", True),
    "in chunks": (b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
    "one of several": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
    "the last one": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", False),
    "an older protocol": (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
    "a header twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: a\r\nVia: b\r\n\r\n", True),
    "a folded header": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nVia: a\r\n b\r\n\r\n", True),
}


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_the_library_makes_of_it(listening: socket.socket, name: str, in_pieces: bool) -> None:
    """Status, headers, body and the fate of the connection do not depend on how an answer is read, or arrives."""
    said, is_kept = ANSWERS[name]

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(1 << 16)
            for piece in (said[:12], said[12:40], said[40:]) if in_pieces else (said,):
                connection.sendall(piece)
            connection.settimeout(WITHIN)
            connection.recv(1)  # until the client ends it

    server = threading.Thread(target=serve)
    server.start()
    endpoint = BucketEndpoint(_url(listening), lambda _method, _url, headers: headers)
    answer = _sent(endpoint, "key")
    assert bool(endpoint.free) == is_kept
    endpoint.close()
    server.join(WITHIN)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with HTTPResponse(ours, method="PUT") as reply:
            reply.begin()
            body = reply.read()
    headers = {header.lower(): value.rstrip(" ") for header, value in reply.headers.items()}
    assert answer == Answer(reply.status, headers, body)
