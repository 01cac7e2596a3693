"""Run `zot-artifacts up` with all that it starts in forks, for tests that are about something beside it.

A start of `up` with two workers takes eight seconds of processor time, and most of them are imports; as forks, one.
Tests of what only a start of Python shows use worker/embedded/up_subprocess.py.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from tests.servers.forks import Fork
from tests.servers.process import REPOSITORY
from worker.embedded.up_subprocess import Up, await_ready

FORK_CHILDREN = "tests.servers.fork_children"
"""The module that runs another one, with its children as forks."""


@contextmanager
def running(home: Path, *options: str, **environment: str) -> Iterator[Up]:
    """Run `up` on a data directory as `up_subprocess.running` does; it is stopped at the end of the block.

    Raises:
        UpFailed: it is not ready in time.
    """
    with started(home, "--json", *options, **environment) as (up, stdout):
        yield Up(up.process, await_ready(stdout, home / "up.log"))


@contextmanager
def started(home: Path, *options: str, **environment: str) -> Iterator[tuple[Up, IO[bytes]]]:
    """Start `up` on a data directory, and yield it with what it prints; it is stopped at the end of the block."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    reading, writing = os.pipe()
    log = os.open(home / "up.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process = Fork(
            [FORK_CHILDREN, "worker.cli", "up", *options],
            cwd=Path.cwd(),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "ZOT_HOME": str(home), **environment},
            streams=(nothing, writing, log),
        )
    finally:
        for descriptor in (nothing, writing, log):
            os.close(descriptor)
    up = Up(cast("subprocess.Popen[bytes]", process), {})  # a fork has what it uses of that
    with os.fdopen(reading, "rb") as stdout:
        try:
            yield up, stdout
        finally:
            up.stop()
