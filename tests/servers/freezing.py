"""A proxy below any protocol, whose connections can fall silent without anybody being told."""

import socket
import threading
from contextlib import suppress
from typing import Self


class FreezingProxy:
    """Pump bytes between clients and a loopback port, until it is frozen. A context manager.

    A connection that froze never thaws: it is as good as gone, and neither end hears of it before the proxy is closed.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._lock = threading.Lock()
        self._frozen = threading.Event()  # that of the connections which are made from now on
        self._ends: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
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

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
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
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=(source, sink, frozen), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, frozen: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if not frozen.is_set():
                sink.sendall(data)
    if not frozen.is_set():
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
