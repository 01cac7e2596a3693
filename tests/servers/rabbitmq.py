"""RabbitMQ, the other broker: the server of the machine, if it has one."""

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.servers.process import Server, ServerMissing, free_port

_DEBIANS = "/usr/lib/rabbitmq/bin"
"""Where Debian's package keeps the program itself; the one in its path insists on a user of its own."""
_HEADER = b"AMQP\x00\x00\x09\x01"


class RabbitMQ(Server):
    """A RabbitMQ on loopback, with its own epmd, and nothing of it outside its directory.

    It is the one server that our locks cannot bring: no package index has it. It comes from Debian
    (`apt-get install rabbitmq-server`), and where it is missing its tests are skipped, in CI too.
    A message that is not acknowledged within `unacknowledged` seconds is taken back, and the channel closed.
    What was published to a durable queue and confirmed outlives `kill` and `restart`.
    """

    name = "rabbitmq"

    def __init__(self, directory: Path, *, unacknowledged: float = 1800) -> None:
        super().__init__(directory)
        self._unacknowledged = unacknowledged
        self._epmd = _Epmd(directory / "epmd")
        self._peers_port = 0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> Self:
        find_program("rabbitmq-server")
        self._epmd.start()
        self._peers_port = free_port()
        return super().start()

    def command(self) -> Sequence[str]:
        patience = f"{{consumer_timeout, {round(self._unacknowledged * 1000)}}}, {{channel_tick_interval, 500}}"
        (self.directory / "advanced.config").write_text(f"[{{rabbit, [{patience}]}}].")
        (self.directory / "plugins").write_text("[].")
        return (find_program("rabbitmq-server"),)

    def environment(self) -> Mapping[str, str]:
        ours = self.directory
        return {
            "HOME": str(ours),  # the secret between Erlang's processes is there
            "RUNNING_UNDER_SYSTEMD": "true",  # the process that is started is the server, and not a shell before it
            "RABBITMQ_NODENAME": "tests@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._peers_port),
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(ours / "mnesia"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(ours),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(ours / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(ours / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(ours / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(ours / "environment"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def probe(self) -> None:
        """Return when it answers in AMQP; it does so only once it has read its queues."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(_HEADER)
            if not connection.recv(1):
                raise ConnectionError("no RabbitMQ")

    def stop(self) -> None:
        """End the server at once: in order, it takes seconds."""
        self.kill()
        self._epmd.stop()


class _Epmd(Server):
    """Erlang's own directory of processes: started here, or it would stay behind as a daemon of the machine's."""

    name = "epmd"

    def command(self) -> Sequence[str]:
        return (find_program("epmd"), "-address", "127.0.0.1", "-port", str(self.port))


def find_program(name: str) -> str:
    """Return the path of a program of RabbitMQ's or Erlang's.

    Raises:
        ServerMissing: the machine has none.
    """
    program = shutil.which(name, path=os.pathsep.join((_DEBIANS, os.environ.get("PATH", os.defpath))))
    if program is None:
        raise ServerMissing(f"{name} is not installed: it is not among our locks but Debian's `rabbitmq-server`")
    return program
