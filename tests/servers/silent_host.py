"""A host that accepts requests and never answers them."""

import socket
import threading
from contextlib import suppress
from typing import Self


class SilentHost:
    """Listens on a loopback port, reads what clients send, and says nothing. A context manager."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        """Set once a client has sent something."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """Return how many connections clients have made."""
        return len(self._clients)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # closing alone does not wake up who waits in it
        self._thread.join()
        self._listening.close()
        for client in self._clients:
            client.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._clients.append(client)
                threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def _read(self, client: socket.socket) -> None:
        with suppress(OSError):
            while client.recv(65536):
                self.asked.set()
