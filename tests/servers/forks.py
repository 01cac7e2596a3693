"""Run a Python module in a fork of the fork server of this test process."""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.servers.process import REPOSITORY, Process, Server

_connections: list[socket.socket] = []
"""The connection to the fork server of this process, once it has one."""


class Fork:
    """A process that runs `python -m MODULE ARGUMENTS`, with the part of `subprocess.Popen` that tests use.

    Attributes:
        pid: of the process, which leads a session of its own.
    """

    def __init__(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: tuple[int, int, int]
    ) -> None:
        """Start the module that `arguments` begin with.

        Args:
            arguments: the module and its arguments.
            cwd: the working directory.
            env: the whole environment.
            streams: the descriptors that become stdin, stdout and stderr.
        """
        self._arguments = arguments
        self._status: int | None = None
        self._lock = threading.Lock()
        request = {"arguments": [*arguments], "environment": dict(env), "directory": str(cwd)}
        reading, report = os.pipe()
        self._report = os.fdopen(reading, "rb", buffering=0)
        try:
            socket.send_fds(_server(), [json.dumps(request).encode()], [*streams, report])
        finally:
            os.close(report)
        self.pid = self._receive()

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""
        if not self._lock.acquire(blocking=False):
            return self._status  # another thread waits
        try:
            return self._await(0)
        finally:
            self._lock.release()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when the process has ended.

        Raises:
            subprocess.TimeoutExpired: it has not after so many seconds.
        """
        with self._lock:
            status = self._await(timeout)
        if status is None:
            raise subprocess.TimeoutExpired([*self._arguments], timeout or 0)
        return status

    def send_signal(self, how: int) -> None:
        """Send the process a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        """End the process as a power cut would."""
        self.send_signal(signal.SIGKILL)

    def _await(self, timeout: float | None) -> int | None:
        if self._status is None and select.select([self._report], [], [], timeout)[0]:
            self._status = os.waitstatus_to_exitcode(self._receive())
            self._report.close()
        return self._status

    def _receive(self) -> int:
        number = self._report.read(4)
        if not number:
            raise RuntimeError("The fork server has ended.")
        return int.from_bytes(number)


class PythonServer(Server):
    """A server that is a module of Python. It starts as a fork; `fork=False` starts Python, as a user does."""

    def __init__(self, directory: Path, *, fork: bool = True) -> None:
        super().__init__(directory)
        self._fork = fork

    def _start(self, log: int) -> Process:
        python, option, *module = self.command()
        if not self._fork or (python, option) != (sys.executable, "-m"):
            return super()._start(log)
        with Path(os.devnull).open("rb") as nothing:
            streams = (nothing.fileno(), log, log)
            return Fork(module, cwd=self.directory, env={**os.environ, **self.environment()}, streams=streams)


def start_fork_servers(number: int) -> list[socket.socket]:
    """Start as many fork servers, which end with this process, and return the connections to them."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(number)]
    descriptors = [its.fileno() for _, its in pairs]
    command = [sys.executable, "-m", "tests.servers.fork_server", *map(str, descriptors)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MALLOC_ARENA_MAX": "2"}  # libc reads it at a start
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, pass_fds=descriptors, umask=0o022)
    for _, its in pairs:
        its.close()

    @atexit.register
    def end() -> None:
        for ours, _ in pairs:
            ours.close()
        process.wait()

    return [ours for ours, _ in pairs]


def use_fork_server(connection: socket.socket) -> None:
    """Let this process use the fork server of this connection instead of one that it starts itself."""
    _connections.append(connection)


def _server() -> socket.socket:
    if not _connections:
        _connections.extend(start_fork_servers(1))
    return _connections[0]
