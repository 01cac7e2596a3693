"""Write small objects with one plain request, at about a fifth of the SDK's processor time.

It is sent once. Where there is no answer, or one that may pass, the SDK sends it again, under the same token of the
write, as it would after an answer of its own that got lost.
"""

import io
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.wait import wait_for_read

from worker.storage.cloud.error_mapping import Origin, Translate
from worker.storage.cloud.small_reads_by_obstore import CA_BUNDLES, KEPT_BUCKETS, SMALL, RealObject, is_plain_name
from worker.storage.errors import TransientError
from worker.storage.transfer.send_in_slices import SLICE, SlicedBody

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Headers = Mapping[str, str]
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 30
"""Seconds; the SDK, which asks after that, is more patient."""
_LONGEST_ANSWER = 1 << 16
"""Bytes of an answer, after which its connection is not used again."""
_FIRST_PIECE = 1 << 14
"""Bytes of an answer that are received at once: the whole of nearly every one."""
_WRITTEN = re.compile(rb"HTTP/1\.1 20[01](?: .*)?")
_HEADER = re.compile(r"[a-z0-9-]+")
_CONTINUED = frozenset({"transfer-encoding", "upgrade", "trailer"})
"""Headers of an answer that say how it goes on."""
_ASKED_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store says to a write. The names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_written(self) -> bool:
        return self.status in {HTTPStatus.OK, HTTPStatus.CREATED}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a real bucket is, how a request to it is signed, and the connections to it that are free.

    Attributes:
        url: of the bucket, without a slash at its end.
        sign: returns the headers of a request to a URL, from those that it has without its signature.
        timeout: seconds for which an answer may be silent.
        free: connections that no request uses.
    """

    url: str
    sign: Callable[[str, Headers], Headers]
    timeout: float = READ_TIMEOUT
    free: list[socket.socket] = field(default_factory=list)

    def put(self, url: str, data: bytes | bytearray, headers: Headers) -> Answer:
        """Send a request and return the answer.

        Raises:
            OSError, HTTPException: there is no answer.
        """
        head = request_head("PUT", url, headers)
        connection = self.connected()
        try:
            if len(data) <= SLICE:
                connection.sendall(head + data)  # the store is woken once
            else:
                connection.sendall(head)
                for piece in SlicedBody(data):
                    connection.sendall(piece)
            begun = connection.recv(_FIRST_PIECE)
            answer = _plain_answer(begun)
            is_reusable = answer is not None
            if answer is None:
                answer, is_reusable = _any_answer(connection, begun)
        except BaseException:
            connection.close()
            raise
        if is_reusable:
            self.free.append(connection)
        else:
            connection.close()
        return answer

    def url_of(self, name: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{quote(name, safe='/~')}"

    def close(self) -> None:
        """End the free connections."""
        with suppress(IndexError):
            while True:
                self.free.pop().close()

    def connected(self) -> socket.socket:
        """Return a connection of which the store has not closed its end."""
        with suppress(IndexError):
            while True:
                connection = self.free.pop()
                if not wait_for_read(connection, 0):
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
        connected.settimeout(self.timeout)
        return connected


class Places:
    """The real buckets that were used last, each with its connections."""

    def __init__(self, locate: Callable[[str], Place | None]) -> None:
        """Ask `locate` where a real bucket is; None for one that needs the SDK."""
        self._locate = locate
        self._places: dict[str, Place | None] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, real: str) -> Place | None:
        """Return where a bucket is; None if it needs the SDK, as with a proxy or a directory of certificates.

        Raises: what the SDK raises while it looks for the bucket's region or for credentials.
        """
        if self._process != os.getpid():  # a forked child: its parent still uses the connections
            self._places, self._lock, self._process = {}, threading.Lock(), os.getpid()
        try:
            return self._places[real]
        except KeyError:
            pass
        with self._lock:
            if real not in self._places:
                while len(self._places) >= KEPT_BUCKETS:
                    self._forget_oldest()
                self._places[real] = None if getproxies() or _bundle() is None else self._locate(real)
            return self._places[real]

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            while self._places:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        place = self._places.pop(next(iter(self._places)))
        if place is not None:
            place.close()


@dataclass(frozen=True, slots=True)
class Provider:
    """How the small writes of one provider are sent, and what its answers mean.

    Attributes:
        locate: where a real bucket is; None for one that needs the SDK.
        reply: returns an answer to a write as the SDK returns it.
        refusal: returns the SDK's error for an answer; None after which the SDK knows another way.
        sdk_errors: what the SDK raises, also while it looks for credentials.
        translate: the meaning of that.
    """

    locate: Callable[[str], Place | None]
    reply: Callable[[Answer], Mapping[str, Any]]
    refusal: Callable[[Answer], Exception | None]
    sdk_errors: tuple[type[Exception], ...]
    translate: Translate


class SmallWrites:
    """Writes small objects to one store."""

    def __init__(self, origin: Origin, provider: Provider) -> None:
        self._origin = origin
        self._provider = provider
        self._failures: tuple[type[Exception], ...] = (OSError, HTTPException, *provider.sdk_errors)
        self._places = Places(provider.locate)

    def put(self, target: RealObject, data: bytes | bytearray, headers: Headers | None) -> Mapping[str, Any] | None:
        """Write an object and return what the SDK would return.

        Returns None if the SDK has to write it: without headers, for larger objects, without an answer, after one that
        asks for another try, for names that an HTTP library changes, and where the environment names a proxy or a
        directory of certificates.

        Raises: the SDK's error, if the store refuses the write.
        """
        if headers is None or len(data) > SMALL or not is_plain_name(target.name):
            return None
        try:
            place = self._places.get(target.real)
            if place is None:
                return None
            url = place.url_of(target.name)
            answer = place.put(url, data, place.sign(url, {**headers, "Content-Length": str(len(data))}))
        except self._failures:
            return None
        if answer.is_written:
            return self._provider.reply(answer)
        refused = HTTPStatus.BAD_REQUEST <= answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
        error = self._provider.refusal(answer) if refused and answer.status not in _ASKED_AGAIN else None
        if error is None or isinstance(self._provider.translate(error, self._origin, target.what), TransientError):
            return None
        raise error

    def close(self) -> None:
        """End the connections."""
        self._places.close()


def request_head(method: str, url: str, headers: Headers) -> bytes:
    """Return the beginning of a request.

    Raises:
        HTTPException: a header would be another one for the store.
    """
    _, _, netloc, path = url.split("/", 3)
    host = {} if "Host" in headers else {"Host": netloc}
    lines = [f"{method} /{path} HTTP/1.1", *(f"{name}: {value}" for name, value in {**host, **headers}.items())]
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise HTTPException("a header is not printable ASCII")
    return "\r\n".join((*lines, "", "")).encode()


def _plain_answer(begun: bytes) -> Answer | None:
    """Return the answer that nearly every write gets: written, and nothing more; None for any other one.

    `http.client` takes four times as long, because it reads headers as those of an e-mail.
    """
    head, end, more = begun.partition(b"\r\n\r\n")
    status, _, lines = head.partition(b"\r\n")
    if not end or more or not _WRITTEN.fullmatch(status) or not head.isascii():
        return None
    headers: dict[str, str] = {}
    for line in lines.decode().split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not _HEADER.fullmatch(name) or name in headers:
            return None
        headers[name] = value.strip(" \t")
    is_kept = headers.get("connection", "keep-alive").lower() == "keep-alive"
    if headers.get("content-length") != "0" or not is_kept or not _CONTINUED.isdisjoint(headers):
        return None
    return Answer(int(status[9:12]), headers, b"")


def _any_answer(connection: socket.socket, begun: bytes) -> tuple[Answer, bool]:
    """Read an answer of which these bytes are here; return it, and whether its connection can be used again."""
    stream: Any = _Resumed(connection, begun)
    with HTTPResponse(stream, method="PUT") as reply:
        reply.begin()
        body = reply.read(_LONGEST_ANSWER)
        is_final = reply.status >= HTTPStatus.OK  # 103 comes before the answer, but is read as one
        is_reusable = is_final and reply.isclosed() and not reply.will_close
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
