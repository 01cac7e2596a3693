"""Run the real command line as a person or a script would, in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
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
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=self.home.parent,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def with_settings(self, **settings: str) -> "Zot":
        """Return the same with other settings in the environment."""
        return Zot(self.home, self.settings | {f"ZOT_{name.upper()}": value for name, value in settings.items()})
