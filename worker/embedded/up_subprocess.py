"""Run `zot-artifacts up` as a child process: wait until it is ready, stop it, and find processes that it left."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from worker.embedded.parent_death import die_with_parent

READY_WITHIN = 120.0
ENDED_WITHIN = 60.0


class UpFailed(Exception):
    """`up` did not become ready, or did not end; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Up:
    """A running `zot-artifacts up`, and the JSON document that it printed when it was ready."""

    process: subprocess.Popen[bytes]
    document: Mapping[str, Any]

    def family(self) -> set[int]:
        """Return the ids of its process and of all descendants."""
        return {self.process.pid} | descendants(self.process.pid)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and return its exit status.

        Raises:
            UpFailed: it did not end in time and was killed.
        """
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(ENDED_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise UpFailed(f"`up` did not end within {ENDED_WITHIN:.0f} s") from None


@contextmanager
def running(home: Path, *options: str, **environment: str) -> Iterator[Up]:
    """Run `up` on a data directory; it is stopped at the end of the block.

    Args:
        home: the data directory; the messages of `up` go to `up.log` in it.
        options: of `up`.
        environment: added to that of this process.

    Raises:
        UpFailed: it is not ready in time.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_fd = os.open(home / "up.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(log_fd, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.cli", "up", "--json", *options],
            env={**os.environ, "ZOT_HOME": str(home), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - no lock is held here
        )
    assert process.stdout is not None
    try:
        yield Up(process, await_ready(process.stdout, home / "up.log"))
    finally:
        Up(process, {}).stop()
        process.stdout.close()


def await_ready(stdout: IO[bytes], log: Path) -> dict[str, Any]:
    """Return the document that `up` prints once it is ready.

    Raises:
        UpFailed: it is not ready in time; the message has the end of its log.
    """
    line = b""
    if select.select([stdout], [], [], READY_WITHIN)[0]:
        line = stdout.readline()
    try:
        document: dict[str, Any] = json.loads(line)
    except ValueError:
        tail = " ".join(log.read_text(errors="replace")[-1500:].split())
        raise UpFailed(f"`up` was not ready within {READY_WITHIN:.0f} s: {tail}") from None
    if not document.get("ready"):
        raise UpFailed(document.get("error", {}).get("message", "`up` is not ready"))
    return document


def descendants(pid: int) -> set[int]:
    """Return the ids of all descendants of a process, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: set[int] = set()
    new = {pid}
    while new := {child for parent in new for child in children.get(parent, [])} - found:
        found |= new
    return found


def still_there(pids: set[int], within: float) -> set[int]:
    """Return the processes that have not ended within this many seconds; a zombie counts as ended."""
    deadline = time.monotonic() + within
    while (left := {pid for pid in pids if _lives(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)  # no event shows the end of a process that is not a child of this one
    return left


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
