"""Write small objects with one plain request, at about a fifth of the SDK's processor time.

It is sent once. Where there is no answer, or one that may pass, the SDK sends it again, under the same token of the
write, as it would after an answer of its own that got lost.
"""

import os
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
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util.wait import wait_for_read

from worker.storage.cloud.error_mapping import Origin, Translate
from worker.storage.cloud.small_reads import CA_BUNDLES, KEPT_BUCKETS, SMALL, RealObject, is_plain_name
from worker.storage.errors import TransientError
from worker.storage.transfer.send_in_slices import SLICE, SlicedBody

Headers = Mapping[str, str]
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 30
"""Seconds; the SDK, which asks after that, is more patient."""
_LONGEST_ANSWER = 1 << 16
"""Bytes of an answer, after which its connection is not used again."""
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
            with HTTPResponse(connection, method="PUT") as reply:
                reply.begin()
                body = reply.read(_LONGEST_ANSWER)
                is_final = reply.status >= HTTPStatus.OK  # 103 comes before the answer, but is read as one
                is_reusable = is_final and reply.isclosed() and not reply.will_close
        except BaseException:
            connection.close()
            raise
        if is_reusable:
            self.free.append(connection)
        else:
            connection.close()
        return Answer(reply.status, {name.lower(): value for name, value in reply.headers.items()}, body)

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


@cache
def _tls(bundle: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=bundle)


def _bundle() -> str | None:
    """Return the file of certificates that the SDKs use; None for a directory."""
    found = next(filter(None, map(os.environ.get, CA_BUNDLES)), None) or DEFAULT_CA_BUNDLE_PATH
    return found if Path(found).is_file() else None
