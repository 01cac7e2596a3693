"""The body of an answer is received into the caller's memory, and its connection is used again."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import urllib3
from urllib3.exceptions import ReadTimeoutError

from tests.waiting import WITHIN
from worker.storage.cloud.response_body import HttpBody

CONTENT = bytes(range(256)) * 4096


class Answers(BaseHTTPRequestHandler):
    """Answers with all of the content, in chunks, cut short, or never to the end, as the path asks."""

    protocol_version = "HTTP/1.1"
    peers: ClassVar[set[object]] = set()
    ended = threading.Event()

    def do_GET(self) -> None:
        self.peers.add(self.client_address)
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT))
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("Content-Encoding", "gzip")  # of what is stored: nothing may decode it
        self.end_headers()
        if self.path == "/whole":
            self.wfile.write(CONTENT)
            return
        self.wfile.write(CONTENT[:1000])
        if self.path == "/silent":
            self.ended.wait(WITHIN)
        self.close_connection = True

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def pool() -> Iterator[urllib3.HTTPConnectionPool]:
    Answers.peers.clear()
    Answers.ended.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib3.HTTPConnectionPool(
            "127.0.0.1", server.server_port, timeout=urllib3.Timeout(connect=WITHIN, read=0.5)
        ) as pool:
            yield pool
        Answers.ended.set()
        server.shutdown()


def asked(pool: urllib3.HTTPConnectionPool, path: str) -> HttpBody:
    return HttpBody(pool.urlopen("GET", path, preload_content=False, retries=False))


def received(body: HttpBody, size: int) -> bytes:
    buffer, found = memoryview(bytearray(size)), bytearray()
    while count := body.readinto(buffer):
        found += buffer[:count]
    return bytes(found)


@pytest.mark.parametrize("path", ["/whole", "/chunked"])
@pytest.mark.parametrize("size", [1000, len(CONTENT), len(CONTENT) + 1])
def test_all_bytes_are_received_as_they_were_sent(pool: urllib3.HTTPConnectionPool, path: str, size: int) -> None:
    """Whatever the buffer's size, the bytes are those of the answer, and nothing decodes them."""
    assert received(asked(pool, path), size) == CONTENT


def test_a_connection_is_used_again_after_the_last_byte(pool: urllib3.HTTPConnectionPool) -> None:
    """An answer that was received to its end costs the next request no new connection."""
    for _ in range(3):
        received(asked(pool, "/whole"), 1 << 16)
    assert len(Answers.peers) == 1


def test_an_answer_that_is_cut_short_ends_early(pool: urllib3.HTTPConnectionPool) -> None:
    """The bytes that came are there; that some are missing is for the caller, who knows how many there must be."""
    assert received(asked(pool, "/cut"), 1 << 16) == CONTENT[:1000]


def test_a_silent_connection_is_an_error_of_urllib3(pool: urllib3.HTTPConnectionPool) -> None:
    """The time limit of the connection ends a wait for bytes, as an error that the drivers translate."""
    with pytest.raises(ReadTimeoutError):
        received(asked(pool, "/silent"), 1 << 16)
