"""Run the real command line as a person or a script would, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.forks import Fork
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
        return run_in_fork(["worker.cli", *command], environment, directory, within)

    def with_settings(self, **settings: str) -> "Zot":
        """Return the same with other settings in the environment."""
        return Zot(self.home, self.settings | {f"ZOT_{name.upper()}": value for name, value in settings.items()})


def run_in_fork(arguments: Sequence[str], environment: Mapping[str, str], directory: Path, within: float) -> Finished:
    """Run a module with its arguments in a fork of the fork server, with nothing to read, and return how it ended."""
    with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # noqa: PTH123
        streams = (nothing.fileno(), out.fileno(), err.fileno())
        process = Fork(arguments, cwd=directory, env=environment, streams=streams)
        try:
            status = process.wait(within)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return Finished(status, out.read().decode(), err.read().decode())
