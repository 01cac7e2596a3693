"""PgBouncer, which shares few connections of a server among many clients: the program of Debian's package."""

import os
from collections.abc import Sequence
from pathlib import Path

from tests.servers.postgres import Postgres
from tests.servers.process import Server

_UNPRIVILEGED = "nobody"
"""PgBouncer refuses to run as root, and runs as this user of the system instead."""


class PgBouncer(Server):
    """A pooler before one database. A connection of the server is another client's after each transaction."""

    name = "pgbouncer"

    def __init__(self, directory: Path, server: Postgres, database: str | None) -> None:
        super().__init__(directory)
        self._server = server
        self._database = database

    @property
    def url(self) -> str:
        user = f"{self._server.user}:{self._server.password}"
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{self._database}"

    def command(self) -> Sequence[str]:
        users, config = self.directory / "users.txt", self.directory / "pgbouncer.ini"
        users.write_text(f'"{self._server.user}" "{self._server.password}"\n')
        config.write_text(
            f"[databases]\n{self._database} = host=127.0.0.1 port={self._server.port}\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.port}\nunix_socket_dir=\n"
            f"auth_type=scram-sha-256\nauth_file={users}\npool_mode=transaction\ndefault_pool_size=4\n"
            "server_round_robin=1\n"
        )
        if os.geteuid() != 0:
            return ("pgbouncer", str(config))
        return ("pgbouncer", "--user", _UNPRIVILEGED, str(config))
