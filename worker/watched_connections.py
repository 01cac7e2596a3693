"""Connections of urllib3 that their owner can shut down from outside, and whose answers are never interim ones."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from zot_artifact_client.http_final_response import FinalResponse

_T = TypeVar("_T")

Watch = Callable[[socket.socket], socket.socket]
"""Is given the socket of each connection that is made, and returns it."""


class WatchedSockets:
    """The sockets of connections that another thread may shut down."""

    def __init__(self) -> None:
        self.is_over = False
        """They are shut down, and so is each that is made from now on."""
        self._sockets: list[socket.socket] = []

    def watch(self, made: socket.socket) -> socket.socket:
        """Return a new socket, which is shut down with the others."""
        self._sockets.append(made.dup())  # a duplicate: TLS detaches the original
        if self.is_over:
            self.shut_down()
        return made

    def shut_down(self) -> None:
        """End every read and write that waits, also those of later connections."""
        self.is_over = True
        for own in take_all(self._sockets):
            with suppress(OSError), own:
                own.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Watch no more."""
        for own in take_all(self._sockets):
            own.close()


def take_all(items: list[_T]) -> Iterator[_T]:
    """Yield the items of a list and remove them, each once, also while another thread takes them."""
    while True:
        try:
            taken = items.pop()
        except IndexError:
            return
        yield taken


class _Plain(HTTPConnection):
    def __init__(self, *args: Any, watch: Watch, response: type[FinalResponse], **options: Any) -> None:
        super().__init__(*args, **options)
        self._watch = watch
        self.response_class = response

    def _new_conn(self) -> socket.socket:
        return self._watch(super()._new_conn())


class _Secure(_Plain, HTTPSConnection):
    """The same with TLS."""


def watch_connections(
    pool: HTTPConnectionPool, watch: Watch, response: type[FinalResponse] = FinalResponse
) -> HTTPConnectionPool:
    """Have the connections of a pool be watched and read their answers with this class; return the pool."""
    made = _Secure if isinstance(pool, HTTPSConnectionPool) else _Plain
    pool.ConnectionCls = partial(made, watch=watch, response=response)  # type: ignore[assignment]
    return pool
