"""Receivers of alarms that are real servers: HTTP, and SMTP with TLS."""

import asyncio
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

Posted = tuple[dict[str, str], bytes]


@contextmanager
def http_receiver(
    answers: Sequence[int] = (), *, headers: dict[str, str] | None = None, interim: bytes = b""
) -> Iterator[tuple[str, list[Posted]]]:
    """Yield the address of an HTTP server and the requests that it gets; it answers with these codes and then 204.

    `interim` are the bytes of the interim answers that come before each answer.
    """
    received: list[Posted] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.wfile.write(interim)
            self.send_response(left.pop(0) if left else 204)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def raw_receiver(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield `HOST:PORT` of a server that answers each connection as the function does."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the client has gone
                answer(self.request)

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Listener(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Mailbox:
    """Keeps the mails that arrive; `refused` are recipients that it does not accept, `goodbye` answers QUIT."""

    def __init__(self, refused: Sequence[str] = (), goodbye: str = "221 Bye") -> None:
        self.mails: list[tuple[list[str], bytes]] = []
        self.goodbye = goodbye
        self._refused = refused

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:  # noqa: N802
        if address in self._refused:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - the library's name
        self.mails.append((envelope.rcpt_tos, envelope.content))
        return "250 OK"

    async def handle_QUIT(self, _server: Any, _session: Any, _envelope: Any) -> str:  # noqa: N802 - the library's name
        return self.goodbye


@contextmanager
def smtp_receiver(
    mailbox: Mailbox, tls: ssl.SSLContext | None, *, password: bytes | None = None, at_once: bool = False
) -> Iterator[str]:
    """Yield the address of an SMTP server. With a context it wants STARTTLS, or with `at_once` TLS from the start."""

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data.password == password
        return AuthResult(success=good, handled=good)

    more: dict[str, Any] = {"authenticator": authenticate, "auth_required": True} if password else {}
    if tls is not None and not at_once:
        more |= {"tls_context": tls, "require_starttls": True}
    made: list[SMTP] = []

    def connected() -> SMTP:
        made.append(SMTP(mailbox, loop=loop, **more))
        return made[-1]

    async def end() -> None:
        server.close()
        for each in made:
            if each.transport is not None:
                each.transport.abort()
        await asyncio.sleep(0)  # the transports close in the next turn

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listen = loop.create_server(connected, "127.0.0.1", 0, ssl=tls if at_once else None)
    server = asyncio.run_coroutine_threadsafe(listen, loop).result()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
