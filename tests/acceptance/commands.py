"""Run the real command line as a person or a script would, in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.servers.process import REPOSITORY
from tests.waiting import WITHIN

COMMAND = (sys.executable, "-m", "worker.cli")


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """Return the one JSON document on stdout."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self
        return json.loads(lines[0])

    def is_one_line(self) -> bool:
        """Return whether a person was told in exactly one line what went wrong."""
        return self.stderr.startswith("zot-artifacts: ") and self.stderr.count("\n") == 1


@dataclass(frozen=True)
class Zot:
    """`zot-artifacts` on one data directory."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "ZOT_HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), **self.settings}

    def __call__(self, *arguments: object, within: float = WITHIN) -> Finished:
        command, environment, directory = [*map(str, arguments)], self.environment, self.home.parent
        if any(name.startswith("PYTHON") for name in self.settings):  # Python reads it when it starts
            return run(command, environment, directory, within)
        return run_in_fork(command, environment, directory, within)

    def with_settings(self, **settings: str) -> "Zot":
        """Return the same with other settings in the environment."""
        return Zot(self.home, self.settings | {f"ZOT_{name.upper()}": value for name, value in settings.items()})


def run(arguments: Sequence[str], environment: Mapping[str, str], directory: Path, within: float) -> Finished:
    """Run a command in a new process and return how it ended."""
    command = [*COMMAND, *arguments]
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=within, check=False
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def run_in_fork(arguments: Sequence[str], environment: Mapping[str, str], directory: Path, within: float) -> Finished:
    """Run a command in a fork of the command server, with nothing to read, and return how it ended."""
    _, server = _server()
    server.settimeout(within)
    request = {"arguments": arguments, "environment": dict(environment), "directory": str(directory)}
    with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # noqa: PTH123
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        socket.send_fds(server, [json.dumps(request).encode()], streams)
        process = int.from_bytes(server.recv(4))
        try:
            status = os.waitstatus_to_exitcode(int.from_bytes(server.recv(4)))
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            server.recv(4)
            raise
        out.seek(0)
        err.seek(0)
        return Finished(status, out.read().decode(), err.read().decode())


@cache
def _server() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the command server of this process, which ends with it, and return it and the connection to it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.acceptance.command_server", str(its.fileno())]
    process = subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[its.fileno()])
    its.close()
    return process, ours
