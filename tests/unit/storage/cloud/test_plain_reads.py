"""The plain requests of small reads: which answers count, and which connections are used again."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.servers.tls import Authority, TlsProxy
from tests.waiting import WITHIN
from worker.storage.cloud import small_reads
from worker.storage.cloud.plain_requests import BucketEndpoint, BucketEndpoints, RealObject
from worker.storage.cloud.small_reads import AHEAD, PlainReads, whole_object
from worker.storage.driver import Digest, SmallRead
from worker.storage.errors import Unavailable

BODY = b"x" * 5000
SHA256 = "ab" * 32
PLAIN = f'HTTP/1.1 200 OK\r\nETag: "v1"\r\nContent-Length: {len(BODY)}\r\nX-Amz-Meta-Sha256: {SHA256}\r\n\r\n'.encode()
OBJECT = RealObject("bucket", "a b", "bucket/a b")


def reads_at(url: str) -> PlainReads:
    return PlainReads(
        lambda _real: BucketEndpoint(f"{url}/bucket", lambda method, _, headers: {**headers, "X-Signed": method}),
        lambda answer: whole_object(answer, "x-amz-meta-sha256", answer.headers.get("etag", "").strip('"')),
        (),
    )


@contextmanager
def serving(answers: Callable[[int], list[bytes]]) -> Iterator[tuple[PlainReads, list[bytes]]]:
    """Yield the reads of a store that gives the pieces of `answers` to each request by number, and its connections."""
    requests: list[bytes] = []
    counting = threading.Lock()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):  # the other end may close it before it has read all
                while request := connection.recv(1 << 16):
                    with counting:
                        requests.append(request)
                        number = len(requests)
                    for piece in answers(number):
                        connection.sendall(piece)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        reads = reads_at(url)
        yield reads, requests
        reads.close()


def test_objects_are_read_over_one_connection() -> None:
    """Bytes, version and digest are those of the answer, however it is cut, and the connection is used again."""
    cuts = ([PLAIN + BODY], [PLAIN[:20], PLAIN[20:], BODY[:1], BODY[1:]], [PLAIN, BODY])
    with serving(lambda number: cuts[number - 1]) as (reads, requests):
        for _ in cuts:
            found = reads.read(OBJECT, len(BODY))
            assert found is not None
            assert (bytes(found.data), found.version, found.sha256) == (BODY, "v1", SHA256)
            assert len(reads._endpoints.get("bucket").free) == 1  # type: ignore[union-attr]
    assert all(each.startswith(b"GET /bucket/a%20b HTTP/1.1\r\nHost: 127.0.0.1:") for each in requests)
    assert all(b"X-Signed: GET\r\n\r\n" in each for each in requests)


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN.replace(b"200 OK", b"404 Not Found") + BODY,
        PLAIN.replace(b"200 OK", b"206 Partial Content") + BODY,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + PLAIN + BODY,
        PLAIN.replace(b"5000", b"4999") + BODY[1:],
        PLAIN.replace(b"5000", b"5001") + BODY + b"x",
        PLAIN.replace(b"Content-Length: 5000", b"X: y") + BODY,
        PLAIN.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + BODY,
        PLAIN + BODY + b"more",
        PLAIN.replace(b"OK", b"O" * 20_000) + BODY,
        PLAIN.replace(b"Content-Length", b"Content-Length: 4999\r\nContent-Length") + BODY,
        PLAIN.replace(b'"v1"', b'"v1"\n Content-Length: 4999') + BODY,
    ],
    ids=["404", "206", "103", "shorter", "longer", "no length", "chunked", "more", "long head", "two lengths", "LF"],
)
def test_any_other_answer_is_left_to_the_sdk(answer: bytes) -> None:
    """What is not plainly the object counts for nothing, and its connection is not used for the next one."""
    with serving(lambda number: [answer] if number == 1 else [PLAIN + BODY]) as (reads, _):
        assert reads.read(OBJECT, len(BODY)) is None
        assert not reads._endpoints.get("bucket").free  # type: ignore[union-attr]
        assert reads.read(OBJECT, len(BODY)) is not None


def test_headers_of_users_and_repeated_ones_are_plain() -> None:
    """Metadata in any encoding, under any name that HTTP allows, and a header that is there twice need no SDK."""
    extra = "X-Amz-Meta-Built_by.x: Zoë\r\nVary: Origin\r\nVary: Accept-Encoding\r\n".encode()
    with serving(lambda _: [PLAIN.replace(b"ETag", extra + b"ETag") + BODY]) as (reads, _):
        assert reads.read(OBJECT, len(BODY)) is not None


def test_an_answer_without_a_version_does_not_count() -> None:
    """Without an ETag it is not known which version the bytes are of."""
    with serving(lambda _: [PLAIN.replace(b"ETag", b"X") + BODY]) as (reads, _):
        assert reads.read(OBJECT, len(BODY)) is None


def test_an_announced_end_of_the_connection_is_believed() -> None:
    """A connection that the store says it closes is not used again."""
    closing = PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with serving(lambda _: [closing + BODY]) as (reads, _):
        assert reads.read(OBJECT, len(BODY)) is not None
        assert not reads._endpoints.get("bucket").free  # type: ignore[union-attr]


def test_a_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS the same bytes come from a server of the right authority, and no request goes to another one."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    with serving(lambda _: [PLAIN[:20], PLAIN[20:], BODY]) as (plain, requests):
        port = int(plain._endpoints.get("bucket").url.split(":")[2].split("/")[0])  # type: ignore[union-attr]
        with TlsProxy(port, ours.context()) as tls:
            for authority, seen in ((ours, BODY), (other, None)):
                monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.path))
                reads = reads_at(f"https://127.0.0.1:{tls.port}")
                found = reads.read(OBJECT, len(BODY))
                assert (bytes(found.data) if found else None) == seen
                reads.close()
        assert len(requests) == 1


def test_a_slow_answer_is_left_to_the_sdk() -> None:
    """An object that comes in many small pieces takes no longer than one request may."""
    with serving(lambda _: [PLAIN[:20], PLAIN[20:], BODY]) as (reads, _):
        asked = reads.ask(OBJECT)
        assert asked
        endpoint, connection = asked
        assert endpoint.receive(connection, len(BODY), patience=-1) is None


def test_a_head_says_what_the_store_says() -> None:
    """Status and headers are those of the answer, and the connection is used again, unless a body follows."""
    gone = b"HTTP/1.1 404 Not Found\r\nContent-Length: 243\r\n\r\n"
    answers = [PLAIN, gone, PLAIN + BODY, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
    with serving(lambda number: [answers[number - 1]]) as (reads, requests):
        for status, is_kept in ((200, True), (404, True), (200, False), (200, False)):
            found = reads.head(OBJECT, {"X-Own": "yes"})
            assert found is not None
            assert (found.status, found.body) == (status, b"")
            assert bool(reads._endpoints.get("bucket").free) is is_kept  # type: ignore[union-attr]
    assert all(each.startswith(b"HEAD /bucket/a%20b HTTP/1.1\r\n") for each in requests)
    assert all(b"X-Own: yes\r\nX-Signed: HEAD\r\n\r\n" in each for each in requests)


def test_a_head_without_an_answer_is_left_to_the_sdk() -> None:
    """What is no answer, and a name that servers normalise, say nothing of an object."""
    with serving(lambda _: [b"nonsense\r\n\r\n"]) as (reads, requests):
        assert reads.head(RealObject("bucket", "a/../b", "bucket/a/../b"), {}) is None
        assert not requests
        assert reads.head(OBJECT, {}) is None
        assert not reads._endpoints.get("bucket").free  # type: ignore[union-attr]


def objects(count: int, size: int = len(BODY)) -> Iterator[SmallRead]:
    return (("bucket", f"k{number}", Digest(size, SHA256)) for number in range(count))


def named(bucket: str, key: str) -> RealObject:
    return RealObject(bucket, key, f"{bucket}/{key}")


def test_many_objects_are_asked_for_ahead() -> None:
    """Several are asked for before the first answer is there; each is given with its own bytes, in their order."""
    all_asked = threading.Event()

    def answer(number: int) -> list[bytes]:
        if number == AHEAD:
            all_asked.set()
        assert all_asked.wait(WITHIN)
        name = requests[number - 1].split(b" ")[1].rpartition(b"/")[2]
        return [PLAIN.replace(b"200 OK", b"404 No") + BODY if name == b"k5" else PLAIN + name.ljust(len(BODY))]

    with serving(answer) as (reads, requests):
        ahead = reads.ahead(named)
        found = list(ahead.read(objects(3 * AHEAD)))
        assert [key for (_, key, _), _ in found] == [f"k{number}" for number in range(3 * AHEAD)]
        wrong = [key for (_, key, _), read in found if read is None or bytes(read[0]) != key.encode().ljust(len(BODY))]
        assert wrong == ["k5"]
        assert len(requests) == 3 * AHEAD
        assert len(reads._endpoints.get("bucket").free) <= AHEAD  # type: ignore[union-attr]


def test_few_connections_stay_open_after_a_page() -> None:
    """Each of many buckets has connections of its own, and a process may open only so many files."""
    with serving(lambda _: [PLAIN + BODY]) as (reads, _):
        threads = [reads.ahead(named).read(objects(AHEAD)) for _ in range(4)]
        assert all(read for step in zip(*threads, strict=True) for _, read in step)
        assert len(reads._endpoints.get("bucket").free) <= 2 * AHEAD  # type: ignore[union-attr]


def test_after_a_failure_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer is not waited for once for each object: the SDK asks for the others."""
    with serving(lambda _: [b"HTTP/1.1 500 Error\r\nX: \xff"]) as (reads, requests):
        monkeypatch.setattr(small_reads, "PATIENCE", 0.05)
        assert [read for _, read in reads.ahead(named).read(objects(5 * AHEAD))] == [None] * 5 * AHEAD
        assert len(requests) <= 2 * AHEAD


def test_a_store_that_cannot_be_located_is_left_to_the_sdk() -> None:
    """Its error is raised by the SDK, for each object, and does not end the page."""

    def locate(_: str) -> NoReturn:
        raise Unavailable("faulty: the file of certificates does not exist")

    reads = PlainReads(locate, lambda _: None, ())
    assert [read for _, read in reads.ahead(named).read(objects(2 * AHEAD))] == [None] * 2 * AHEAD
    assert reads.read(OBJECT, len(BODY)) is None


def test_answers_that_were_not_read_end_their_connections() -> None:
    """Where a page stops, what it had asked for is not the answer to the next request."""
    with serving(lambda _: [PLAIN + BODY]) as (reads, _):
        ahead = reads.ahead(named)
        assert next(ahead.read(objects(AHEAD)))[1] is not None
        ahead.close()
        assert len(reads._endpoints.get("bucket").free) == 1  # type: ignore[union-attr]


def test_a_forked_child_has_connections_of_its_own() -> None:
    """One that it shared with its parent would give each the answers of the other; what is dropped is closed."""
    with serving(lambda _: [PLAIN + BODY]) as (reads, _):
        assert reads.read(OBJECT, len(BODY)) is not None
        kept = reads._endpoints.get("bucket").free  # type: ignore[union-attr]
        [connection] = kept
        reads._endpoints._process = os.getpid() + 1
        assert reads._endpoints.get("bucket").free is not kept  # type: ignore[union-attr]
        assert connection.fileno() == -1


def test_a_bucket_whose_region_is_not_told_holds_up_no_other() -> None:
    """Where a bucket is, Amazon has to say: a thread that waits for that keeps no other one from its bucket."""
    asked, told = threading.Event(), threading.Event()

    def locate(real: str) -> BucketEndpoint:
        if real == "silent":
            asked.set()
            told.wait(5)
        return BucketEndpoint(f"http://{real}", lambda _method, _url, headers: headers)

    endpoints = BucketEndpoints(locate)
    waiting = threading.Thread(target=endpoints.get, args=("silent",))
    waiting.start()
    assert asked.wait(WITHIN)
    found = endpoints.get("quick")
    assert waiting.is_alive()
    told.set()
    waiting.join()
    assert found is endpoints.get("quick")
