"""Repair the broker's append-only file when its last bytes are no commands, with which the server does not start."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from worker import clock

_CHECKER = "valkey-check-aof"
"""The name under which the server's program checks append-only files."""
_ANALYZED = re.compile(r"size=(\d+), ok_up_to=(\d+)")
_INCREMENT = re.compile(r'^file "?([^" ]+\.aof)"? seq \d+ type i', flags=re.MULTILINE)


class DamagedBroker(Exception):
    """The append-only file cannot be repaired; the message names the file and the way out."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair: the bytes that were cut off, and the directory with the damaged files."""

    file: Path
    cut: int
    copy: Path

    def __str__(self) -> str:
        return (
            f"the broker's file {self.file} was damaged: its last {self.cut} bytes were cut off, and the damaged files "
            f"are kept in {self.copy}; jobs in the ledger whose messages were lost are sent again"
        )


def repair(directory: Path, server: Path) -> Repair | None:
    """Copy all files, then cut off what follows the last whole command; return None if nothing is damaged.

    Args:
        directory: the server's data directory.
        server: the server's program.

    Raises:
        DamagedBroker: the file cannot be repaired; it is as it was.
    """
    files = directory / "appendonlydir"
    manifest = files / "appendonly.aof.manifest"
    if not manifest.exists():
        return None
    increments = _INCREMENT.findall(manifest.read_text(errors="replace"))
    if not increments or not (files / increments[-1]).exists():
        return None
    last = files / increments[-1]
    found = _check(server, last)
    if found is None:
        return None
    size, good = found
    copy = directory / f"damaged-{_stamp(clock.now())}"
    shutil.copytree(files, copy)
    _check(server, last, "--fix")
    if _check(server, last) is not None:
        raise DamagedBroker(
            f"the broker's file {last} is damaged after byte {good} and cannot be repaired: move {files} away, then "
            "start again; jobs in the ledger are sent again, jobs that no worker had taken are lost"
        )
    return Repair(last, size - good, copy)


def _check(server: Path, file: Path, *options: str) -> tuple[int, int] | None:
    """Return the size of the file and that of its good beginning, or None if all of it is good."""
    command = [_CHECKER, *options, str(file)]
    done = subprocess.run(command, executable=server, input=b"y\n", capture_output=True, check=False)
    if done.returncode == 0 or not (found := _ANALYZED.search(done.stdout.decode(errors="replace"))):
        return None
    return int(found[1]), int(found[2])


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
