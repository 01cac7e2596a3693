"""Send plain HTTP requests for small objects to a store, without its SDK, over connections that are used again.

`http.client` parses headers like those of an e-mail, which takes four times as long. So it reads only the answers that
`_read_head` does not understand.
"""

import io
import os
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.wait import wait_for_read

from worker.storage.transfer.send_in_slices import SLICE, SlicedBody

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Headers = Mapping[str, str]
SMALL = 1024 * 1024
"""Bytes of the largest object that is read or written so: it is in memory as a whole, once per thread."""
KEPT_BUCKETS = 64
"""Real buckets whose connections are kept."""
CA_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
CONNECT_TIMEOUT = 5
"""Seconds; the SDK, which asks after that, is more patient."""
_MOST_FREE = 16
"""Most free connections to a bucket that are kept, because a process may have only so many open files."""
_LONGEST_ANSWER = 1 << 16
"""Bytes of an answer to a write, after which its connection is not used again."""
_FIRST_PIECE = 1 << 14
"""Bytes of an answer to a write that are received at once: the whole of nearly every one."""
_LONGEST_HEAD = 1 << 14
"""Bytes of the head of an answer to a read."""
_END = b"\r\n\r\n"
_HEAD = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2})(?: [^\r\n]*)?((?:\r\n[A-Za-z0-9!#$%&'*+.^_`|~-]+:[^\r\n]*)*)")
"""The whole head of an answer: its status, and the lines of its headers, each of which ends as HTTP says."""
_ONCE = frozenset({"content-length", "connection"})
"""Headers that must not be there twice: they say where an answer ends."""
_CONTINUED = frozenset({"transfer-encoding", "upgrade", "trailer"})
"""Headers of an answer that say how it goes on."""
_PLAIN = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^\x00-\x1f\x7f]+")
"""Names that every server takes out of a URL unchanged."""


class RealObject(NamedTuple):
    """A real object: its real bucket, its name in that, and the logical bucket and key, for messages."""

    real: str
    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a write or to a HEAD. The names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_written(self) -> bool:
        return self.status in {HTTPStatus.OK, HTTPStatus.CREATED}


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """The headers of an answer, by their names in lower case, and its body, which is in memory as a whole."""

    headers: dict[str, str]
    body: memoryview


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BucketEndpoint:
    """Where a real bucket is, how a request to it is signed, and the connections to it that are free.

    They are closed with it, as in urllib3's pools; a request that is under way then keeps its connection.

    Attributes:
        url: of the bucket, without a slash at its end.
        sign: returns all headers of a request, from its method, its URL and its headers without the signature.
        query: the query string of every URL; it may hold a signature, and so is a secret.
        free: connections that no request uses.
    """

    url: str
    sign: Callable[[str, str, Headers], Headers]
    query: str = field(default="", repr=False)
    free: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        weakref.finalize(self, _close_all, self.free).atexit = False

    def receive(self, connection: socket.socket, size: int, *, patience: float) -> PlainAnswer | None:
        """Return the answer to a GET that was `sent` if it is status 200 with exactly `size` bytes; otherwise None.

        Raises:
            OSError: there is no answer.
        """
        answer = None
        try:
            answer = _receive(connection, size, time.monotonic() + patience)
        finally:
            if answer is None or not _is_kept(answer.headers):
                connection.close()  # bytes that are left would be read as the next answer
            else:
                self._keep(connection)
        return answer

    def send(self, method: str, url: str, headers: Headers, data: bytes | bytearray, *, patience: float) -> Answer:
        """Send a request and return the answer, which may be silent for `patience` seconds.

        Raises:
            OSError, HTTPException: there is no answer.
        """
        return self.answer(self.sent(method, url, headers, data, patience=patience), method)

    def sent(
        self, method: str, url: str, headers: Headers, data: bytes | bytearray, *, patience: float
    ) -> socket.socket:
        """Send a request and return the connection on which the answer comes, for `answer` or `receive`.

        Raises:
            OSError, HTTPException: it cannot be sent.
        """
        head = request_head(method, url, headers)
        connection = self.connected(patience)
        try:
            if len(data) <= SLICE:
                connection.sendall(head + data)  # the store is woken once
            else:
                connection.settimeout(CONNECT_TIMEOUT)  # for each slice, as the SDK does
                connection.sendall(head)
                for piece in SlicedBody(data):
                    connection.sendall(piece)
                connection.settimeout(patience)
        except BaseException:
            connection.close()
            raise
        return connection

    def answer(self, connection: socket.socket, method: str) -> Answer:
        """Return the answer to a request that was `sent`.

        Raises:
            OSError, HTTPException: there is none.
        """
        try:
            begun = connection.recv(_FIRST_PIECE)
            answer = _plain_answer(begun, method)
            is_reusable = answer is not None
            if answer is None:
                answer, is_reusable = _any_answer(connection, begun, method)
        except BaseException:
            connection.close()
            raise
        if is_reusable:
            self._keep(connection)
        else:
            connection.close()
        return answer

    def url_of(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{quote(name, safe='/~')}" + (f"?{self.query}" if self.query else "")

    def close(self) -> None:
        """End the free connections."""
        _close_all(self.free)

    def _keep(self, connection: socket.socket) -> None:
        """Keep a connection for the next request, unless enough are free."""
        if len(self.free) < _MOST_FREE:
            self.free.append(connection)
        else:
            connection.close()

    def connected(self, timeout: float) -> socket.socket:
        """Return a connection that the store has not closed, with a timeout of so many seconds for each answer."""
        with suppress(IndexError):
            while True:
                connection = self.free.pop()
                if not wait_for_read(connection, 0):
                    connection.settimeout(timeout)
                    return connection
                connection.close()
        parts = urlsplit(self.url)
        host, port = str(parts.hostname), parts.port
        if parts.scheme == "https":
            made: HTTPConnection = HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT, context=_tls(str(_bundle())))
        else:
            made = HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)
        made.connect()
        connected: socket.socket = made.sock
        connected.settimeout(timeout)
        return connected


def _close_all(connections: list[socket.socket]) -> None:
    with suppress(IndexError):
        while True:
            connections.pop().close()


class BucketEndpoints:
    """The real buckets that were used last, each with its connections."""

    def __init__(self, locate: Callable[[str], BucketEndpoint | None]) -> None:
        """Ask `locate` where a real bucket is; None for one that needs the SDK."""
        self._locate = locate
        self._endpoints: dict[str, BucketEndpoint | None] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, real: str) -> BucketEndpoint | None:
        """Return where a bucket is; None if it needs the SDK, as with a proxy or a directory of certificates.

        Raises: what the SDK raises while it looks for the bucket's region or for credentials.
        """
        if self._process != os.getpid():  # a forked child: its parent still uses the connections
            self._endpoints, self._lock, self._process = {}, threading.Lock(), os.getpid()
        try:
            return self._endpoints[real]
        except KeyError:
            pass
        # Without the lock: it asks Amazon for the region, and every thread would wait for one that gets no answer.
        found = None if getproxies() or _bundle() is None else self._locate(real)
        with self._lock:
            while len(self._endpoints) >= KEPT_BUCKETS and real not in self._endpoints:
                self._forget_oldest()
            return self._endpoints.setdefault(real, found)

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            while self._endpoints:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        endpoint = self._endpoints.pop(next(iter(self._endpoints)))
        if endpoint is not None:
            endpoint.close()


def is_plain_name(name: str) -> bool:
    """Return whether a name reaches a store unchanged in a URL, which libraries and servers normalise."""
    return _PLAIN.fullmatch(name) is not None


def request_head(method: str, url: str, headers: Headers) -> bytes:
    """Return the beginning of a request.

    Raises:
        HTTPException: the store would read a header, or the URL, as another one.
    """
    _, _, netloc, path = url.split("/", 3)
    lines = [f"{method} /{path} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()]]
    if "Host" not in headers:
        lines.insert(1, f"Host: {netloc}")
    text = "".join(lines)
    if " " in path or not (text.isascii() and text.isprintable()):
        raise HTTPException("a header is not printable ASCII, or the URL has a space")
    return "\r\n".join((*lines, "", "")).encode()


class _Head(NamedTuple):
    status: int
    headers: dict[str, str]


def _read_head(head: bytes) -> _Head | None:
    """Return the status and the headers of an answer; None if they, or its end, are not certain."""
    found = _HEAD.fullmatch(head.decode("latin-1"))
    if found is None:
        return None
    lines = [line.partition(":") for line in found[2].split("\r\n")[1:]]
    headers = {name.lower(): value.strip(" \t") for name, _, value in lines}
    if len(headers) < len(lines) and _repeats([name.lower() for name, _, _ in lines]):
        return None
    return _Head(int(found[1]), headers) if _CONTINUED.isdisjoint(headers) else None


def _repeats(names: list[str]) -> bool:
    """Return whether a header is there twice that must not be."""
    return any(names.count(name) > 1 for name in _ONCE)


def _is_kept(headers: Headers) -> bool:
    """Return whether the store keeps the connection open after an answer."""
    return headers.get("connection", "keep-alive").lower() == "keep-alive"


def _receive(connection: socket.socket, size: int, deadline: float) -> PlainAnswer | None:
    """Return an answer of status 200 whose body has `size` bytes; None as soon as it shows to be another one."""
    buffer = bytearray(_LONGEST_HEAD + size)
    view, filled, body = memoryview(buffer), 0, 0
    headers: dict[str, str] = {}
    while not body or filled < body + size:
        received = connection.recv_into(view[filled:])
        filled += received
        if not received or filled == len(buffer) or time.monotonic() > deadline:
            return None
        if not body and (end := buffer.find(_END, 0, filled)) >= 0:
            head = _read_head(bytes(view[:end]))
            if head is None or head.status != HTTPStatus.OK or head.headers.get("content-length") != str(size):
                return None
            headers, body = head.headers, end + len(_END)
    return PlainAnswer(headers, view[body:filled]) if filled == body + size else None


def _plain_answer(begun: bytes, method: str) -> Answer | None:
    """Return an answer that is here as a whole and has no body, as nearly every one; None for any other one."""
    head, end, more = begun.partition(_END)
    found = _read_head(head) if end and not more else None
    if found is None or found.status < HTTPStatus.OK or not _is_kept(found.headers):
        return None
    return Answer(*found, b"") if method == "HEAD" or found.headers.get("content-length") == "0" else None


def _any_answer(connection: socket.socket, begun: bytes, method: str) -> tuple[Answer, bool]:
    """Read an answer of which these bytes are here; return it, and whether its connection can be used again."""
    stream: Any = _Resumed(connection, begun)
    with HTTPResponse(stream, method=method) as reply:
        reply.begin()
        body = reply.read(_LONGEST_ANSWER)
        is_final = reply.status >= HTTPStatus.OK  # 103 comes before the answer, but is read as one
        is_reusable = is_final and reply.isclosed() and not reply.will_close and method != "HEAD"
    headers = {name.lower(): value.strip(" \t") for name, value in reply.headers.items()}
    return Answer(reply.status, headers, body), is_reusable


class _Resumed(io.RawIOBase):
    """A connection, after bytes that were received from it, as `http.client` reads it."""

    def __init__(self, connection: socket.socket, begun: bytes) -> None:
        self._connection = connection
        self._begun = begun

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        if not self._begun:
            return self._connection.recv_into(buffer)
        view = memoryview(buffer)
        count = min(len(view), len(self._begun))
        view[:count], self._begun = self._begun[:count], self._begun[count:]
        return count


@cache
def _tls(bundle: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=bundle)


def _bundle() -> str | None:
    """Return the file of certificates that the SDKs use; None for a directory."""
    found = next(filter(None, map(os.environ.get, CA_BUNDLES)), None) or DEFAULT_CA_BUNDLE_PATH
    return found if Path(found).is_file() else None
