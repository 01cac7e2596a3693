"""Repair the broker's append-only files when the server would not start with them, or would start empty."""

import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from worker import clock
from worker.counted import counted

_AOF, _RDB = "valkey-check-aof", "valkey-check-rdb"
"""The names under which the server's program checks its files."""
_ANALYZED = re.compile(r"size=(\d+), ok_up_to=(\d+)")
_LINE = re.compile(r'file "?(?P<name>[^" ]+)"? seq (?P<seq>\d+) type (?P<type>[bih])(?: .*)?')
_NAME = re.compile(r"appendonly\.aof\.(?P<seq>\d+)\.(?P<type>base|incr)\.(?:rdb|aof)")


class DamagedBroker(Exception):
    """The append-only file cannot be repaired; the message names the file and the way out."""


@dataclass(frozen=True, slots=True)
class Repair:
    """A repair: what was damaged and is not used any more, and the directory with the damaged files."""

    damage: tuple[str, ...]
    copy: Path

    def __str__(self) -> str:
        return (
            f"the broker's files were damaged: {'; '.join(self.damage)}. The damaged files are kept in {self.copy}; "
            "jobs in the ledger whose messages were lost are sent again, jobs that no worker had taken may be lost"
        )


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    seq: int
    type: str

    @property
    def line(self) -> str:
        return f"file {self.path.name} seq {self.seq} type {self.type}\n"


def repair(directory: Path, server: Path) -> Repair | None:
    """Copy all files, then leave out what the server cannot read; return None if nothing is damaged.

    What follows the last whole command of a file is cut off. A manifest that is missing or cannot be read, with which
    the server would not start or would start empty, is made of the files that are there.

    Args:
        directory: the server's data directory.
        server: the server's program.

    Raises:
        DamagedBroker: a file cannot be checked or repaired; it is as it was.
    """
    files = directory / "appendonlydir"
    manifest = files / "appendonly.aof.manifest"
    if not files.is_dir():
        if files.exists() or files.is_symlink():
            raise DamagedBroker(f"{files} is no directory, and the broker cannot start: move it away, then start again")
        return None
    listed = _listed(manifest)
    parts = _found(files) if listed is None else [each for each in listed if each.path.exists()]
    if listed is None and not parts:
        return None
    damage = ["its manifest cannot be read"] if listed is None else []
    damage += [f"{each.path.name} is missing" for each in listed or () if not each.path.exists()]
    bad = [each for each in parts if each.path.suffix == ".rdb" and not _is_whole(server, each.path)]
    damage += [f"{each.path.name} cannot be read" for each in bad]
    cut = [(each, at) for each in parts if each.path.suffix == ".aof" and (at := _check(server, each.path))]
    damage += [f"the last {counted(size - good, 'byte')} of {each.path.name} lost" for each, (size, good) in cut]
    if not damage:
        return None
    copy = directory / f"damaged-{_stamp(clock.now())}"
    shutil.copytree(files, copy)
    for each, (_, good) in cut:
        _check(server, each.path, "--fix")
        if _check(server, each.path) is not None:
            raise DamagedBroker(
                f"the broker's file {each.path} is damaged after byte {good} and cannot be repaired: move {files} "
                "away, then start again; jobs in the ledger are sent again, jobs that no worker had taken are lost"
            )
    kept = [each for each in parts if each not in bad]
    if kept != listed:
        new = manifest.with_suffix(".new")
        new.write_text("".join(each.line for each in kept))
        new.replace(manifest)
    return Repair(tuple(damage), copy)


def _listed(manifest: Path) -> list[_File] | None:
    """Return the files that a manifest names and the server reads; None if the manifest is missing or damaged."""
    try:
        lines = manifest.read_text().splitlines()
    except (OSError, ValueError):
        return None
    found = [_LINE.fullmatch(line) for line in lines if not line.startswith("#")]
    parts = [_File(manifest.parent / each["name"], int(each["seq"]), each["type"]) for each in found if each]
    return [each for each in parts if each.type != "h"] if parts and all(found) else None


def _found(files: Path) -> list[_File]:
    """Return the files of which a manifest would be made: the last base, and all increments in their order."""
    named = [(path, found) for path in files.iterdir() if (found := _NAME.fullmatch(path.name))]
    parts = [_File(path, int(found["seq"]), found["type"][0]) for path, found in named]
    bases = sorted((each for each in parts if each.type == "b"), key=lambda each: each.seq)
    return bases[-1:] + sorted((each for each in parts if each.type == "i"), key=lambda each: each.seq)


def _is_whole(server: Path, file: Path) -> bool:
    status = subprocess.run([_RDB, str(file)], executable=server, capture_output=True, check=False).returncode
    if status == -signal.SIGKILL:  # it says nothing about the file
        raise DamagedBroker(
            f"the check of the broker's file {file} was killed, such as for want of memory: nothing was changed; free "
            "memory, then start again"
        )
    return status == 0


def _check(server: Path, file: Path, *options: str) -> tuple[int, int] | None:
    """Return the size of the file and that of its good beginning, or None if all of it is good."""
    command = [_AOF, *options, str(file)]
    done = subprocess.run(command, executable=server, input=b"y\n", capture_output=True, check=False)
    if done.returncode == 0:
        return None
    found = _ANALYZED.search(done.stdout.decode(errors="replace"))
    if found is None:
        raise DamagedBroker(
            f"the broker's file {file} cannot be read: make it a readable file, or move {file.parent} away, then start "
            "again; jobs in the ledger are sent again, jobs that no worker had taken are lost"
        )
    return int(found[1]), int(found[2])


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
