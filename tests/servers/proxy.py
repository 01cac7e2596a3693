"""A proxy between a client and a server that disturbs their connection as networks do."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from requests.structures import CaseInsensitiveDict

_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    """The headers by name; a name is found in upper and lower case, because libraries write them differently."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", CaseInsensitiveDict(self.headers))


@dataclass(frozen=True)
class Lose:
    """Let the server do its work, and lose its answer."""


@dataclass(frozen=True)
class Delay:
    """Let the server do its work, and keep its answer back for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Reset:
    """End the connection as a firewall does, without the server having heard of the request."""


@dataclass(frozen=True)
class Damage:
    """Change one byte of the request's body, the first by default, or the first one of `of`, if the body has that.

    A body without bytes stays as it is.
    """

    at: int = 0
    of: bytes | None = None


@dataclass(frozen=True)
class Cut:
    """Pass on this many bytes of the answer's body, and no more."""

    after: int


@dataclass(frozen=True)
class Silence:
    """Let the server do its work, pass on so many bytes of its answer's body, or not even its head, and no more.

    The connection stays open until the proxy is closed.
    """

    after: int | None = None


@dataclass(frozen=True)
class Say:
    """Answer in the server's place."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """Let the server do its work, and pass on its answer with another value of a header, or without it."""

    name: str
    value: str | None = None


@dataclass(frozen=True)
class Rewrite:
    """Let the server do its work, and pass on its answer with another body."""

    change: Callable[[bytes], bytes]


@dataclass(frozen=True)
class Then:
    """Let the server do its work, change what it did, and only then pass on its answer."""

    do: Callable[[], object]


Fault = Rewrite | Then | Lose | Delay | Reset | Damage | Cut | Silence | Say | Header | None


class FaultyProxy:
    """Pass requests on to a loopback port; `fault` decides for each, by what it returns, how it goes wrong."""

    def __init__(self, upstream: int, fault: Callable[[Request], Fault]) -> None:
        self.requests: list[Request] = []
        self._upstream = upstream
        self._fault = fault
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return self._server.server_port

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def decide(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            return self._fault(request)

    def forward(self, request: Request, body: bytes) -> Say:
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=240)
        try:
            connection.request(request.method, request.path, body, request.headers)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
            return Say(answer.status, answer.read(), headers)
        finally:
            connection.close()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the handler's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or every answer with a body waits 40 ms for the client's kernel

            def handle(self) -> None:
                with suppress(ConnectionError):  # a client that has died is no fault of ours
                    super().handle()

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                request = Request(self.command, self.path, headers)
                fault = proxy.decide(request)
                if len(body) < length:  # the client has died
                    self.close_connection = True
                    return
                if isinstance(fault, Reset):
                    _reset(self)
                    return
                if isinstance(fault, Say):
                    self.say(fault, len(fault.body))
                    return
                if isinstance(fault, Damage):
                    body = _damaged(body, fault)
                answer = proxy.forward(request, body)
                if isinstance(fault, Rewrite):
                    kept = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
                    answer = Say(answer.status, fault.change(answer.body), kept)
                if isinstance(fault, Then):
                    fault.do()
                if isinstance(fault, Header):
                    answer = _with_header(answer, fault)
                if isinstance(fault, Delay):
                    time.sleep(fault.seconds)
                if isinstance(fault, Lose):
                    self.close_connection = True
                    return
                if isinstance(fault, Silence):
                    self.fall_silent(answer, fault.after)
                    return
                self.say(answer, fault.after if isinstance(fault, Cut) else len(answer.body))

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = answer  # noqa: N815 - http.server's names

            def fall_silent(self, answer: Say, after: int | None) -> None:
                if after is not None:
                    self.say(answer, after)
                proxy._closing.wait()
                self.close_connection = True

            def say(self, answer: Say, length: int) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "content-length" not in map(str.lower, answer.headers):
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body[:length])
                self.close_connection = length < len(answer.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
                pass

        return Handler


def _damaged(body: bytes, fault: Damage) -> bytes:
    changed, at = bytearray(body), fault.at if fault.of is None else body.find(fault.of)
    if changed and (fault.of is None or at >= 0):
        changed[at] ^= 1
    return bytes(changed)


def _with_header(answer: Say, fault: Header) -> Say:
    kept = {name: value for name, value in answer.headers.items() if name.lower() != fault.name.lower()}
    return Say(answer.status, answer.body, kept | ({fault.name: fault.value} if fault.value is not None else {}))


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    for end in (handler.rfile, handler.connection):  # the server would say good-bye first
        end.close()
