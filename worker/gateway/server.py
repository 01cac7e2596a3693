"""Serve the gateway with uvicorn: few and short-lived connections for those who send or take nothing."""

import asyncio
import logging
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from worker.gateway.app import make_app
from worker.gateway.request_admission import MOST_HEAD
from worker.gateway.services import Services
from worker.log_lines import make_safe, quieten_libraries
from worker.settings import Settings

_HEAD_WITHIN = 10.0
"""Seconds within which a connection sends the head of a request."""
_TAKE_WITHIN = 60.0
"""Seconds within which a client takes what was sent last, at most a MiB."""
_KEEP_ALIVE = 15
_SHUTDOWN = 10
"""Seconds that requests have to end once the gateway is told to."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway listens, and the files of its certificate and key."""

    host: str = "127.0.0.1"
    port: int = 8484
    certificate: Path | None = None
    key: Path | None = None


class Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which has a time limit between requests only: these are for the head and for the answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head, and have the kernel send each write at once.

        asyncio does so only for a listening socket that names its protocol, which ours does not. Then the body of each
        answer waited 40 ms for the client's acknowledgement of the head.
        """
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = _TimeLimit(transport, _HEAD_WITHIN)
        self._taking = _TimeLimit(transport, _TAKE_WITHIN)
        super().connection_made(transport)
        self._head.begin()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once there is a whole head; wait for the rest if there is part of one."""
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        """Wait for the head of the next request if part of it is there."""
        super().on_response_complete()
        self._await_head()

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not take what it asked for."""
        super().pause_writing()
        self._taking.begin()

    def resume_writing(self) -> None:
        """Stop waiting."""
        super().resume_writing()
        self._taking.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        super().connection_lost(exc)
        self._head.end()
        self._taking.end()

    def _await_head(self) -> None:
        served = self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr] # None first
        if served or self.timeout_keep_alive_task is not None:
            self._head.end()
        elif not self.transport.is_closing():
            self._head.begin()


class _TimeLimit:
    """Aborts a connection unless it is ended in time."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin, unless it has begun."""
        if self._timer is None:
            # `close` would wait until the client has taken everything.
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def end(self) -> None:
        """End it before its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def make_server(services: Services, address: Address) -> uvicorn.Server:
    """Return the server of these services, which closes them when it ends."""
    logging.getLogger("uvicorn.access").disabled = True  # it would log queries; the guard logs each request
    options: dict[str, Any] = {}
    if address.certificate is not None:
        options = {"ssl_certfile": address.certificate, "ssl_keyfile": address.key}
    config = uvicorn.Config(
        make_app(services),
        host=address.host,
        port=address.port,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # an address that a client writes itself would pass the limit on wrong tokens
        limit_concurrency=services.settings.gateway.connections,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_SHUTDOWN,
        h11_max_incomplete_event_size=MOST_HEAD,
        **options,
    )
    return uvicorn.Server(config)


def listen(address: Address) -> socket.socket:
    """Return the listening socket of an address. Raise OSError."""
    family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((address.host, address.port), family=family, backlog=2048)


def serve(settings: Settings, address: Address, listener: socket.socket) -> None:
    """Serve on a socket until SIGINT, SIGTERM or SIGHUP.

    Raises:
        CatalogueError: the catalogue cannot be opened.
    """
    _log(as_json=settings.log.format == "json")
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # uvicorn handles the other two
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    make_server(Services(settings), address).run(sockets=[listener])


def _log(*, as_json: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    for name in ("uvicorn", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    quieten_libraries(logging.INFO)
    make_safe(logging.getLogger(), as_json=as_json)
