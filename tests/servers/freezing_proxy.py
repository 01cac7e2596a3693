"""A proxy for any protocol, whose connections can become silent or slow."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

CHUNK = 65536


class FreezingProxy:
    """Pump bytes between clients and a loopback port, until it is frozen. A context manager.

    A connection that froze never thaws: it is as good as gone, and neither end hears of it before the proxy is closed.
    """

    def __init__(self, upstream: int, *, rate: float | None = None) -> None:
        """Listen for what is meant for the port `upstream`.

        Args:
            upstream: the port that everything is passed on to.
            rate: bytes per second that all clients together may send; None for as fast as it goes.
        """
        self._upstream = upstream
        self._rate = rate
        self._taken = 0
        self._stops_at: int | None = None
        self.stopped = False
        """Whether a connection that `stop_reading` asked for has been reached."""
        self._ready = 0.0  # when the line has room again
        self._lock = threading.Lock()
        self._frozen = threading.Event()  # that of the connections which are made from now on
        self._ends: list[socket.socket] = []
        self._closing = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        if rate:  # or the kernel takes megabytes at once
            self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    def freeze(self) -> None:
        """Let no byte more through, neither of the connections that there are nor of those still to come."""
        self._frozen.set()

    def thaw(self) -> None:
        """Let through the bytes of connections that are made from now on."""
        with self._lock:
            self._frozen = threading.Event()

    def stop_reading(self, *, after: int) -> None:
        """Once clients have sent so many bytes, never read again from the connection that the next ones come over."""
        with self._lock:
            self._stops_at = self._taken + after

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)  # closing alone does not wake up who waits in it
        self._thread.join()
        self._listening.close()
        for end in self._ends:
            with suppress(OSError):  # the other end may have gone
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                self._ends += (client, server)
                with self._lock:
                    frozen = self._frozen
                for ends in ((client, server, self._take), (server, client, _at_once)):
                    threading.Thread(target=_pump, args=(*ends, frozen), daemon=True).start()

    def _take(self, count: int) -> None:
        """Return when the line had time for so many bytes; only at the end if it is not read from any more."""
        with self._lock:
            self._taken += count
            stops = self._stops_at is not None and self._taken > self._stops_at
            if stops:
                self._stops_at = None
                self.stopped = True
            if self._rate:
                self._ready = max(self._ready, time.monotonic()) + count / self._rate
            wait = self._ready - time.monotonic()
        if stops or wait > 0:
            self._closing.wait(None if stops else wait)


def _at_once(_count: int) -> None:
    pass


def _pump(source: socket.socket, sink: socket.socket, take: Callable[[int], None], frozen: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            take(len(data))
            if not frozen.is_set():
                sink.sendall(data)
    if not frozen.is_set():
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
